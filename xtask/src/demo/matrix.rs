//! A table of round-trip times, from row to column.

use std::time::Duration;

use crate::demo::{
    screen::Size,
    style::{Line, Style},
};

/// A square table.
pub(super) struct Matrix {
    pub(super) names: Vec<String>,
    pub(super) cells: Vec<Vec<Cell>>,
}

/// What is known of a pair.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Cell {
    /// A pod and itself.
    Same,
    /// All answer, the slowest after this time.
    Answer(Duration),
    /// So many do not answer.
    Fail(usize),
}

impl Cell {
    /// Sums up the answers of one pair or of several.
    pub(super) fn of(times: &[Option<Duration>]) -> Self {
        match times.iter().filter(|time| time.is_none()).count() {
            0 => Self::Answer(times.iter().flatten().max().copied().unwrap_or_default()),
            failed => Self::Fail(failed),
        }
    }

    fn text(self) -> (Style, String) {
        match self {
            Self::Same => (Style::Dim, "-".to_owned()),
            Self::Answer(time) => (Style::Good, milliseconds(time)),
            Self::Fail(1) => (Style::Bad, "fail".to_owned()),
            Self::Fail(pairs) => (Style::Bad, format!("{pairs} fail")),
        }
    }
}

impl Matrix {
    /// Columns of a cell, with the space before it.
    fn cell_width(&self) -> usize {
        /// Room for `12.34` and for `12 fail`.
        const CELL: usize = 8;
        self.names
            .iter()
            .map(String::len)
            .max()
            .unwrap_or(0)
            .max(CELL - 1)
            + 1
    }

    /// The room that the table takes.
    pub(super) fn size(&self) -> Size {
        Size {
            columns: self.label_width("PING ms") + self.names.len() * self.cell_width(),
            rows: self.names.len() + 1,
        }
    }

    fn label_width(&self, title: &str) -> usize {
        self.names
            .iter()
            .map(String::len)
            .max()
            .unwrap_or(0)
            .max(title.len())
    }

    /// The table, with a title in the corner.
    pub(super) fn lines(&self, title: &str) -> Vec<Line> {
        let (label, width) = (self.label_width(title), self.cell_width());
        let heads: String = self
            .names
            .iter()
            .map(|name| format!("{name:>width$}"))
            .collect();
        let mut lines = vec![Line::of(Style::Bold, format!("{title:<label$}{heads}"))];
        lines.extend(self.names.iter().zip(&self.cells).map(|(name, cells)| {
            let mut line = Line::of(Style::Plain, format!("{name:<label$}"));
            for (style, text) in cells.iter().map(|cell| cell.text()) {
                line.push(style, format!("{text:>width$}"));
            }
            line
        }));
        lines
    }
}

/// At most five characters for anything under 100 s.
fn milliseconds(time: Duration) -> String {
    match time.as_secs_f64() * 1e3 {
        ms if ms < 9.9995 => format!("{ms:.3}"),
        ms if ms < 99.995 => format!("{ms:.2}"),
        ms => format!("{ms:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_answers_fit_their_cell() {
        let times = [0.0001, 0.012_345, 0.099_99, 0.5, 1.5]
            .map(|s| milliseconds(Duration::from_secs_f64(s)));
        assert_eq!(times, ["0.100", "12.35", "99.99", "500", "1500"]);
    }
}
