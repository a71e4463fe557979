//! The CPU time of a whole node, from `/proc/stat`: what sockets, the kernel's network code, BPF programs and interrupts
//! take, whoever is charged with it. In containers too, that file shows the node.

use std::{fs, io};

const FILE: &str = "/proc/stat";
const NANOSECONDS: u64 = 1_000_000_000;

/// Why it is not known.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such file, or no right to it.
    #[error("{FILE}: {0}: the CPU time of the node cannot be known; mount /proc")]
    Read(#[from] io::Error),
    /// No line that is understood.
    #[error("{FILE}: no line `cpu` with seven numbers: the CPU time of the node cannot be known")]
    Format,
}

/// CPU time that this node has spent since it was booted, in nanoseconds, all CPUs together: in user mode, in the kernel
/// and in hardware and software interrupts. It grows by ticks of 10 ms on most machines.
///
/// # Errors
/// If the file is not there or not understood.
pub fn busy() -> Result<u64, Error> {
    let ticks = busy_ticks(&fs::read_to_string(FILE)?).ok_or(Error::Format)?;
    Ok(ticks * (NANOSECONDS / rustix::param::clock_ticks_per_second().max(1)))
}

/// How many CPUs of the node are online, whichever of them this process may use.
///
/// # Errors
/// If the file is not there.
pub fn number() -> Result<usize, Error> {
    Ok(lines_of_cpus(&fs::read_to_string(FILE)?))
}

fn lines_of_cpus(stat: &str) -> usize {
    let numbers = stat.lines().filter_map(|line| line.strip_prefix("cpu"));
    numbers
        .filter(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
        .count()
}

/// All but idle, waiting for disks, and stolen by other machines. Guests' time is part of user mode's.
fn busy_ticks(stat: &str) -> Option<u64> {
    let numbers = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let numbers: Vec<u64> = numbers
        .split_ascii_whitespace()
        .map_while(|word| word.parse().ok())
        .collect();
    let [user, nice, system, _idle, _iowait, irq, softirq, ..] = numbers[..] else {
        return None;
    };
    Some(user + nice + system + irq + softirq)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_spent_on_something_counts() {
        let stat = "cpu  1 20 300 99999 77777 4000 50000 66666 1 0\ncpu0 9 9 9 9 9 9 9 9 9 9\n";
        assert_eq!(busy_ticks(stat), Some(54_321));
        assert_eq!(busy_ticks("cpu  1 2 3 4"), None);
        assert_eq!(busy_ticks("intr 1 2 3 4 5 6 7"), None);
    }

    #[test]
    fn each_cpu_has_a_line() {
        let stat = "cpu  1 2 3\ncpu0 1 2 3\ncpu11 1 2 3\nintr 1 2\n";
        assert_eq!(lines_of_cpus(stat), 2);
    }

    #[test]
    fn this_node_has_spent_something() {
        let before = busy().unwrap();
        assert!(before > 0);
        assert!(busy().unwrap() >= before);
    }
}
