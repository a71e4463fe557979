//! The unix socket behind `flannel-agent status` and `flannel-agent fast-path`: whoever connects may ask for another
//! mode of the fast path, in one line, and gets the status document, then the end.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
    time::timeout,
};

use crate::{
    board::Board,
    fastpath::Mode,
    reconcile::{Call, Wanted},
};

/// What a request for another mode of the fast path begins with; the mode's name and the end of the line follow.
pub const FAST_PATH: &str = "fast-path ";

/// Only root may ask: the status names addresses of nodes and pods.
const MODE: u32 = 0o600;
/// Mode of a directory that has to be made.
const DIRECTORY_MODE: u32 = 0o755;
/// Longest request, in bytes.
const REQUEST_LEN: u64 = 64;
/// A client that has a request sends it at once.
const REQUEST_TIMEOUT: Duration = Duration::from_millis(100);
/// How long to wait for what was asked, each until it is heard and until it is done, before answering with what is
/// known.
const CALL_TIMEOUT: Duration = Duration::from_secs(1);
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

    /// Answers for ever; `calls` reach the reconciler, once it runs.
    pub async fn serve(&self, board: Board, calls: mpsc::Sender<Call>) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    tokio::spawn(answer(stream, board.clone(), calls.clone()));
                }
                Err(error) => {
                    tracing::debug!(%error, "status socket: accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

/// Has the reconciler do what is `wanted`, for as long as an operator would wait. Before it runs nobody acts: the board
/// is what there is.
pub async fn call(calls: &mpsc::Sender<Call>, wanted: Wanted) {
    let (done, answered) = oneshot::channel();
    let call = Call { wanted, done };
    if timeout(CALL_TIMEOUT, calls.send(call)).await.is_ok() {
        let _ = timeout(CALL_TIMEOUT, answered).await;
    }
}

async fn answer(mut stream: UnixStream, board: Board, calls: mpsc::Sender<Call>) {
    let Some(wanted) = request(&mut stream).await else {
        return;
    };
    call(&calls, wanted).await;
    let mut text = serde_json::to_vec(&board.status()).unwrap_or_default();
    text.push(b'\n');
    // A client that went away needs no answer.
    let _ = timeout(WRITE_TIMEOUT, stream.write_all(&text)).await;
}

/// What the client wants; nothing that is understood gets no answer.
async fn request(stream: &mut UnixStream) -> Option<Wanted> {
    let mut text = String::new();
    let mut limited = stream.take(REQUEST_LEN);
    let reading = limited.read_to_string(&mut text);
    // Who merely connects wants the status.
    if timeout(REQUEST_TIMEOUT, reading).await.is_err() || text.is_empty() {
        return Some(Wanted::Status);
    }
    let mode = text.strip_prefix(FAST_PATH)?.trim_end();
    let mode = Mode::ALL.into_iter().find(|known| known.name() == mode)?;
    Some(Wanted::FastPath(mode))
}
