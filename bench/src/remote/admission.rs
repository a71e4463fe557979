//! Who is served: one client at a time, a bounded number of connections, and nobody who does not say what he wants.

use std::{
    io::{self, Read},
    net::{IpAddr, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// How long a new client waits for the last one's end: its agent may be getting its mode back.
const LIMIT: Duration = Duration::from_secs(9);
/// Pause between two looks at it.
const PAUSE: Duration = Duration::from_millis(20);
/// Connections with a thread of their own at most; a client needs three.
const MOST_CONNECTIONS: usize = 64;

/// The client's place.
#[derive(Debug, Default)]
pub(super) struct Place(Mutex<Option<IpAddr>>);

impl Place {
    /// Makes an address that of the client, for as long as what it returns lives.
    pub(super) fn admit(&self, from: IpAddr) -> Option<Admitted<'_>> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let mut client = self.client();
            if client.is_none() {
                *client = Some(from);
                return Some(Admitted(self));
            }
            drop(client);
            if Instant::now() > deadline {
                return None;
            }
            thread::sleep(PAUSE);
        }
    }

    /// Whether the client has that address.
    pub(super) fn serves(&self, from: IpAddr) -> bool {
        *self.client() == Some(from)
    }

    fn client(&self) -> MutexGuard<'_, Option<IpAddr>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The client's place, free again when it goes.
#[derive(Debug)]
pub(super) struct Admitted<'a>(&'a Place);

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        *self.0.client() = None;
    }
}

/// The connections with a thread of their own: each costs memory, and strangers may open as many as they like.
#[derive(Debug, Default)]
pub(super) struct Connections(Arc<AtomicUsize>);

impl Connections {
    /// Counts one more, until what it returns goes; nothing if there are too many.
    pub(super) fn take(&self) -> Option<Taken> {
        let more = |number| (number < MOST_CONNECTIONS).then_some(number + 1);
        let taken = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.ok().map(|_| Taken(Arc::clone(&self.0)))
    }
}

/// One of the connections.
#[derive(Debug)]
pub(super) struct Taken(Arc<AtomicUsize>);

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Reads until a moment that does not move: a timeout of the socket begins again with each byte.
#[derive(Debug)]
pub(super) struct Until<'a> {
    pub(super) stream: &'a TcpStream,
    pub(super) deadline: Instant,
}

impl Read for Until<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        let mut stream = self.stream;
        stream.read(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_bounded_and_their_end_makes_room() {
        let connections = Connections::default();
        let mut all: Vec<_> = (0..MOST_CONNECTIONS)
            .map(|_| connections.take().unwrap())
            .collect();
        assert!(connections.take().is_none());
        all.pop();
        assert!(connections.take().is_some());
    }

    #[test]
    fn the_place_is_free_again_when_the_client_goes() {
        let place = Place::default();
        let address = IpAddr::from([10, 5, 2, 2]);
        let admitted = place.admit(address);
        assert!(admitted.is_some() && place.serves(address));
        drop(admitted);
        assert!(!place.serves(address));
    }
}
