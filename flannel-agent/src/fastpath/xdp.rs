//! The XDP program at the node's interface: attached natively or not at all, and only while the driver goes on doing what
//! it did for the kernel.
//!
//! The one optional program: whatever keeps it away costs this receive tier, not the fast path.

use std::io;

use aya::Ebpf;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::XdpLink;
use aya::programs::{Xdp, XdpMode};
use flannel_common::outcome::Hook;
use tracing::{info, warn};

use super::error::AttachCause as _;
use super::hooks::remove_pin;
use super::pin::Pins;
use super::topology::Device;
use super::{Error, ethtool};

/// Its name, in the object and in pins.
const NAME: &str = Hook::NicXdp.name();

/// The attached program, if any.
pub struct NicXdp {
    pins: Pins,
    attached: Option<Device>,
    /// Interfaces whose driver cannot have it, with the reason: trying again at every event would disturb the link.
    refused: Option<(u32, String)>,
}

impl NicXdp {
    /// Takes over what an earlier run left attached, with this run's program, if it is `wanted`; detaches it otherwise.
    pub fn adopt(pins: Pins, wanted: bool, bpf: &mut Ebpf) -> Self {
        let mut this = Self {
            pins,
            attached: None,
            refused: None,
        };
        for (name, index) in this.pins.existing_links() {
            if name != NAME {
                continue;
            }
            if wanted {
                match this.replace(bpf, index) {
                    Ok(device) => {
                        this.attached = Some(device);
                        continue;
                    }
                    Err(error) => warn!(%error, "XDP of an earlier run is attached anew"),
                }
            }
            if let Err(error) = remove_pin(&this.pins.link(NAME, index)) {
                warn!(%error, index, "XDP of an earlier run stays attached");
            }
        }
        this
    }

    /// Where it is attached.
    pub fn device(&self) -> Option<&str> {
        self.attached.as_ref().map(|device| &*device.name)
    }

    /// Attaches the program to `device`, and to nothing else.
    ///
    /// # Errors
    /// [`Error::Xdp`], and nothing is attached: the driver has no native XDP, somebody else's program is there, or the
    /// driver has given up offloads for it.
    pub fn attach(&mut self, bpf: &mut Ebpf, device: &Device) -> Result<(), Error> {
        if let Some(attached) = &self.attached {
            if attached.index == device.index {
                return Ok(());
            }
            self.detach()?;
        }
        let refusal = |reason: String| Error::Xdp {
            device: device.name.clone(),
            reason,
        };
        if let Some((index, reason)) = &self.refused
            && *index == device.index
        {
            return Err(refusal(reason.clone()));
        }
        let result = self.try_attach(bpf, device);
        if let Err(error) = result {
            let reason = match error {
                Error::Attach { reason, .. } => reason,
                other => other.to_string(),
            };
            self.refused = Some((device.index, reason.clone()));
            remove_pin(&self.pins.link(NAME, device.index))?;
            return Err(refusal(reason));
        }
        info!(
            device = device.name,
            "XDP takes packets out of their tunnel"
        );
        self.attached = Some(device.clone());
        Ok(())
    }

    fn try_attach(&self, bpf: &mut Ebpf, device: &Device) -> Result<(), Error> {
        let path = self.pins.link(NAME, device.index);
        // A pin of an interface that is gone, whose index is used again.
        remove_pin(&path)?;
        let features = || {
            ethtool::features(&device.name).map_err(|error: io::Error| error.at(NAME, &device.name))
        };
        let before = features()?;
        let program = program(bpf)?;
        let id = program
            .attach_to_if_index(device.index, XdpMode::Driver)
            .map_err(|error| error.at(NAME, &device.name))?;
        let link = program
            .take_link(id)
            .map_err(|error| error.at(NAME, &device.name))?;
        let link: FdLink = link
            .try_into()
            .map_err(|error: aya::programs::links::LinkError| error.at(NAME, &device.name))?;
        let lost = before.lost(&features()?);
        if lost > 0 {
            // The link goes, and the program with it.
            return Err(Error::Attach {
                program: NAME,
                device: device.name.clone(),
                reason: format!("the driver gives up {lost} of its offloads for it"),
            });
        }
        link.pin(path)
            .map_err(|error| error.at(NAME, &device.name))?;
        Ok(())
    }

    fn replace(&self, bpf: &mut Ebpf, index: u32) -> Result<Device, Error> {
        let name = super::hooks::index_name(index).map_err(|error| error.at(NAME, "?"))?;
        let program = program(bpf)?;
        let pinned = PinnedLink::from_pin(self.pins.link(NAME, index))
            .map_err(|error| error.at(NAME, &name))?;
        let link =
            XdpLink::try_from(FdLink::from(pinned)).map_err(|error| error.at(NAME, &name))?;
        let id = program
            .attach_to_link(link)
            .map_err(|error| error.at(NAME, &name))?;
        // The pin keeps the link; this descriptor is not needed.
        drop(
            program
                .take_link(id)
                .map_err(|error| error.at(NAME, &name))?,
        );
        Ok(Device {
            index,
            name,
            ..Device::default()
        })
    }

    /// Detaches it, if it is attached.
    ///
    /// # Errors
    /// [`Error::Pin`] if it stays.
    pub fn detach(&mut self) -> Result<(), Error> {
        if let Some(device) = &self.attached {
            remove_pin(&self.pins.link(NAME, device.index))?;
        }
        self.attached = None;
        Ok(())
    }
}

/// The program, loaded into the kernel.
///
/// # Errors
/// [`Error::Missing`] or [`Error::Program`].
pub fn program(bpf: &mut Ebpf) -> Result<&mut Xdp, Error> {
    let refused = |source| Error::Program {
        program: NAME,
        source: Box::new(source),
    };
    let program = bpf.program_mut(NAME).ok_or(Error::Missing { name: NAME })?;
    let program: &mut Xdp = program.try_into().map_err(refused)?;
    if program.fd().is_err() {
        program.load().map_err(refused)?;
    }
    Ok(program)
}
