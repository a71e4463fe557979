//! CPU cost of one thread and those that it starts, the kernel's work in their context included, by `perf_event_open`.
//!
//! The generator's packets are carried by the system call of the thread that runs it and by the software interrupts
//! that follow it in the same context. What the kernel puts off to the CPU's `ksoftirqd` is counted too, and told
//! apart.

use std::{
    fs, io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use lab::{Error, Result, daemon::STARTER, error::IoContext};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    mount::{self, FsMountFlags, FsOpenFlags, MountAttrFlags},
};
use serde::Serialize;

/// What cost is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// Hardware cycles.
    Cycles,
    /// Time on the CPU, where the machine shows no hardware counters.
    Nanoseconds,
}

/// What was spent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Cycles or nanoseconds, those of `ksoftirqd` included.
    pub cost: u64,
    /// Cycles or nanoseconds of `ksoftirqd` alone.
    pub deferred: u64,
    /// Instructions, where the machine counts them.
    pub instructions: Option<u64>,
}

/// `PERF_TYPE_HARDWARE`, `PERF_TYPE_SOFTWARE`, `PERF_TYPE_TRACEPOINT` and events of theirs (include/uapi/linux/perf_event.h).
const HARDWARE: u32 = 0;
const SOFTWARE: u32 = 1;
const TRACEPOINT: u32 = 2;
const CPU_CYCLES: u64 = 0;
const INSTRUCTIONS: u64 = 1;
const TASK_CLOCK: u64 = 1;

/// `PERF_FLAG_FD_CLOEXEC`.
const CLOSE_ON_EXEC: u64 = 1 << 3;

/// `struct perf_event_attr` as of its first version, `PERF_ATTR_SIZE_VER0`, which all kernels take.
#[derive(Default)]
#[repr(C)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    breakpoint_type: u32,
    breakpoint_address: u64,
}

const _: () = assert!(size_of::<Attributes>() == 64);

/// Bit of [`Attributes::flags`]: threads count too that the counted one starts from now on.
const INHERIT: u64 = 1 << 1;

/// Counts one event of one thread and of the threads and processes that it starts, from its opening on.
pub struct Counter(OwnedFd);

impl Counter {
    /// Counts nanoseconds on the CPU.
    ///
    /// # Errors
    /// If the kernel has no performance events, or does not permit them.
    pub fn cpu_time(thread: i32) -> Result<Self> {
        let thread_named = format_args!("thread {thread}");
        Self::open(SOFTWARE, TASK_CLOCK, thread).context("count CPU time of", thread_named)
    }

    /// Counts system calls; none where the kernel has no tracepoint for them.
    pub fn system_calls(thread: i32) -> Option<Self> {
        Self::open(TRACEPOINT, system_call_event().ok()?, thread).ok()
    }

    /// Thread 0 is the caller.
    fn open(kind: u32, event: u64, thread: i32) -> rustix::io::Result<Self> {
        let attributes = Attributes {
            kind,
            size: size_of::<Attributes>() as u32,
            config: event,
            flags: INHERIT,
            ..Attributes::default()
        };
        const ANY_CPU: i32 = -1;
        const NO_GROUP: i32 = -1;
        // SAFETY: the kernel reads `attributes`, of the size it states, during the call.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_perf_event_open,
                &raw const attributes,
                thread,
                ANY_CPU,
                NO_GROUP,
                CLOSE_ON_EXEC,
            )
        };
        match i32::try_from(fd) {
            // SAFETY: the call has just made the descriptor, and nobody else knows it.
            Ok(fd) if fd >= 0 => Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) })),
            _ => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)),
        }
    }

    /// How many there were until now.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn read(&self) -> Result<u64> {
        let mut bytes = [0; size_of::<u64>()];
        let read = rustix::io::read(&self.0, &mut bytes).context(
            "read",
            format_args!("performance counter {}", self.0.as_raw_fd()),
        )?;
        if read != bytes.len() {
            // A pinned counter that lost its place reads as end of file; these are not pinned.
            return Err(Error::Unsupported(
                "a performance counter has no value".to_owned(),
            ));
        }
        Ok(u64::from_ne_bytes(bytes))
    }
}

/// An event of the metered thread, and the same of `ksoftirqd`.
struct Pair {
    own: Counter,
    deferred: Counter,
}

impl Pair {
    fn open(kind: u32, event: u64, ksoftirqd: i32) -> rustix::io::Result<Self> {
        Ok(Self {
            own: Counter::open(kind, event, 0)?,
            deferred: Counter::open(kind, event, ksoftirqd)?,
        })
    }
}

/// Counts what the thread that opened it spends, and those that it starts.
pub struct Meter {
    unit: Unit,
    cost: Pair,
    instructions: Option<Pair>,
}

