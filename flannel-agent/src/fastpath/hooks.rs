//! Attached programs of traffic control. One place owns every link: it is pinned when it is made, and what is pinned is
//! what is attached.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use aya::Ebpf;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{
    NlOptions, TcAttachOptions, TcError, qdisc_add_clsact, qdisc_detach_program,
};
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType};
use flannel_common::outcome::Hook;
use rustix::net::netdevice::index_to_name;
use tracing::{info, warn};

use super::Error;
use super::error::AttachCause as _;
use super::pin::{PROBES_GONE, Pins};
use super::sys;

/// How long a new pod's veth is left to the CNI plugins that run behind the one that has made it: `bandwidth` fails to make
/// its ingress qdisc where there is clsact already, and so the pod fails to start.
const PLUGINS_DONE: Duration = Duration::from_secs(3);

/// How programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    /// BPF links, ordered among those of others (kernel 6.6, commit e420bed02507).
    Tcx,
    /// Filters of the clsact queueing discipline.
    Clsact,
}

impl Attach {
    /// The name that the status shows.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }

    /// What the name of a pin begins with: a clsact filter has no link to pin, so its program is pinned instead, as
    /// a record of where it is attached.
    const fn prefix(self) -> &'static str {
        match self {
            Self::Tcx => "",
            Self::Clsact => "clsact-",
        }
    }
}

/// An interface by index and name.
type Devices = BTreeMap<u32, String>;

/// All attached programs of this node.
pub struct Hooks {
    pins: Pins,
    attach: Attach,
    attached: BTreeMap<&'static str, Devices>,
    /// Ids of this run's programs.
    own: BTreeSet<u32>,
    /// When a pod's interface was seen first; never for those that an earlier run has attached programs to.
    seen: BTreeMap<u32, Option<Instant>>,
}

impl Hooks {
    /// Takes over what an earlier run left attached, and gives it this run's programs; under traffic, no packet
    /// notices. What cannot be taken over is detached.
    pub fn adopt(pins: Pins, attach: Attach, bpf: &mut Ebpf) -> Self {
        let mut hooks = Self {
            pins,
            attach,
            attached: BTreeMap::new(),
            own: own_programs(bpf),
            seen: BTreeMap::new(),
        };
        for (name, ifindex) in hooks.pins.existing_links() {
            if name == Hook::NicXdp.name() {
                continue;
            }
            hooks.seen.insert(ifindex, None);
            let hook = Hook::TRAFFIC_CONTROL
                .into_iter()
                .find(|hook| hook.name() == name);
            let replaced = match hook {
                Some(hook) if attach == Attach::Tcx => hooks.replace(bpf, hook, ifindex),
                _ => Ok(false),
            };
            match replaced {
                Ok(true) => continue,
                Ok(false) => {}
                Err(error) => warn!(%error, "a program of an earlier run is attached anew"),
            }
            if let Err(error) = remove_pin(&hooks.pins.link(&name, ifindex)) {
                warn!(%error, program = name, ifindex, "a program of an earlier run stays attached");
            }
        }
        hooks
    }

    /// How programs are attached.
    pub fn kind(&self) -> Attach {
        self.attach
    }

    /// Every attached program with its interface.
    pub fn list(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.attached.iter().flat_map(|(program, devices)| {
            devices.values().map(|device| (*program, device.as_str()))
        })
    }

    fn replace(&mut self, bpf: &mut Ebpf, hook: Hook, ifindex: u32) -> Result<bool, Error> {
        let Ok(device) = index_name(ifindex) else {
            return Ok(false);
        };
        let program = program(bpf, hook.name())?;
        let at = |cause: &dyn std::error::Error| Error::attach(hook.name(), &device, cause);
        let path = self.pins.link(hook.name(), ifindex);
        let pinned = PinnedLink::from_pin(&path).map_err(|error| at(&error))?;
        let link = FdLink::from(pinned)
            .try_into()
            .map_err(|error| at(&error))?;
        let id = program.attach_to_link(link).map_err(|error| at(&error))?;
        // The pin keeps the link; this descriptor is not needed.
        drop(program.take_link(id).map_err(|error| at(&error))?);
        self.attached
            .entry(hook.name())
            .or_default()
            .insert(ifindex, device);
        Ok(true)
    }

    /// Attaches a program unless it is attached. Where links are not supported, all hooks become clsact filters.
    ///
    /// # Errors
    /// [`Error::Attach`]; then it is not attached.
    pub fn attach(
        &mut self,
        bpf: &mut Ebpf,
        hook: Hook,
        ifindex: u32,
        device: &str,
    ) -> Result<(), Error> {
        // Who came later must see the packets as well, before they are taken away. And a hook may have been taken away.
        let again = self.is_overtaken(hook, ifindex) || self.is_missing(hook, ifindex);
        let devices = self.attached.entry(hook.name()).or_default();
        if let Some(name) = devices.get_mut(&ifindex) {
            device.clone_into(name);
            if !again {
                return Ok(());
            }
            devices.remove(&ifindex);
        }
        // A pin of an interface that is gone, whose index is used again.
        let _ = remove_pin(&self.pins.link(&self.pin_name(hook.name()), ifindex));
        let program = program(bpf, hook.name())?;
        match self.attach {
            Attach::Tcx => self.attach_link(program, hook.name(), ifindex, device)?,
            Attach::Clsact => self.attach_filter(program, hook.name(), ifindex, device)?,
        }
        self.attached
            .entry(hook.name())
            .or_default()
            .insert(ifindex, device.to_owned());
        Ok(())
    }

