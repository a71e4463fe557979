//! Lines of styled text. Only the terminal's own basic colours are used, so that they suit dark and light ones.

use std::fmt::Write;

/// How a piece of text looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    Plain,
    Bold,
    Dim,
    Good,
    Bad,
}

impl Style {
    /// Select Graphic Rendition parameters (ECMA-48 section 8.3.117).
    fn sgr(self) -> &'static str {
        match self {
            Self::Plain => "0",
            Self::Bold => "1",
            Self::Dim => "2",
            Self::Good => "32",
            Self::Bad => "1;31",
        }
    }
}

/// A line, made of pieces. One character is one column: the demo prints nothing else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Line(Vec<(Style, String)>);

impl Line {
    /// A line of one piece.
    pub(super) fn of(style: Style, text: impl Into<String>) -> Self {
        Self(vec![(style, text.into())])
    }

    /// Appends a piece.
    pub(super) fn push(&mut self, style: Style, text: impl Into<String>) {
        self.0.push((style, text.into()));
    }

    /// Appends another line's pieces.
    pub(super) fn append(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Columns that the line takes.
    pub(super) fn width(&self) -> usize {
        self.0.iter().map(|(_, text)| text.chars().count()).sum()
    }

    /// Fills up with spaces to a column.
    pub(super) fn pad(&mut self, column: usize) {
        let missing = column.saturating_sub(self.width());
        self.push(Style::Plain, " ".repeat(missing));
    }

    /// The text alone.
    pub(super) fn plain(&self) -> String {
        let text: String = self.0.iter().map(|(_, text)| text.as_str()).collect();
        text.trim_end().to_owned()
    }

    /// The text with control sequences, cut at `width` columns.
    pub(super) fn ansi(&self, width: usize) -> String {
        let mut left = width;
        let mut output = String::new();
        for (style, text) in &self.0 {
            let cut: String = text.chars().take(left).collect();
            left -= cut.chars().count();
            if !cut.is_empty() {
                write!(output, "\x1b[{}m{cut}\x1b[0m", style.sgr())
                    .expect("a string takes all text");
            }
        }
        output
    }
}

/// A number with its digits in groups of three.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut output = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            output.push(',');
        }
        output.push(digit);
    }
    output
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_grouped() {
        assert_eq!(
            [0, 12, 123, 1234, 1_234_567].map(grouped),
            ["0", "12", "123", "1,234", "1,234,567"]
        );
    }

    #[test]
    fn lines_are_cut_by_columns_not_by_bytes() {
        let mut line = Line::of(Style::Good, "ok");
        line.pad(4);
        line.push(Style::Plain, "und so wéiter");
        assert_eq!(line.plain(), "ok  und so wéiter");
        assert_eq!(line.width(), 17);
        assert_eq!(
            line.ansi(7),
            "\x1b[32mok\x1b[0m\x1b[0m  \x1b[0m\x1b[0mund\x1b[0m"
        );
        assert_eq!(line.ansi(0), "");
    }
}
