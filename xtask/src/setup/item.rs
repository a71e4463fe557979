//! A line of the set-up table, and the table.

use serde::Serialize;

/// Whether something is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Here, and good enough.
    Present,
    /// Not here, and something does not work without it.
    Missing,
    /// Not here, and something works less well without it.
    Degraded,
    /// Only root can tell.
    Unknown,
}

/// Something that xtask needs or that the kernel should offer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Item {
    /// What it is.
    pub item: &'static str,
    /// The version or feature that is needed.
    pub needed: String,
    /// What there is; `-` for nothing.
    pub found: String,
    /// Where it comes from, or would come from.
    pub source: String,
    /// Whether that will do.
    pub state: State,
    /// What does not work without it.
    pub consequence: String,
}

/// The table, and below it the consequence of each thing that is not there.
pub fn table(items: &[Item]) -> String {
    const HEAD: [&str; 4] = ["ITEM", "NEEDED", "FOUND", "SOURCE"];
    let rows: Vec<[&str; 4]> = std::iter::once(HEAD)
        .chain(
            items
                .iter()
                .map(|item| [item.item, &item.needed, &item.found, &item.source]),
        )
        .collect();
    let mut widths = [0; 4];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in &rows {
        let line: String = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}  "))
            .collect();
        text += line.trim_end();
        text.push('\n');
    }
    for item in items {
        let state = match item.state {
            State::Present => continue,
            State::Missing => "missing",
            State::Degraded => "not available",
            State::Unknown => "unknown",
        };
        text += &format!("{}: {state}: {}\n", item.item, item.consequence);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_only_absent_items_have_consequences() {
        let item = |item, found: &str, state| Item {
            item,
            needed: "any version".into(),
            found: found.into(),
            source: "Debian package x".into(),
            state,
            consequence: format!("no {item}"),
        };
        let text = table(&[
            item("etcd", "3.4.23", State::Present),
            item("protoc", "-", State::Missing),
        ]);
        assert_eq!(
            text,
            "ITEM    NEEDED       FOUND   SOURCE\n\
             etcd    any version  3.4.23  Debian package x\n\
             protoc  any version  -       Debian package x\n\
             protoc: missing: no protoc\n"
        );
    }
}
