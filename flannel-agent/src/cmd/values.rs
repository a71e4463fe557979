//! Values of options: from text, as Go reads them where flanneld has the option.

use std::{ops::RangeInclusive, path::PathBuf, time::Duration};

/// Longest time that an option of the fast path may name: the BPF programs compare times, and flows that are never
/// revalidated are not what anybody wants.
const LONGEST: Duration = Duration::from_secs(60);

/// A time such as `500ms` or `2s`.
///
/// # Errors
/// Says what it must be.
pub fn duration(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text)
        .map_err(|error| format!("{error}; give a time such as 500ms or 2s"))?;
    if time.is_zero() || time > LONGEST {
        return Err(format!(
            "must be more than 0s and at most {}s",
            LONGEST.as_secs()
        ));
    }
    Ok(time)
}

/// Shortest and longest heartbeat. The agent shows a sign of life several times within it, each of which costs a look at
/// the whole node; and what the maps say must not be believed for ever.
const HEARTBEATS: RangeInclusive<Duration> = Duration::from_secs(2)..=Duration::from_secs(86_400);

/// A heartbeat such as `10min`.
///
/// # Errors
/// Says what it must be.
pub fn heartbeat(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text)
        .map_err(|error| format!("{error}; give a time such as 30s or 10min"))?;
    if !HEARTBEATS.contains(&time) {
        return Err(format!(
            "must be at least {}s and at most {}h",
            HEARTBEATS.start().as_secs(),
            HEARTBEATS.end().as_secs() / 3600
        ));
    }
    Ok(time)
}

/// A folder for pins, which manifests may have mounted elsewhere.
///
/// # Errors
/// None.
pub fn pin_dir(text: &str) -> Result<PathBuf, std::convert::Infallible> {
    let Ok(given) = path(text);
    Ok(crate::host::path(&given))
}

/// One bit, such as `0x40`.
///
/// # Errors
/// Says what it must be.
pub fn mark_bit(text: &str) -> Result<u32, String> {
    let value = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    value
        .ok()
        .filter(|bit| bit.is_power_of_two())
        .ok_or_else(|| "must be a number with a single bit set, such as 0x40".into())
}

/// An option that, as flanneld's, is absent when empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Optional<T>(pub Option<T>);

/// [`Optional`] from its text.
///
/// # Errors
/// Those of `T`.
pub fn optional<T: std::str::FromStr>(text: &str) -> Result<Optional<T>, String>
where
    T::Err: std::fmt::Display,
{
    if text.is_empty() {
        return Ok(Optional(None));
    }
    text.parse()
        .map(|value| Optional(Some(value)))
        .map_err(|error: T::Err| error.to_string())
}

/// A path; clap's own parser refuses the empty one, which means absent.
///
/// # Errors
/// None.
pub fn path(text: &str) -> Result<PathBuf, std::convert::Infallible> {
    Ok(PathBuf::from(text))
}

/// A value that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}

impl std::str::FromStr for Secret {
    type Err = std::convert::Infallible;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

/// What Go's `strconv.ParseInt` accepts for a flag: a sign, a prefix for the base (`0x`, `0o`, `0b`, or `0` for octal),
/// and underscores between digits where there is such a prefix.
///
/// # Errors
/// Says what it must be.
pub fn go_int(text: &str) -> Result<i64, String> {
    let wrong = || "must be a whole number".to_owned();
    let (negative, digits) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let lower = digits.to_ascii_lowercase();
    let (base, digits) = match lower.as_bytes() {
        [b'0', b'x', ..] => (16, &lower[2..]),
        [b'0', b'o', ..] => (8, &lower[2..]),
        [b'0', b'b', ..] => (2, &lower[2..]),
        [b'0', _, ..] => (8, &lower[1..]),
        _ => (10, &lower[..]),
    };
    let prefixed = base != 10;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || (prefixed && byte == b'_');
    if digits.ends_with('_') || digits.contains("__") || !digits.bytes().all(allowed) {
        return Err(wrong());
    }
    let value = i64::from_str_radix(&digits.replace('_', ""), base).map_err(|_| wrong())?;
    Ok(if negative { -value } else { value })
}

/// A number that lies in `range`.
fn bounded(text: &str, range: RangeInclusive<u64>) -> Result<u64, String> {
    let value = u64::try_from(go_int(text)?).ok();
    value
        .filter(|value| range.contains(value))
        .ok_or_else(|| format!("must be {} to {}", range.start(), range.end()))
}

/// Upstream's bounds: less than the 24 hours that a lease lasts.
///
/// # Errors
/// Says what it must be.
pub fn renew_margin(text: &str) -> Result<u64, String> {
    bounded(text, 1..=1439)
}

/// An interval in seconds; zero would be a loop without a pause.
///
/// # Errors
/// When it is no such number.
pub fn resync(text: &str) -> Result<u64, String> {
    bounded(text, 1..=86_400)
}

/// A port; zero for none.
///
/// # Errors
/// When it is no such number.
pub fn port(text: &str) -> Result<u16, String> {
    let value = bounded(text, 0..=u64::from(u16::MAX))?;
    u16::try_from(value).map_err(|error| error.to_string())
}

/// What Go's `strconv.ParseBool` accepts.
///
/// # Errors
/// Says what it must be.
pub fn go_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("must be true or false".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_are_gos() {
        for (text, value) in [
            ("0", Some(0)),
            ("+7", Some(7)),
            ("-7", Some(-7)),
            ("0x1F", Some(31)),
            ("0b11", Some(3)),
            ("0o17", Some(15)),
            ("017", Some(15)),
            ("0x_f", Some(15)),
            ("1_000", None),
            ("0x1__0", None),
            ("0x", None),
            ("09", None),
            ("--7", None),
            ("0x-7", None),
            ("7s", None),
            ("", None),
            ("9223372036854775808", None),
        ] {
            assert_eq!(go_int(text).ok(), value, "{text:?}");
        }
    }
}
