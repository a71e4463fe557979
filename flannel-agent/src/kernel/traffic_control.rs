//! What others do to packets in traffic control: shapers, filters, programs. Read only; nothing of it is ours.
//!
//! The fast path takes packets past these places, so that it must know of them. BPF programs attached by TCX are not in
//! netlink; `fastpath::hooks` asks for those.

use std::{collections::BTreeMap, io};

use flannel_common::outcome::Hook;
use netlink_sys::protocols::NETLINK_ROUTE;

use super::dump::{attribute, dump, number, text};

/// `RTM_GETQDISC` and `RTM_GETTFILTER` of include/uapi/linux/rtnetlink.h.
const GET_QDISC: u16 = 38;
const GET_FILTER: u16 = 46;
/// Length of `struct tcmsg`, in bytes, and where its fields lie.
const HEADER_LEN: usize = 20;
const INDEX: usize = 4;
const PARENT: usize = 12;
/// `TC_H_ROOT`, and the two halves of clsact (include/uapi/linux/pkt_sched.h).
const ROOT: u32 = 0xffff_ffff;
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;
/// `TCA_KIND`, `TCA_OPTIONS` (include/uapi/linux/rtnetlink.h) and, in the options of a BPF filter, `TCA_BPF_NAME`.
const KIND: u16 = 1;
const OPTIONS: u16 = 2;
const BPF_NAME: u16 = 7;
/// What virtual devices have unless somebody has given them something else.
const NO_QUEUE: &str = "noqueue";

/// What others have put on an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrafficControl {
    /// A filter looks at what arrives.
    pub ingress: bool,
    /// A filter looks at what leaves, or a queueing discipline orders it.
    pub egress: bool,
}

/// Every interface on which somebody has put something, by index.
///
/// # Errors
/// When a dump fails.
pub fn read() -> io::Result<BTreeMap<u32, TrafficControl>> {
    let mut found: BTreeMap<u32, TrafficControl> = BTreeMap::new();
    for qdisc in dump(NETLINK_ROUTE, GET_QDISC, &header(0, 0))? {
        let (Some(index), Some(parent)) = (number(&qdisc, INDEX), number(&qdisc, PARENT)) else {
            continue;
        };
        let of = found.entry(index).or_default();
        match kind(&qdisc).as_str() {
            "ingress" => of.ingress |= filtered(index, INGRESS)?,
            "clsact" => {
                of.ingress |= filtered(index, INGRESS)?;
                of.egress |= filtered(index, EGRESS)?;
            }
            NO_QUEUE => {}
            _ => of.egress |= parent == ROOT,
        }
    }
    found.retain(|_, of| *of != TrafficControl::default());
    Ok(found)
}

/// Whether a filter that is not ours sits there.
fn filtered(index: u32, parent: u32) -> io::Result<bool> {
    match dump(NETLINK_ROUTE, GET_FILTER, &header(index, parent)) {
        Ok(filters) => Ok(filters.iter().any(|filter| is_foreign(filter))),
        // It went meanwhile, with its device or without.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::EINVAL)) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Whether the body of an `RTM_NEWTFILTER` is a filter that is not ours.
///
/// Filters without options are the empty head of a priority, which the kernel lists too.
pub fn is_foreign(filter: &[u8]) -> bool {
    let attributes = filter.get(HEADER_LEN..).unwrap_or_default();
    let Some(options) = attribute(attributes, OPTIONS) else {
        return false;
    };
    let name = attribute(&options, BPF_NAME).map(|name| text(&name));
    !Hook::ALL
        .into_iter()
        .any(|hook| name.as_deref() == Some(hook.name()))
}

fn kind(message: &[u8]) -> String {
    let attributes = message.get(HEADER_LEN..).unwrap_or_default();
    attribute(attributes, KIND)
        .map(|kind| text(&kind))
        .unwrap_or_default()
}

fn header(index: u32, parent: u32) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    header[INDEX..INDEX + 4].copy_from_slice(&index.to_ne_bytes());
    header[PARENT..PARENT + 4].copy_from_slice(&parent.to_ne_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bpf_filter(name: &[u8]) -> Vec<u8> {
        let mut named = vec![(4 + name.len()) as u8, 0, BPF_NAME as u8, 0];
        named.extend(name);
        named.resize(named.len().next_multiple_of(4), 0);
        let mut filter = vec![0; HEADER_LEN];
        filter.extend([8, 0, KIND as u8, 0, b'b', b'p', b'f', 0]);
        filter.extend([(4 + named.len()) as u8, 0, OPTIONS as u8, 0]);
        filter.extend(named);
        filter
    }

    #[test]
    fn our_own_filters_are_told_from_those_of_others() {
        assert!(!is_foreign(&bpf_filter(b"pod_egress\0")));
        assert!(is_foreign(&bpf_filter(b"pod_egress2\0")));
        assert!(is_foreign(&bpf_filter(b"policer\0")));
        assert!(!is_foreign(&[0; HEADER_LEN]), "the head of a priority");
    }

    #[test]
    fn garbage_is_nothing() {
        assert_eq!(kind(&[1, 2, 3]), "");
        assert!(!is_foreign(&[0xff; 30]));
    }
}
