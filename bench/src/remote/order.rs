//! In which order a round measures. Both paths of one kind follow each other, so that they meet the same machine; which
//! comes first, and which kind, rotates, so that nothing always follows the same other thing.

use super::{load::Kind, proof::Path};

/// What a round measures, in its order.
pub fn of(round: usize, paths: &[Path]) -> Vec<(Kind, Path)> {
    let kinds = rotated(&Kind::ALL, round);
    kinds
        .flat_map(|kind| rotated(paths, round).map(move |path| (kind, path)))
        .collect()
}

fn rotated<T: Copy>(all: &[T], by: usize) -> impl Iterator<Item = T> {
    let number = all.len();
    (0..number).map(move |place| all[(place + by) % number])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const BOTH: [Path; 2] = [Path::Kernel, Path::Fast];

    #[test]
    fn each_round_has_each_once_and_pairs_stay_together() {
        for round in 0..12 {
            let order = of(round, &BOTH);
            let different: BTreeSet<_> = order.iter().collect();
            assert_eq!(
                (order.len(), different.len()),
                (2 * Kind::ALL.len(), order.len())
            );
            assert!(order.chunks(2).all(|pair| pair[0].0 == pair[1].0));
        }
    }

    #[test]
    fn each_path_and_each_kind_is_first_in_turn() {
        let firsts: Vec<_> = (0..Kind::ALL.len())
            .map(|round| of(round, &BOTH)[0])
            .collect();
        let paths: Vec<_> = firsts.iter().map(|(_, path)| *path).collect();
        assert_eq!(
            paths,
            [
                Path::Kernel,
                Path::Fast,
                Path::Kernel,
                Path::Fast,
                Path::Kernel
            ]
        );
        let kinds: BTreeSet<_> = firsts.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds.len(), Kind::ALL.len());
    }

    #[test]
    fn one_path_is_measured_once() {
        let order = of(3, &[Path::AsIs]);
        assert_eq!(order.len(), Kind::ALL.len());
    }
}
