//! Watches: the changes behind a revision, then all that come, a line each.

use std::{sync::Arc, time::Duration};

use hyper::body::Bytes;
use serde_json::{Value, json};
use tokio::{
    sync::{broadcast, mpsc},
    time::{Instant, MissedTickBehavior, interval_at, sleep_until},
};

use super::{
    Shared,
    body::{Content, Cut, Part, half},
    fault::{Fault, Interrupt},
    list,
    request::Request,
    server::Connection,
    status::Refusal,
    store::{Store, TooOld, bookmark, with_kind},
};

/// How long a watch lasts whose client does not say it; the real server chooses half an hour to an hour.
const DEFAULT_TIMEOUT: Duration = Duration::from_mins(30);
/// What a middlebox puts into a stream.
const GARBAGE: &[u8] = b"<html><title>502 Bad Gateway</title>\n";

/// What a client wants to watch.
#[derive(Debug)]
pub(super) struct Watch {
    /// Changes up to here are known to it.
    position: u64,
    /// What it is sent at once.
    first: Vec<Bytes>,
    /// Its revision was no longer known.
    is_too_old: bool,
    only: Option<String>,
    bookmarks: bool,
    ends: Instant,
}

impl Watch {
    /// Reads a request and takes its place in the log.
    pub(super) fn new(store: &Store, request: &Request) -> Result<Self, Refusal> {
        if request.is_set("sendInitialEvents") {
            let reason = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
            return Err(Refusal::bad_request(reason));
        }
        let only = list::name_of(request)?.map(str::to_owned);
        let timeout = list::number(request, "timeoutSeconds")?;
        let mut first = Vec::new();
        let mut position = store.revision();
        let mut is_too_old = false;
        match list::number(request, "resourceVersion")? {
            // From any state: what is there is told as if it came now.
            None => {
                let nodes = store.nodes().iter();
                let wanted =
                    nodes.filter(|(name, _)| only.as_ref().is_none_or(|only| only == *name));
                first.extend(wanted.map(|(_, node)| line("ADDED", &with_kind(node))));
            }
            Some(revision) => {
                position = revision;
                // The real server begins the answer before it looks.
                if let Err(TooOld(oldest)) = store.check(revision) {
                    is_too_old = true;
                    first.push(error(&Refusal::too_old(revision, oldest)));
                }
            }
        }
        Ok(Self {
            position,
            first,
            is_too_old,
            only,
            bookmarks: request.is_set("allowWatchBookmarks"),
            ends: Instant::now() + timeout.map_or(DEFAULT_TIMEOUT, Duration::from_secs),
        })
    }

    /// Begins to send; `fault` spoils the beginning.
    pub(super) fn start(
        self,
        shared: &Arc<Shared>,
        connection: &Connection,
        fault: Option<Fault>,
    ) -> Content {
        let (sender, content) = Content::stream();
        let stream = Stream {
            sender,
            connection: connection.clone(),
            changed: shared.changed.subscribe(),
            interrupts: shared.interrupts.subscribe(),
            watch: self,
            spoil: fault,
            // Last: who sees it counted can interrupt it.
            open: Open::new(shared),
        };
        tokio::spawn(stream.run());
        content
    }

    /// Changes that are not sent yet.
    fn lines(&mut self, store: &Store) -> Result<Vec<Bytes>, TooOld> {
        let position = self.position;
        self.position = position.max(store.revision());
        let changes = store.changes_since(position)?;
        Ok(changes
            .filter(|event| self.only.as_ref().is_none_or(|only| *only == event.name))
            .map(|event| line(event.change.name(), &with_kind(&event.node)))
            .collect())
    }
}

/// Counts a watch for as long as it is open.
struct Open(Arc<Shared>);

impl Open {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.state().open_watches += 1;
        Self(shared.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.state().open_watches -= 1;
    }
}

/// The stream has come to its end, by the client or by us.
struct Ended;

struct Stream {
    open: Open,
    sender: mpsc::Sender<Part>,
    connection: Connection,
    changed: tokio::sync::watch::Receiver<u64>,
    interrupts: broadcast::Receiver<Interrupt>,
    watch: Watch,
    spoil: Option<Fault>,
}