impl Meter {
    /// Starts to count for the calling thread, which is pinned to `cpu`.
    ///
    /// # Errors
    /// If the kernel has no performance events, does not permit them, or does not show `ksoftirqd`.
    pub fn open(cpu: usize) -> Result<Self> {
        let ksoftirqd = ksoftirqd(cpu)?;
        let hardware = Pair::open(HARDWARE, CPU_CYCLES, ksoftirqd)
            .and_then(|cycles| Ok((cycles, Pair::open(HARDWARE, INSTRUCTIONS, ksoftirqd)?)));
        if let Ok((cost, instructions)) = hardware {
            return Ok(Self {
                unit: Unit::Cycles,
                cost,
                instructions: Some(instructions),
            });
        }
        // Not CLOCK_THREAD_CPUTIME_ID: with CONFIG_IRQ_TIME_ACCOUNTING that leaves out software interrupts.
        let cost = Pair::open(SOFTWARE, TASK_CLOCK, ksoftirqd)
            .context("count CPU time of", "this thread and ksoftirqd")?;
        Ok(Self {
            unit: Unit::Nanoseconds,
            cost,
            instructions: None,
        })
    }

    /// What cost is counted in.
    pub fn unit(&self) -> Unit {
        self.unit
    }

    /// Runs `work` and returns what it cost.
    ///
    /// # Errors
    /// If the counters cannot be read.
    pub fn measure<T>(&self, work: impl FnOnce() -> T) -> Result<(T, Spent)> {
        let before = self.read()?;
        let result = work();
        let after = self.read()?;
        let instructions = after.instructions.zip(before.instructions);
        Ok((
            result,
            Spent {
                cost: after.cost - before.cost,
                deferred: after.deferred - before.deferred,
                instructions: instructions.map(|(after, before)| after - before),
            },
        ))
    }

    fn read(&self) -> Result<Spent> {
        let deferred = self.cost.deferred.read()?;
        let instructions = match &self.instructions {
            Some(pair) => Some(pair.own.read()? + pair.deferred.read()?),
            None => None,
        };
        Ok(Spent {
            cost: self.cost.own.read()? + deferred,
            deferred,
            instructions,
        })
    }
}

/// The number of the tracepoint at the entry of every system call. Tracing's file system is mounted nowhere that anybody
/// sees, in case nobody has mounted it.
fn system_call_event() -> rustix::io::Result<u64> {
    let context = mount::fsopen("tracefs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    mount::fsconfig_create(&context)?;
    let tracing = mount::fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?;
    let path = "events/raw_syscalls/sys_enter/id";
    let file = rustix::fs::openat(
        &tracing,
        path,
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let text = io::read_to_string(fs::File::from(file)).map_err(|_| Errno::IO)?;
    text.trim().parse().map_err(|_| Errno::INVAL)
}

/// The thread that starts the lab's daemons: there once one was started.
///
/// # Errors
/// If none was.
pub fn daemon_starter() -> Result<i32> {
    const THREADS: &str = "/proc/self/task";
    thread_named(THREADS, STARTER)?
        .ok_or_else(|| Error::Unsupported(format!("{THREADS} shows no {STARTER}")))
}

/// The thread or process of that name among those that a directory shows.
fn thread_named(directory: &str, name: &str) -> Result<Option<i32>> {
    let mut entries = fs::read_dir(directory)
        .context("read", directory)?
        .flatten();
    Ok(entries.find_map(|entry| {
        let comm = fs::read_to_string(entry.path().join("comm")).ok()?;
        let id = entry.file_name().to_str()?.parse().ok()?;
        (comm.trim_end() == name).then_some(id)
    }))
}

/// The thread that carries what software interrupts of a CPU put off.
fn ksoftirqd(cpu: usize) -> Result<i32> {
    let name = format!("ksoftirqd/{cpu}");
    thread_named("/proc", &name)?.ok_or_else(|| {
        Error::Unsupported(format!(
            "/proc shows no {name}: run the benchmark in the machine's first process namespace"
        ))
    })
}

#[cfg(test)]
mod tests {
    use std::{hint, time::Duration};

    use super::*;

    #[test]
    fn system_calls_are_counted() {
        const CALLS: u64 = 1_000;
        let Some(counter) = Counter::system_calls(0) else {
            println!("skipped: this kernel does not count system calls, or not for this user");
            return;
        };
        let before = counter.read().unwrap();
        for _ in 0..CALLS {
            let _ = rustix::process::getppid();
        }
        let counted = counter.read().unwrap() - before;
        assert!((CALLS..2 * CALLS).contains(&counted), "{counted}");
    }

    #[test]
    fn sleep_costs_nothing_and_work_costs() {
        let (Ok(own), work) = (
            Counter::open(SOFTWARE, TASK_CLOCK, 0),
            Duration::from_millis(20),
        ) else {
            println!("skipped: performance events are not permitted here");
            return;
        };
        let start = own.read().unwrap();
        std::thread::sleep(work);
        let slept = own.read().unwrap();
        let begin = std::time::Instant::now();
        while begin.elapsed() < work {
            hint::spin_loop();
        }
        let worked = own.read().unwrap();
        assert!(slept - start < work.as_nanos() as u64 / 2);
        assert!(worked - slept > slept - start);
    }
}
