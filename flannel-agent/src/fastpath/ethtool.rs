//! Which offloads an interface has switched on, asked as `ethtool -k` does.

use std::io;

use super::sys;

/// Blocks of 32 features; more than any kernel has.
pub const BLOCKS: usize = 4;

/// The features that are in force, by number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(pub [u32; BLOCKS]);

impl Features {
    /// How many of them are no longer in force.
    pub fn lost(&self, now: &Self) -> u32 {
        let blocks = self.0.iter().zip(now.0);
        blocks
            .map(|(before, now)| (before & !now).count_ones())
            .sum()
    }
}

/// The features that are in force on an interface.
///
/// # Errors
/// What the kernel says.
pub fn features(device: &str) -> io::Result<Features> {
    sys::active_features(device).map(Features)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_gone_is_lost() {
        let before = Features([0b1011, 1, 0, 0]);
        assert_eq!(before.lost(&before), 0);
        assert_eq!(before.lost(&Features([0b1111, 1, 0, 1])), 0);
        assert_eq!(before.lost(&Features([0b0100, 0, 0, 0])), 4);
    }

    #[test]
    fn every_interface_has_features() {
        assert!(features("lo").is_ok_and(|features| features.0 != [0; BLOCKS]));
        assert!(features("no-such-device").is_err());
    }
}
