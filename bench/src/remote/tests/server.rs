//! A server answers its client, nobody else, and again after a client has gone.

use std::net::Ipv4Addr;

use super::*;
use crate::remote::control::{Control, Error};

/// A server without an agent on the loopback device; it runs until the test process ends.
fn start() -> SocketAddr {
    let (listener, socket) = open((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let address = listener.local_addr().unwrap();
    let server = Arc::new(Server {
        agent: None,
        place: Place::default(),
        connections: Connections::default(),
        datagrams: AtomicU64::new(0),
    });
    let acceptor = Arc::clone(&server);
    thread::spawn(move || acceptor.accept(&listener));
    thread::spawn(move || server.datagrams(&socket));
    address
}

fn socket(to: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.connect(to).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    socket
}

#[test]
fn clients_are_served_one_after_the_other() {
    let address = start();
    let (first, node) = Control::connect(address).unwrap();
    assert_eq!(node.agent, None);
    // Waits for the first one's end.
    let second = thread::spawn(move || Control::connect(address));
    thread::sleep(Duration::from_millis(100));
    assert!(!second.is_finished());
    drop(first);
    let (mut second, _) = second.join().unwrap().unwrap();
    second.counts().unwrap();
}

#[test]
fn datagrams_of_the_client_are_answered_and_counted() {
    let address = start();
    let stranger = socket(address);
    stranger.send(&[ANSWER, 7]).unwrap();
    assert!(stranger.recv(&mut [0; 2]).is_err(), "nobody is served");
    let (mut control, _) = Control::connect(address).unwrap();
    let client = socket(address);
    client.send(&[ANSWER, 7]).unwrap();
    let mut answer = [0; 2];
    assert_eq!(client.recv(&mut answer).unwrap(), 2);
    assert_eq!(answer, [ANSWER, 7]);
    for _ in 0..3 {
        client.send(&[COUNT, 7]).unwrap();
    }
    // Answered behind them.
    client.send(&[ANSWER, 8]).unwrap();
    client.recv(&mut answer).unwrap();
    assert_eq!(control.counts().unwrap().datagrams, 3);
}

#[test]
fn data_connections_without_a_client_are_closed() {
    let mut stream = TcpStream::connect(start()).unwrap();
    stream.write_all(&Purpose::One.bytes()).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
}

#[test]
fn another_version_is_told_so() {
    let mut stream = TcpStream::connect(start()).unwrap();
    stream.write_all(&Purpose::Control.bytes()).unwrap();
    let hello = Request::Hello {
        version: VERSION + 1,
    };
    protocol::write(&mut stream, &hello).unwrap();
    let Some(Answer::Refused(why)) = protocol::read(&mut stream).unwrap() else {
        panic!("served");
    };
    assert!(why.contains("same build"), "{why}");
}

#[test]
fn a_mode_needs_an_agent() {
    let (mut control, _) = Control::connect(start()).unwrap();
    let error = control.mode(protocol::Mode::Off).unwrap_err();
    assert!(matches!(&error, Error::Refused(why) if why.contains("--agent-socket")));
    assert_eq!(control.restore().unwrap(), None);
    assert_eq!(control.fast_path().unwrap(), None);
}
