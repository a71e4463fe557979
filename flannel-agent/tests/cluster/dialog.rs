//! UDP conversations that conntrack calls assured: what makes datagrams fast.

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, UdpSocket},
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use lab::traffic::Host;

/// After so long conntrack calls an answered flow assured, and some more.
const UNTIL_ASSURED: Duration = Duration::from_millis(2300);
/// Pause between two questions meanwhile.
const PAUSE: Duration = Duration::from_millis(100);
/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(5);
/// Receive buffer in bytes.
const BUFFER: usize = 8 << 20;
/// `UDP_SEGMENT` of include/uapi/linux/udp.h.
const UDP_SEGMENT: libc::c_int = 103;

/// The connected sockets of both ends.
pub(crate) struct Dialog {
    pub(crate) client: UdpSocket,
    pub(crate) server: UdpSocket,
}

impl Dialog {
    /// Opens a conversation. Nothing has been sent.
    fn open(from: &dyn Host, to: &dyn Host) -> anyhow::Result<Self> {
        let bind = |host: &dyn Host| -> anyhow::Result<UdpSocket> {
            let open = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0));
            let socket = host.netns().run(open)??;
            rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER)?;
            socket.set_read_timeout(Some(LIMIT))?;
            Ok(socket)
        };
        let (client, server) = (bind(from)?, bind(to)?);
        client.connect((to.address(), server.local_addr()?.port()))?;
        Ok(Self { client, server })
    }

    /// A question and its answer.
    pub(crate) fn exchange(&self) -> anyhow::Result<()> {
        let mut buffer = [0; 64];
        self.client.send(b"question")?;
        let (length, from) = self.server.recv_from(&mut buffer).context("question")?;
        ensure!(&buffer[..length] == b"question", "another question");
        self.server.send_to(b"answer", from)?;
        let length = self.client.recv(&mut buffer).context("answer")?;
        ensure!(&buffer[..length] == b"answer", "another answer");
        Ok(())
    }

    /// Lets the client's kernel send each packet as segments of so many bytes.
    pub(crate) fn segment(&self, size: u16) -> anyhow::Result<()> {
        let size = libc::c_int::from(size);
        // SAFETY: the descriptor is open, the value is an integer of the length given.
        let result = unsafe {
            libc::setsockopt(
                self.client.as_raw_fd(),
                libc::SOL_UDP,
                UDP_SEGMENT,
                (&raw const size).cast(),
                size_of_val(&size) as libc::socklen_t,
            )
        };
        ensure!(
            result == 0,
            "UDP_SEGMENT: {}",
            std::io::Error::last_os_error()
        );
        Ok(())
    }

    /// Takes what has arrived at the server without waiting.
    pub(crate) fn arrived(&self, mut each: impl FnMut(&[u8])) -> anyhow::Result<()> {
        let mut buffer = vec![0; 64 << 10];
        self.server.set_nonblocking(true)?;
        let result = loop {
            match self.server.recv(&mut buffer) {
                Ok(length) => each(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        self.server.set_nonblocking(false)?;
        Ok(result?)
    }
}

/// Opens so many conversations, without a word.
pub(crate) fn open(from: &dyn Host, to: &dyn Host, count: usize) -> anyhow::Result<Vec<Dialog>> {
    (0..count).map(|_| Dialog::open(from, to)).collect()
}

/// Opens so many conversations and leads them until all are assured, and the hooks have seen that.
pub(crate) fn assured(from: &dyn Host, to: &dyn Host, count: usize) -> anyhow::Result<Vec<Dialog>> {
    let dialogs = open(from, to, count)?;
    let start = Instant::now();
    let mut last = false;
    while !last {
        last = start.elapsed() > UNTIL_ASSURED;
        for dialog in &dialogs {
            dialog.exchange()?;
        }
        std::thread::sleep(PAUSE);
    }
    Ok(dialogs)
}
