//! What the running kernel makes of the programs: asked without an agent, and without a trace afterwards.
//!
//! The agent's own code loads and attaches, with maps of its own and in a network namespace of its own.

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use aya::Ebpf;
use flannel_common::outcome::Hook;
use rustix::process::getpid;
use serde::Serialize;

use super::facts::Facts;
use super::hooks::{self, Attach, Hooks};
use super::pin::{self, Pins};
use super::tier::{self, Attest, Egress, Ingress};
use super::{Error, object, sys, xdp};

/// The directory of the probe's pins is named after the process: an agent may be running.
const PIN_DIR: &str = "/sys/fs/bpf/flannel-probe-";

/// The interface that every network namespace has, by index and name.
const LOOPBACK: (u32, &str) = (1, "lo");

/// The tiers that an agent would run in, and what the verifier says of each program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The kernel's release.
    pub kernel: String,
    /// How programs are attached.
    pub attach: String,
    /// Who encapsulates.
    pub egress: String,
    /// Where packets from other nodes are taken up.
    pub ingress: String,
    /// Who attests flows.
    pub attestation: String,
    /// Every program that can be attached, in the order of the hooks.
    pub programs: Vec<Program>,
}

/// One program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Program {
    /// Its name.
    pub name: String,
    /// Instructions that the verifier has looked at, each as often as it did; kernel 5.16 and newer count them.
    pub verified: Option<u32>,
    /// Instructions that are left to run.
    pub instructions: Option<u32>,
    /// How long the kernel took to load it.
    pub load_us: u64,
}

/// Loads and attaches every program of the built-in object, or of another.
///
/// # Errors
/// What an agent would give as the reason not to use BPF.
pub fn run(object: Option<&Path>, attest: Attest) -> Result<Report, Error> {
    let bytes = match object {
        None => Cow::Borrowed(object::bytes().ok_or(Error::NoObject)?),
        Some(path) => Cow::Owned(fs::read(path).map_err(|source| Error::File {
            path: path.to_owned(),
            source,
        })?),
    };
    let facts = Facts::ask(attest);
    let mut bpf =
        object::load(&bytes, &facts, object::Room::default(), None).map_err(|source| {
            Error::Object {
                source: Box::new(source),
            }
        })?;
    let mut programs = Vec::new();
    for hook in Hook::ALL {
        programs.push(load(&mut bpf, hook)?);
    }
    let egress = match tier::egress(&mut bpf, Egress::Auto) {
        Egress::Assist => "assist",
        Egress::Auto | Egress::Encap => "encap",
    };
    let ingress = match Ingress::default() {
        Ingress::Nic => "nic",
        Ingress::Vtep => "vtep",
        Ingress::Xdp => "xdp",
    };
    // A thread that has changed its namespace is not used for anything else.
    let attach = thread::scope(|scope| scope.spawn(|| attach_all(&mut bpf)).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    Ok(Report {
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
            .unwrap_or_default()
            .trim()
            .into(),
        attach: attach.name().into(),
        egress: egress.into(),
        ingress: ingress.into(),
        attestation: facts.attest().name().into(),
        programs,
    })
}

fn load(bpf: &mut Ebpf, hook: Hook) -> Result<Program, Error> {
    /// Bytes of an instruction (`struct bpf_insn`).
    const INSTRUCTION: u32 = 8;
    let start = Instant::now();
    let info = match hook {
        Hook::NicXdp => xdp::program(bpf)?.info(),
        _ => hooks::program(bpf, hook.name())?.info(),
    };
    let load_us = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
    let info = info.ok();
    Ok(Program {
        name: hook.name().into(),
        verified: info
            .as_ref()
            .and_then(aya::programs::ProgramInfo::verified_instruction_count),
        instructions: info
            .and_then(|info| info.size_translated())
            .map(|bytes| bytes / INSTRUCTION),
        load_us,
    })
}

/// Attaches every program of traffic control in a new namespace, and detaches it. XDP is attached natively or not at
/// all, which is up to the driver of the node's interface.
fn attach_all(bpf: &mut Ebpf) -> Result<Attach, Error> {
    let (index, device) = LOOPBACK;
    sys::enter_new_network()
        .map_err(|source| Error::attach("any program", "a new namespace", &source))?;
    let directory = PathBuf::from(format!("{PIN_DIR}{}", getpid()));
    let pins = Pins::new(&directory);
    pins.create()?;
    let mut hooks = Hooks::adopt(pins, Attach::Tcx, bpf);
    let attached = Hook::TRAFFIC_CONTROL
        .into_iter()
        .try_for_each(|hook| hooks.attach_first(bpf, hook, index, device, true));
    let detached = hooks.detach_all();
    pin::remove(&directory)?;
    attached.and(detached)?;
    Ok(hooks.kind())
}