    /// As [`attach`](Self::attach). While nothing is attached and the kind `may_change`, this tells how the kernel
    /// attaches.
    ///
    /// # Errors
    /// As for [`attach`](Self::attach).
    pub fn attach_first(
        &mut self,
        bpf: &mut Ebpf,
        hook: Hook,
        ifindex: u32,
        device: &str,
        may_change: bool,
    ) -> Result<(), Error> {
        match self.attach(bpf, hook, ifindex, device) {
            Err(error)
                if may_change && self.attach == Attach::Tcx && self.list().next().is_none() =>
            {
                info!(%error, "no TCX links on this kernel: attaching by clsact");
                self.attach = Attach::Clsact;
                self.attach(bpf, hook, ifindex, device)
            }
            other => other,
        }
    }

    /// Whether the plugins of a pod's start may still need the place of a filter at its interface.
    pub fn is_too_early(&mut self, ifindex: u32) -> bool {
        let seen = self
            .seen
            .entry(ifindex)
            .or_insert_with(|| Some(Instant::now()));
        self.attach == Attach::Clsact && seen.is_some_and(|at| at.elapsed() < PLUGINS_DONE)
    }

    /// Forgets all interfaces of pods but these.
    pub fn forget_others(&mut self, pods: &BTreeSet<u32>) {
        self.seen.retain(|ifindex, _| pods.contains(ifindex));
    }

    /// Whether a program of somebody else would run behind the hook, and so only on what the hook leaves.
    fn is_overtaken(&self, hook: Hook, ifindex: u32) -> bool {
        side(hook.name()) == TcAttachType::Ingress
            && sys::tcx_programs(ifindex, TcAttachType::Ingress).is_ok_and(|ids| {
                let ours = ids.iter().rposition(|id| self.own.contains(id));
                ours.is_some_and(|position| position + 1 < ids.len())
            })
    }

    /// Whether somebody has detached the hook. A filter of clsact is believed to be there.
    fn is_missing(&self, hook: Hook, ifindex: u32) -> bool {
        self.attach == Attach::Tcx
            && sys::tcx_programs(ifindex, side(hook.name()))
                .is_ok_and(|ids| !ids.iter().any(|id| self.own.contains(id)))
    }

    /// Whether a program of somebody else runs on one side of an interface.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn foreign(&self, ifindex: u32, side: TcAttachType) -> io::Result<bool> {
        let ids = sys::tcx_programs(ifindex, side)?;
        Ok(ids.iter().any(|id| !self.own.contains(id)))
    }

    fn attach_link(
        &self,
        program: &mut SchedClassifier,
        name: &'static str,
        ifindex: u32,
        device: &str,
    ) -> Result<(), Error> {
        let options = TcAttachOptions::TcxOrder(LinkOrder::default());
        let id = program
            .attach_with_options(device, side(name), options)
            .map_err(|error| error.at(name, device))?;
        let link = program
            .take_link(id)
            .map_err(|error| error.at(name, device))?;
        let link: FdLink = link
            .try_into()
            .map_err(|error: aya::programs::links::LinkError| error.at(name, device))?;
        link.pin(self.pins.link(name, ifindex))
            .map_err(|error| error.at(name, device))?;
        Ok(())
    }

    fn attach_filter(
        &self,
        program: &mut SchedClassifier,
        name: &'static str,
        ifindex: u32,
        device: &str,
    ) -> Result<(), Error> {
        if let Err(error) = qdisc_add_clsact(device)
            && !is_exists(&error)
        {
            return Err(error.at(name, device));
        }
        detach_filter(device, name).map_err(|error| error.at(name, device))?;
        let options = TcAttachOptions::Netlink(NlOptions::default());
        let id = program
            .attach_with_options(device, side(name), options)
            .map_err(|error| error.at(name, device))?;
        // Dropping the link would detach the filter, which has to outlive this process.
        std::mem::forget(
            program
                .take_link(id)
                .map_err(|error| error.at(name, device))?,
        );
        let path = self.pins.link(&self.pin_name(name), ifindex);
        program.pin(&path).map_err(|error| error.at(name, device))
    }

    /// Detaches every program of `hook` whose interface is not in `wanted`. An interface that is gone took its
    /// program along.
    ///
    /// # Errors
    /// [`Error::Pin`] for the last that failed; all are tried.
    pub fn prune(&mut self, hook: Hook, wanted: &[u32]) -> Result<(), Error> {
        let mut result = Ok(());
        let prefix = self.attach.prefix();
        let Some(devices) = self.attached.get_mut(hook.name()) else {
            return result;
        };
        devices.retain(|ifindex, _| {
            if wanted.contains(ifindex) {
                return true;
            }
            let removed = remove_pin(
                &self
                    .pins
                    .link(&format!("{prefix}{}", hook.name()), *ifindex),
            );
            let keep = removed.is_err();
            if let Err(error) = removed {
                result = Err(error);
            }
            keep
        });
        result
    }

    /// Detaches everything, what drops probes last.
    ///
    /// # Errors
    /// [`Error::Pin`] for the last that failed; all are tried.
    pub fn detach_all(&mut self) -> Result<(), Error> {
        let mut result = Ok(());
        for hook in Hook::FORWARDING {
            if let Err(error) = self.prune(hook, &[]) {
                result = Err(error);
            }
        }
        self.let_probes_pass();
        for hook in Hook::ATTESTING {
            if let Err(error) = self.prune(hook, &[]) {
                result = Err(error);
            }
        }
        result
    }

    /// Waits until the probes that have been sent by now have come to where they are dropped, before that is taken away.
    pub fn let_probes_pass(&self) {
        let attached = |hook: Hook| {
            let devices = self.attached.get(hook.name());
            devices.is_some_and(|devices| !devices.is_empty())
        };
        if Hook::ATTESTING.into_iter().any(attached) {
            thread::sleep(PROBES_GONE);
        }
    }

    fn pin_name(&self, program: &str) -> String {
        format!("{}{program}", self.attach.prefix())
    }
}

