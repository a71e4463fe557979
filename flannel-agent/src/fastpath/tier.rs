//! What this kernel can do, and so which way packets take. Asked by loading and running, not by version numbers.

use aya::programs::TestRunOptions;
use aya::{Ebpf, TestRun};
use flannel_common::outcome::Hook;

use super::Error;
use super::hooks::program;

/// The program that answers whether encapsulation in BPF works.
const PROBE_ENCAP: &str = "probe_encap";

/// A frame of the smallest size, with an IPv4 EtherType and header.
const FRAME: [u8; 60] = {
    let mut frame = [0; 60];
    frame[12] = 0x08;
    frame[14] = 0x45;
    frame[17] = 46;
    frame
};

/// Who encapsulates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Egress {
    /// BPF if the kernel has the flags for it, else the VXLAN device.
    #[default]
    Auto,
    /// BPF: the whole outer header, then the node's interface.
    Encap,
    /// The VXLAN device, on a packet whose inner MACs BPF has set.
    Assist,
}

/// Who says that the kernel has passed a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Attest {
    /// Conntrack if programs can read it, else the mark.
    #[default]
    Auto,
    /// The connection that conntrack has assigned the packet to, read from the packet.
    Conntrack,
    /// A bit of the packet's mark, which a rule behind source NAT sets.
    Mark,
}

impl Attest {
    /// The name that the status uses.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Conntrack => "conntrack",
            Self::Mark => "mark",
        }
    }
}

/// Where packets from other nodes are taken up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Ingress {
    /// At the node's interface, decapsulated in BPF.
    #[default]
    Nic,
    /// At the VXLAN device, after the kernel has decapsulated.
    Vtep,
    /// At the node's interface, decapsulated by XDP before the kernel has made packets of frames; as `nic` where the
    /// driver has no native XDP or would give up offloads for it.
    Xdp,
}

/// Loads every program that cannot be done without: a kernel that refuses one of them gets none, instead of half a fast path.
///
/// # Errors
/// [`Error::Missing`] or [`Error::Program`].
pub fn load_programs(bpf: &mut Ebpf) -> Result<(), Error> {
    for hook in Hook::TRAFFIC_CONTROL {
        program(bpf, hook.name())?;
    }
    Ok(())
}

/// Settles who encapsulates.
pub fn egress(bpf: &mut Ebpf, wanted: Egress) -> Egress {
    match wanted {
        Egress::Auto if can_encap(bpf) => Egress::Encap,
        Egress::Auto => Egress::Assist,
        settled => settled,
    }
}

fn can_encap(bpf: &mut Ebpf) -> bool {
    let Ok(program) = program(bpf, PROBE_ENCAP) else {
        return false;
    };
    let mut out = [0; 256];
    let options = TestRunOptions {
        data_in: Some(&FRAME),
        data_out: Some(&mut out),
        ..TestRunOptions::new()
    };
    program
        .test_run(options)
        .is_ok_and(|result| result.return_value == 1)
}
