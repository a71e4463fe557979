//! What systemd is told, if it started the agent with `Type=notify` (sd_notify(3)): datagrams to `NOTIFY_SOCKET`.

use std::{
    env,
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
};

/// The agent is ready.
pub fn ready() {
    send("READY=1\nSTATUS=ready");
}

/// The agent is about to end.
pub fn stopping() {
    send("STOPPING=1\nSTATUS=stopping");
}

/// One line for `systemctl status`.
pub fn status(text: &str) {
    send(&format!("STATUS={}", text.replace('\n', " ")));
}

fn send(message: &str) {
    let Some(path) = env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()) else {
        return;
    };
    if let Err(error) = send_to(&path, message) {
        tracing::debug!(%error, socket = ?path, message, "systemd could not be told");
    }
}

/// Sends without waiting: a manager that is stuck must not keep pods from their network.
fn send_to(path: &OsStr, message: &str) -> io::Result<()> {
    let address = match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(path)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to_addr(message.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_by_path_and_by_abstract_name() {
        let name = format!("flannel-notify-test-{}", std::process::id());
        let path = env::temp_dir().join(&name);
        let by_path = UnixDatagram::bind(&path).unwrap();
        let abstract_name = SocketAddr::from_abstract_name(&name).unwrap();
        let by_name = UnixDatagram::bind_addr(&abstract_name).unwrap();
        let results = [
            send_to(path.as_os_str(), "READY=1"),
            send_to(OsStr::new(&format!("@{name}")), "STATUS=x"),
        ];
        std::fs::remove_file(&path).unwrap();
        results.into_iter().for_each(|result| result.unwrap());
        for (socket, expected) in [(by_path, "READY=1"), (by_name, "STATUS=x")] {
            let mut buffer = [0; 64];
            let length = socket.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], expected.as_bytes());
        }
        assert!(send_to(OsStr::new("/nowhere/socket"), "READY=1").is_err());
    }
}