fn own_programs(bpf: &Ebpf) -> BTreeSet<u32> {
    let id = |hook: Hook| {
        let program: &SchedClassifier = bpf.program(hook.name())?.try_into().ok()?;
        program.info().ok().map(|info| info.id())
    };
    Hook::TRAFFIC_CONTROL.into_iter().filter_map(id).collect()
}

/// A program of the object, loaded into the kernel.
///
/// # Errors
/// [`Error::Missing`] or [`Error::Program`].
pub fn program<'a>(
    bpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut SchedClassifier, Error> {
    let refused = |source| Error::Program {
        program: name,
        source: Box::new(source),
    };
    let program = bpf.program_mut(name).ok_or(Error::Missing { name })?;
    let program: &mut SchedClassifier = program.try_into().map_err(refused)?;
    if program.fd().is_err() {
        program.load().map_err(refused)?;
    }
    Ok(program)
}

/// Detaches what a pin stands for, and removes the pin. No pin is no error.
///
/// # Errors
/// [`Error::Pin`] if it stays.
pub fn remove_pin(path: &std::path::Path) -> Result<(), Error> {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let failed = |source| Error::Pin {
        path: path.to_owned(),
        source,
    };
    if !path.exists() {
        return Ok(());
    }
    let filter = name
        .strip_prefix(Attach::Clsact.prefix())
        .and_then(|name| name.rsplit_once('-'));
    match filter {
        Some((program, ifindex)) => {
            if let Some(device) = ifindex
                .parse()
                .ok()
                .and_then(|index| index_name(index).ok())
            {
                detach_filter(&device, program).map_err(|error| failed(io::Error::other(error)))?;
            }
        }
        // Without the right to detach, removing the pin detaches too, only later.
        None => match sys::detach_pinned_link(path) {
            Err(error) if error.kind() != io::ErrorKind::PermissionDenied => {
                return Err(failed(error));
            }
            _ => {}
        },
    }
    fs::remove_file(path).map_err(failed)
}

fn detach_filter(device: &str, program: &str) -> Result<(), TcError> {
    match qdisc_detach_program(device, side(program), program) {
        Err(TcError::IoError(error)) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Whether the pin is that of a program that learns behind the kernel's forwarding.
pub fn attests(pin: &std::path::Path) -> bool {
    let name = pin
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let name = name.strip_prefix(Attach::Clsact.prefix()).unwrap_or(name);
    name.rsplit_once('-')
        .is_some_and(|(program, _)| side(program) == TcAttachType::Egress)
}

/// Where a program sits: those that learn behind the kernel's forwarding, all others in front of it.
fn side(program: &str) -> TcAttachType {
    let attests = |hook: Hook| hook.name() == program;
    if Hook::ATTESTING.into_iter().any(attests) {
        TcAttachType::Egress
    } else {
        TcAttachType::Ingress
    }
}

fn is_exists(error: &TcError) -> bool {
    let mut next: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<io::Error>()
            && error.kind() == io::ErrorKind::AlreadyExists
        {
            return true;
        }
        next = error.source();
    }
    false
}

/// The name of an interface.
///
/// # Errors
/// What the kernel says.
pub fn index_name(ifindex: u32) -> io::Result<String> {
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        None,
    )?;
    Ok(index_to_name(socket, ifindex)?)
}
