//! What the programs must be told about the running kernel before they are loaded.

use aya::programs::ProgramType;
use aya::sys::is_helper_supported;
use aya_obj::generated::bpf_func_id;

use super::btf;
use super::tier::Attest;

/// Values of the object's global variables of the same names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Whether the coarse clock exists.
    pub coarse_clock: u32,
    /// Offset of `sk_buff::_nfct`; zero where the packet's mark attests.
    pub nfct: u32,
    /// Offset of `nf_conn::status`.
    pub ct_status: u32,
    /// Offset of `nf_conn::tuplehash`.
    pub ct_tuples: u32,
}

impl Facts {
    /// Asks the kernel. Conntrack is read where the kernel shows its types and lets programs read its memory
    /// (CAP_PERFMON, no lockdown), unless the mark is wanted.
    pub fn ask(wanted: Attest) -> Self {
        let supported =
            |helper| is_helper_supported(ProgramType::SchedClassifier, helper).unwrap_or(false);
        let mut facts = Self {
            coarse_clock: u32::from(supported(bpf_func_id::BPF_FUNC_ktime_get_coarse_ns)),
            ..Self::default()
        };
        if wanted == Attest::Mark || !supported(bpf_func_id::BPF_FUNC_probe_read_kernel) {
            return facts;
        }
        let Some(types) = btf::Kernel::read() else {
            return facts;
        };
        let packet = types.offsets(None, "sk_buff", ["_nfct"]);
        let connection = types.offsets(Some("nf_conntrack"), "nf_conn", ["status", "tuplehash"]);
        if let (Some([nfct]), Some([status, tuples])) = (packet, connection) {
            (facts.nfct, facts.ct_status, facts.ct_tuples) = (nfct, status, tuples);
        }
        facts
    }

    /// Who attests.
    pub fn attest(&self) -> Attest {
        if self.nfct == 0 {
            Attest::Mark
        } else {
            Attest::Conntrack
        }
    }
}
