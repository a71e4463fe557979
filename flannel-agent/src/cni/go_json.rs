//! JSON to the byte as Go's `json.Marshal` writes it, so that a delegate and the state files see no difference between
//! upstream's plugin and this one.
//!
//! Two things differ from what serde_json writes: `<`, `>`, `&`, U+2028 and U+2029 are escaped, and a number with a
//! fraction or an exponent is written as its 64-bit value is shortest (`1.0` is `1`, `1e3` is `1000`). Whole numbers
//! beyond 2^53 keep their digits here, where Go rounds them, and a fraction of 16 digits or more may come out rounded
//! otherwise; no config has either.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

/// From this size on, Go writes floating-point numbers with an exponent…
const LARGE: f64 = 1e21;
/// …and below this.
const SMALL: f64 = 1e-6;

/// The value's text.
///
/// # Panics
/// If a value is none of JSON's, such as a map with keys that are no strings.
pub fn to_vec(value: &impl Serialize) -> Vec<u8> {
    let mut text = Vec::new();
    value
        .serialize(&mut Serializer::with_formatter(&mut text, Go))
        .expect("a value of JSON, written to memory");
    text
}

/// What Go does otherwise.
struct Go;

impl Formatter for Go {
    fn write_f64<W: ?Sized + Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        if value == 0.0 || (SMALL..LARGE).contains(&value.abs()) {
            return write!(writer, "{value}");
        }
        let text = format!("{value:e}");
        match text.split_once('e') {
            Some((digits, exponent)) if !exponent.starts_with('-') => {
                write!(writer, "{digits}e+{exponent}")
            }
            _ => writer.write_all(text.as_bytes()),
        }
    }

    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut rest = fragment;
        let special = |c| matches!(c, '<' | '>' | '&' | '\u{2028}' | '\u{2029}');
        while let Some(position) = rest.find(special) {
            let (plain, tail) = rest.split_at(position);
            writer.write_all(plain.as_bytes())?;
            let mut characters = tail.chars();
            if let Some(c) = characters.next() {
                write!(writer, "\\u{:04x}", u32::from(c))?;
            }
            rest = characters.as_str();
        }
        writer.write_all(rest.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn text(value: &Value) -> String {
        String::from_utf8(to_vec(value)).unwrap()
    }

    #[test]
    fn numbers_are_as_go_writes_them() {
        for (input, output) in [
            ("1472", "1472"),
            ("-3", "-3"),
            ("1.0", "1"),
            ("1e3", "1000"),
            ("0.5", "0.5"),
            ("-0.0", "-0"),
            ("1e-6", "0.000001"),
            ("1e-7", "1e-7"),
            ("1.25e-9", "1.25e-9"),
            ("1e20", "100000000000000000000"),
            ("1e21", "1e+21"),
            ("-1.5e300", "-1.5e+300"),
        ] {
            let value: Value = serde_json::from_str(input).unwrap();
            assert_eq!(text(&value), output, "{input}");
        }
    }

    #[test]
    fn strings_are_safe_in_html() {
        let value = json!({ "<&>": "a\u{2028}b\u{2029}\"\\\n\u{1}ä" });
        assert_eq!(
            text(&value),
            r#"{"\u003c\u0026\u003e":"a\u2028b\u2029\"\\\n\u0001ä"}"#
        );
    }
}
