//! A virtual machine: QEMU, which emulates one processor in software, so that it works wherever this does and has no
//! races of its own to add.

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};

use super::{
    Programs,
    image::{self, Extent},
    kernels::Kernel,
    results::Results,
};
use crate::command;

/// A machine of which nothing is heard for so long hangs.
const BOOT_LIMIT: Duration = Duration::from_secs(120);

/// A machine that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(20 * 60);

/// How often one that hangs while it boots is started.
const TRIES: u32 = 2;

/// Its memory: the tests' etcd keeps its data there.
const MEMORY: &str = "1536";

/// Lines of the kernel's own messages that no kernel prints whose data structures are sound.
const FAULTS: [&str; 5] = [
    "cut here",
    "Oops",
    "BUG: unable to handle",
    "general protection fault",
    "Kernel panic",
];

/// Messages of the kernel that are shown when it never came up.
const LAST_MESSAGES: usize = 15;

/// Boots a kernel and runs the tests there. `say` is told what happens; `folder` keeps what kernel and tests print.
pub fn run(
    kernel: &Kernel,
    programs: &Programs,
    extent: Extent,
    folder: &Path,
    say: &(dyn Fn(&str) + Sync),
) -> Result<Results> {
    // What an earlier run has left is of no use.
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let initramfs = image::make(kernel, programs, extent, folder)?;
    let console = folder.join("console");
    let output = folder.join("output");
    let mut output =
        File::create(&output).with_context(|| format!("cannot make {}", output.display()))?;
    for number in 1..=TRIES {
        let mut results = Results::default();
        let status = command::lines_within(
            &mut machine(kernel, &initramfs, &console),
            BOOT_LIMIT,
            LIMIT,
            |line| {
                // For people who want to see more than what is told; what counts is in the results.
                let _ = writeln!(output, "{line}");
                if let Some(news) = results.line(line) {
                    say(&news);
                }
            },
        )?;
        let messages = fs::read(&console).unwrap_or_default();
        let messages = String::from_utf8_lossy(&messages);
        if results.is_booted() {
            results.end(faults(&messages));
            return Ok(results);
        }
        if number < TRIES {
            say(&format!("did not come up ({status}): once more"));
        } else {
            let lines: Vec<_> = messages.lines().collect();
            let last = lines[lines.len().saturating_sub(LAST_MESSAGES)..].join("\n");
            results.fail(format!("the kernel did not come up ({status}):\n{last}"));
            return Ok(results);
        }
    }
    unreachable!("the last try returns")
}

/// QEMU with the kernel's messages in a file and the script's output as its own.
fn machine(kernel: &Kernel, initramfs: &Path, console: &Path) -> Command {
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-nodefaults", "-no-user-config", "-display", "none"])
        .args(["-machine", "pc,accel=tcg", "-cpu", "max", "-smp", "1"])
        .args(["-m", MEMORY, "-no-reboot"])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(initramfs)
        // What is wrong with the kernel ends the machine.
        .args([
            "-append",
            "console=ttyS0 loglevel=4 oops=panic panic=-1 random.trust_cpu=on",
        ])
        .arg("-serial")
        .arg(format!("file:{}", console.display()))
        .args(["-serial", "stdio", "-fsdev"])
        .arg("local,id=root,path=/,security_model=none,readonly=on,multidevs=remap")
        .arg("-device")
        .arg(format!(
            "virtio-9p-pci,fsdev=root,mount_tag={}",
            image::ROOT_TAG
        ));
    qemu
}

/// What the kernel has said that it must not.
fn faults(messages: &str) -> Vec<String> {
    messages
        .lines()
        .filter(|line| FAULTS.iter().any(|fault| line.contains(fault)))
        .map(|line| format!("kernel message: {}", line.trim()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_told_from_what_a_slow_machine_says() {
        let messages = "[ 1.0] Linux version 6.1\n[ 2.0] hrtimer: interrupt took 3 ns\n\
            [ 3.0] ------------[ cut here ]------------\r\n[ 3.1] WARNING: CPU: 0 PID: 1 at net/core/dev.c:1\n\
            [ 9.0] watchdog: BUG: soft lockup - CPU#0 stuck for 22s!\n";
        assert_eq!(
            faults(messages),
            ["kernel message: [ 3.0] ------------[ cut here ]------------"]
        );
    }
}
