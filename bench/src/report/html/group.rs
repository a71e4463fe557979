//! Which figures belong in one chart, told by their names and settings.

use crate::report::{Row, Table};

/// Figures that are percentiles of the same times.
#[derive(Debug, PartialEq)]
pub struct Percentiles {
    /// The figures' common name.
    pub name: String,
    /// In hundredths, with the figure's own name, in rising order; two at least.
    pub figures: Vec<(f64, String)>,
}

/// Figures that differ by one number.
#[derive(Debug, PartialEq)]
pub struct Counted {
    /// What the number counts, such as `flows`.
    pub what: &'static str,
    /// The figures' common name, with N for the number.
    pub name: String,
    /// The number with the figure's own name, in rising order; two at least.
    pub figures: Vec<(f64, String)>,
}

/// What figures' names count, singular and plural.
const COUNTED: [(&str, &str); 2] = [("flow", "flows"), ("node", "nodes")];

/// The names of a table's figures in their order.
pub fn figures(table: &Table, wanted: impl Fn(&Row) -> bool) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for row in table.rows.iter().filter(|row| wanted(row)) {
        if !names.contains(&row.figure.as_str()) {
            names.push(&row.figure);
        }
    }
    names
}

/// `TCP, 1 flow, p99` is the 99th percentile of `TCP, 1 flow`.
pub fn percentile(figure: &str) -> Option<(&str, f64)> {
    let (name, percent) = figure.rsplit_once(", p")?;
    let percent: f64 = percent.parse().ok()?;
    (percent > 0.0 && percent < 100.0).then_some((name, percent))
}

/// Of the figures, those that are percentiles of the same times.
pub fn percentiles(figures: &[&str]) -> Vec<Percentiles> {
    let mut groups: Vec<Percentiles> = Vec::new();
    for figure in figures {
        let Some((name, percent)) = percentile(figure) else {
            continue;
        };
        let member = (percent, (*figure).to_owned());
        match groups.iter_mut().find(|group| group.name == name) {
            Some(group) => group.figures.push(member),
            None => groups.push(Percentiles {
                name: name.to_owned(),
                figures: vec![member],
            }),
        }
    }
    groups.retain(|group| group.figures.len() > 1);
    for group in &mut groups {
        group.figures.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    groups
}

/// Of the figures, those that differ by a number of flows or nodes only.
pub fn counted(figures: &[&str]) -> Vec<Counted> {
    let mut groups: Vec<Counted> = Vec::new();
    for figure in figures {
        let Some((what, name, count)) = count(figure) else {
            continue;
        };
        let member = (count, (*figure).to_owned());
        match groups.iter_mut().find(|group| group.name == name) {
            Some(group) => group.figures.push(member),
            None => groups.push(Counted {
                what,
                name,
                figures: vec![member],
            }),
        }
    }
    groups.retain(|group| group.figures.len() > 1);
    for group in &mut groups {
        group.figures.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    groups
}

/// `UDP packet, 1 000 flows, 10/s` is `UDP packet, N flows, 10/s` of 1000. Thousands may be apart.
fn count(figure: &str) -> Option<(&'static str, String, f64)> {
    let words: Vec<&str> = figure.split(' ').collect();
    let (place, what) = words.iter().enumerate().find_map(|(place, word)| {
        let word = word.trim_end_matches(',');
        let mut known = COUNTED.into_iter();
        known.find_map(|(one, many)| (word == one || word == many).then_some((place, many)))
    })?;
    let is_digits = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    let mut start = place;
    while start > 0
        && is_digits(words[start - 1])
        && words[start..place].iter().all(|word| word.len() == 3)
    {
        start -= 1;
    }
    let count = words[start..place].concat().parse().ok()?;
    let comma = if words[place].ends_with(',') { "," } else { "" };
    let mut name: Vec<String> = words[..start]
        .iter()
        .map(|word| (*word).to_owned())
        .collect();
    name.push(format!("N {what}{comma}"));
    name.extend(words[place + 1..].iter().map(|word| (*word).to_owned()));
    Some((what, name.join(" "), count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_the_same_times_come_together() {
        let figures = [
            "TCP, p99",
            "TCP, p50",
            "TCP, p99.9",
            "UDP, p50",
            "packet",
            "a, path",
        ];
        let groups = percentiles(&figures);
        assert_eq!(groups.len(), 1, "one percentile is no curve: {groups:?}");
        assert_eq!(groups[0].name, "TCP");
        let percents: Vec<_> = groups[0].figures.iter().map(|figure| figure.0).collect();
        assert_eq!(percents, [50.0, 99.0, 99.9]);
        assert_eq!(groups[0].figures[0].1, "TCP, p50");
    }

    #[test]
    fn figures_that_differ_by_a_number_come_together() {
        let figures = [
            "UDP packet, 1 000 flows, 100/s",
            "UDP packet, 1 flow, 100/s",
            "UDP packet, 100 000 flows, 10/s",
            "UDP packet, 1 000 flows, 10/s",
            "packet to one node",
            "added by 5 000 nodes",
            "added by 100 000 nodes",
            "added by 5 000 nodes, by prefix",
            "1 stream, GSO",
        ];
        let groups = counted(&figures);
        let said: Vec<_> = groups
            .iter()
            .map(|group| {
                (
                    group.name.as_str(),
                    group.what,
                    group
                        .figures
                        .iter()
                        .map(|figure| figure.0)
                        .collect::<Vec<_>>(),
                )
            })
            .collect();
        assert_eq!(
            said,
            [
                ("UDP packet, N flows, 100/s", "flows", vec![1.0, 1_000.0]),
                (
                    "UDP packet, N flows, 10/s",
                    "flows",
                    vec![1_000.0, 100_000.0]
                ),
                ("added by N nodes", "nodes", vec![5_000.0, 100_000.0]),
            ]
        );
    }
}
