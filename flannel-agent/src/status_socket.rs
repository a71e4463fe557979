//! The unix socket behind `flannel-agent status`: whoever connects gets the status document, then the end.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    io::AsyncWriteExt as _,
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
    time::timeout,
};

use crate::{board::Board, reconcile::Refresh};

/// Only root may ask: the status names addresses of nodes and pods.
const MODE: u32 = 0o600;
/// Mode of a directory that has to be made.
const DIRECTORY_MODE: u32 = 0o755;
/// How long to wait for fresh figures before answering with those that are there.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(1);
/// A client that does not read does not hold its connection for longer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another agent answers on it.
    #[error("--status-socket = {}: another agent is running with it; stop it, or choose another path", .0.display())]
    InUse(PathBuf),
    /// The file system refused.
    #[error("--status-socket = {}: {source}", path.display())]
    Bind {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A bound socket; its file is removed when it is dropped.
pub struct StatusSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for StatusSocket {
    fn drop(&mut self) {
        // Nothing can be done about it, and the next agent replaces a stale file.
        let _ = fs::remove_file(&self.path);
    }
}

impl StatusSocket {
    /// Binds the socket; replaces the file of an agent that is dead.
    ///
    /// # Errors
    /// When a live agent has it, or the file system refuses.
    pub fn bind(path: &Path) -> Result<Self, Error> {
        let fail = |source| Error::Bind {
            path: path.to_owned(),
            source,
        };
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(Error::InUse(path.to_owned()));
        }
        if let Some(directory) = path.parent() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(DIRECTORY_MODE)
                .create(directory)
                .map_err(fail)?;
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(error)),
            _ => {}
        }
        let listener = UnixListener::bind(path).map_err(fail)?;
        fs::set_permissions(path, fs::Permissions::from_mode(MODE)).map_err(fail)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
        })
    }

    /// Answers for ever; `refresh` asks the reconciler for fresh figures, once it runs.
    pub async fn serve(&self, board: Board, refresh: mpsc::Sender<Refresh>) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    tokio::spawn(answer(stream, board.clone(), refresh.clone()));
                }
                Err(error) => {
                    tracing::debug!(%error, "status socket: accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

async fn answer(mut stream: UnixStream, board: Board, refresh: mpsc::Sender<Refresh>) {
    let (sender, done) = oneshot::channel();
    // Before the reconciler runs nobody receives: the board is what there is.
    if refresh.try_send(sender).is_ok() {
        let _ = timeout(REFRESH_TIMEOUT, done).await;
    }
    let mut text = serde_json::to_vec(&board.status()).unwrap_or_default();
    text.push(b'\n');
    // A client that went away needs no answer.
    let _ = timeout(WRITE_TIMEOUT, stream.write_all(&text)).await;
}