impl Stream {
    async fn run(mut self) {
        let Err(Ended) = self.follow().await;
    }

    async fn follow(&mut self) -> Result<std::convert::Infallible, Ended> {
        match self.spoil {
            Some(Fault::Stall) => self.stall().await?,
            Some(Fault::Garbage) => {
                self.spoil = None;
                self.send(Bytes::from_static(GARBAGE)).await?;
            }
            _ => {}
        }
        for line in std::mem::take(&mut self.watch.first) {
            self.send(line).await?;
        }
        if self.watch.is_too_old {
            return Err(Ended);
        }
        let period = self.open.0.options.bookmarks;
        let mut bookmarks = interval_at(Instant::now() + period, period);
        bookmarks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.changed.mark_unchanged();
            self.send_changes().await?;
            tokio::select! {
                biased;
                () = self.sender.closed() => return Err(Ended),
                interrupt = self.interrupts.recv() => match interrupt {
                    Ok(interrupt) => self.interrupt(interrupt).await?,
                    Err(_) => return Err(Ended),
                },
                changed = self.changed.changed() => changed.map_err(|_| Ended)?,
                () = sleep_until(self.watch.ends) => return Err(Ended),
                _ = bookmarks.tick() => self.send_bookmark().await?,
            }
        }
    }

    async fn send_changes(&mut self) -> Result<(), Ended> {
        // A reader that is slower than the log is let go, as by the real server.
        let lines = self.watch.lines(&self.open.0.state().store);
        for line in lines.map_err(|_| Ended)? {
            self.send(line).await?;
        }
        Ok(())
    }

    async fn interrupt(&mut self, interrupt: Interrupt) -> Result<(), Ended> {
        // What had happened before comes before.
        self.send_changes().await?;
        match interrupt {
            Interrupt::End => Err(Ended),
            Interrupt::Reset => self.reset().await,
            Interrupt::Cut => {
                self.spoil = Some(Fault::Cut);
                self.send(line(
                    "BOOKMARK",
                    bookmark(self.watch.position).to_string().as_bytes(),
                ))
                .await
            }
            Interrupt::Garbage => self.send(Bytes::from_static(GARBAGE)).await,
            Interrupt::Expired => {
                let position = self.watch.position;
                self.send(error(&Refusal::too_old(position, position + 1)))
                    .await?;
                Err(Ended)
            }
            Interrupt::Stall => self.stall().await,
            Interrupt::Bookmark => self.send_bookmark().await,
        }
    }

    async fn send_bookmark(&mut self) -> Result<(), Ended> {
        if !self.watch.bookmarks {
            return Ok(());
        }
        self.send_changes().await?;
        let node = bookmark(self.watch.position).to_string();
        self.send(line("BOOKMARK", node.as_bytes())).await
    }

    /// Waits for the client to go, or for an end from our side.
    async fn stall(&mut self) -> Result<(), Ended> {
        loop {
            tokio::select! {
                () = self.sender.closed() => return Err(Ended),
                interrupt = self.interrupts.recv() => match interrupt {
                    Ok(Interrupt::Reset) => return self.reset().await,
                    Ok(Interrupt::End) | Err(_) => return Err(Ended),
                    Ok(_) => {}
                },
            }
        }
    }

    async fn reset(&mut self) -> Result<(), Ended> {
        self.connection.reset_when_closed();
        self.sender.send(Err(Cut)).await.ok();
        Err(Ended)
    }

    async fn send(&mut self, line: Bytes) -> Result<(), Ended> {
        if self.spoil == Some(Fault::Cut) {
            self.sender.send(Ok(half(&line))).await.ok();
            self.sender.send(Err(Cut)).await.ok();
            return Err(Ended);
        }
        self.sender.send(Ok(line)).await.map_err(|_| Ended)
    }
}

fn line(change: &str, node: &[u8]) -> Bytes {
    let mut line = format!(r#"{{"type":"{change}","object":"#).into_bytes();
    line.extend_from_slice(node);
    line.extend_from_slice(b"}\n");
    line.into()
}

fn error(refusal: &Refusal) -> Bytes {
    let line: Value = json!({ "type": "ERROR", "object": refusal.body });
    format!("{line}\n").into()
}
