//! A name server for one name, to test that programs in a container resolve names.

use std::{
    net::{IpAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};
use lab::Netns;

/// Where resolvers ask.
const ADDRESS: &str = "127.0.0.1:53";

/// How often the server looks whether it is to end.
const INTERVAL: Duration = Duration::from_millis(100);

/// The length of a message's head, and of what ends a question: type and class (RFC 1035, 4.1).
const HEAD: usize = 12;
const QUESTION_END: usize = 4;

/// The type of a question for an IPv4 address (RFC 1035, 3.2.2).
const TYPE_A: u16 = 1;

/// The largest message by UDP (RFC 1035, 2.3.4), and what extensions add.
const BUFFER: usize = 1500;

/// A server in a namespace; it ends with the handle.
pub struct Resolver {
    ends: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
}

impl Resolver {
    /// Starts a server that knows one name.
    pub fn start(netns: &Netns, name: &str, address: IpAddr) -> Result<Self> {
        let socket = netns
            .run(|| UdpSocket::bind(ADDRESS))?
            .with_context(|| format!("cannot listen at {ADDRESS}"))?;
        socket
            .set_read_timeout(Some(INTERVAL))
            .context("cannot set a socket's timeout")?;
        let ends = Arc::new(AtomicBool::new(false));
        let (end, name) = (ends.clone(), encode(name));
        let server = thread::spawn(move || {
            let mut buffer = [0; BUFFER];
            while !end.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else {
                    continue;
                };
                if let Some(answer) = answer(&buffer[..length], &name, address) {
                    // Who does not get it asks again.
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        Ok(Self {
            ends,
            server: Some(server),
        })
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

/// A name as messages have it: each label behind its length.
fn encode(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).expect("a label has 63 characters at most"));
        bytes.extend(label.bytes());
    }
    bytes.push(0);
    bytes
}

/// The answer to a question: the address, nothing for other types, "no such name" for other names.
fn answer(question: &[u8], name: &[u8], address: IpAddr) -> Option<Vec<u8>> {
    const RESPONSE: u8 = 0x84; // an answer, by who knows it
    const NO_SUCH_NAME: u8 = 3;
    let rest = question.get(HEAD..)?;
    let end = rest.iter().position(|byte| *byte == 0)? + 1;
    let asked = rest.get(..end)?;
    let kind = rest.get(end..end + QUESTION_END)?;
    let is_known = asked.eq_ignore_ascii_case(name);
    let address = match address {
        IpAddr::V4(address) if is_known && kind[..2] == TYPE_A.to_be_bytes() => Some(address),
        _ => None,
    };
    let code = if is_known { 0 } else { NO_SUCH_NAME };
    let answers = u8::from(address.is_some());
    let mut message = question.get(..2)?.to_vec();
    message.extend([RESPONSE, code, 0, 1, 0, answers, 0, 0, 0, 0]);
    message.extend(asked);
    message.extend(kind);
    if let Some(address) = address {
        // The name of the question, its type and class, a minute, the length.
        message.extend([0xc0, 12]);
        message.extend(kind);
        message.extend([0, 0, 0, 60, 0, 4]);
        message.extend(address.octets());
    }
    Some(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_has_its_address_and_others_do_not_exist() {
        let ask = |name: &str, kind: u8| {
            let mut question = vec![7, 8, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            question.extend(encode(name));
            question.extend([0, kind, 0, 1]);
            answer(&question, &encode("etcd.test"), "10.0.0.1".parse().unwrap()).unwrap()
        };
        let known = ask("ETCD.test", 1);
        assert_eq!(known[..4], [7, 8, 0x84, 0]);
        assert!(known.ends_with(&[0, 4, 10, 0, 0, 1]));
        // No IPv6 address, but the name exists.
        let other_type = ask("etcd.test", 28);
        assert_eq!((other_type[3], other_type[7]), (0, 0));
        assert_eq!(ask("other.test", 1)[3], 3);
        assert!(answer(&[0; HEAD], &[0], "::1".parse().unwrap()).is_none());
    }
}
