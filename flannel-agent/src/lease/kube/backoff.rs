//! Pauses between attempts.

use std::time::Duration;

use tokio::time::sleep;

/// First pause after a failure.
const MIN: Duration = Duration::from_millis(200);
/// Longest pause that is not the server's wish.
const MAX: Duration = Duration::from_secs(30);
/// Longest pause that a server may wish for.
const WISH_MAX: Duration = Duration::from_secs(300);

/// A pause that doubles, with jitter: nodes that have lost the API server together must not come back together.
#[derive(Debug)]
pub struct Backoff(Duration);

impl Backoff {
    /// One that begins with the shortest pause.
    pub const fn new() -> Self {
        Self(MIN)
    }

    /// The next pause, at least as long as the server has asked for.
    pub fn next(&mut self, wish: Option<Duration>) -> Duration {
        let pause = self.0.mul_f64(rand::random_range(0.5..=1.0));
        self.0 = (self.0 * 2).min(MAX);
        pause.max(wish.unwrap_or_default().min(WISH_MAX))
    }

    /// Waits that long.
    pub async fn pause(&mut self, wish: Option<Duration>) {
        sleep(self.next(wish)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit() {
        let mut backoff = Backoff::new();
        let mut longest = MIN;
        for _ in 0..20 {
            let pause = backoff.next(None);
            assert!((longest / 2..=longest).contains(&pause), "{pause:?}");
            longest = (longest * 2).min(MAX);
        }
        assert_eq!(longest, MAX);
    }

    #[test]
    fn a_servers_wish_is_honoured_within_bounds() {
        let wish = |seconds| Backoff::new().next(Some(Duration::from_secs(seconds)));
        assert_eq!(wish(7), Duration::from_secs(7));
        assert_eq!(wish(86_400), WISH_MAX);
        assert!(wish(0) <= MIN);
    }
}
