//! What may differ between the two paths, taken out of frames before they are compared.

use flannel_common::{testing::frame::L4, wire::ethernet};

use super::packets::{IN_TUNNEL, Kinds};

/// The inner frame of VXLAN begins here.
pub(super) const INNER: usize = L4 + 16;
/// IPv4's number for ICMP.
const ICMP: u8 = 1;

/// Whether a frame on the wire is one that we have put there ourselves; what arrives of it is seen at the pods.
pub(super) fn is_injected(kinds: &Kinds, frame: &[u8]) -> bool {
    let inner = frame.get(INNER..).filter(|inner| inner.len() >= L4);
    inner.is_some_and(|inner| {
        // What kernels make has identifications of their choice.
        inner[ethernet::LEN + 9] != ICMP && kinds.get(&id(inner)) == Some(&IN_TUNNEL)
    })
}

/// The frame as it is compared: none if it is not of the pods, and without what may differ.
pub(super) fn compared(mut frame: Vec<u8>, on_wire: bool) -> Option<Vec<u8>> {
    const VXLAN: [u8; 2] = 8472_u16.to_be_bytes();
    const NETWORK: [u8; 2] = [10, 5];
    if frame.len() < L4 || frame[12..14] != [8, 0] {
        return None;
    }
    let is_node = |frame: &[u8], at: usize| frame[at..at + 3] == [192, 168, 100];
    let (source, target) = (ethernet::LEN + 12, ethernet::LEN + 16);
    let between_nodes = is_node(&frame, source) && is_node(&frame, target);
    if between_nodes {
        if frame[23] != 17 || frame.len() < INNER + L4 || frame[L4 + 2..L4 + 4] != VXLAN {
            return None;
        }
        mask_id(&mut frame, ethernet::LEN);
        frame[L4 + 6..L4 + 8].fill(0);
        if mask_packet(&mut frame, INNER + ethernet::LEN) {
            frame[L4..L4 + 2].fill(0);
        }
        mask_overwritten(&mut frame, INNER + ethernet::LEN);
        return Some(frame);
    }
    let of_pods = frame[target..target + 2] == NETWORK || frame[source..source + 2] == NETWORK;
    mask_packet(&mut frame, ethernet::LEN);
    if on_wire {
        mask_overwritten(&mut frame, ethernet::LEN);
    }
    of_pods.then_some(frame)
}

/// Blanks what the receiving node's kernel may have written into a captured later fragment, whose IPv4 header is at
/// `offset`: on a veth both ends see the same memory, and the kernel forwards reassembled fragments in place
/// (`ip_do_fragment`), with two bytes in front of the link-layer header (`HH_DATA_MOD`).
fn mask_overwritten(frame: &mut [u8], offset: usize) {
    const TTL: usize = 8;
    if frame[offset + 6] & 0x1f != 0 || frame[offset + 7] != 0 {
        let link = offset - ethernet::LEN;
        frame[link.saturating_sub(2)..offset].fill(0);
        frame[offset + TTL] = 0;
        frame[offset + 10..offset + 12].fill(0);
    }
}

/// Blanks what may differ in a packet whose IPv4 header is at `offset`; says whether its port is a random one.
fn mask_packet(frame: &mut [u8], offset: usize) -> bool {
    /// Bytes of an ICMP header.
    const QUOTE: usize = 8;
    if frame[offset + 9] == ICMP {
        mask_id(frame, offset);
    }
    let masqueraded = mask_port(frame, offset);
    let quoted = offset + usize::from(frame[offset] & 0xf) * 4 + QUOTE;
    if frame[offset + 9] == ICMP && frame.len() >= quoted + 20 {
        mask_port(frame, quoted);
    }
    masqueraded
}

/// Blanks the source port of a masqueraded packet, and the checksum over it.
fn mask_port(frame: &mut [u8], offset: usize) -> bool {
    const TCP: u8 = 6;
    const UDP: u8 = 17;
    let source = &frame[offset + 12..offset + 16];
    // The node's own address, or that of its VXLAN device or bridge.
    let masqueraded = source[0] == 192 || source[3] <= 1;
    let first = frame[offset + 6] & 0x1f == 0 && frame[offset + 7] == 0;
    if masqueraded && first {
        let l4 = offset + usize::from(frame[offset] & 0xf) * 4;
        let blank = match frame[offset + 9] {
            // Checksum and identifier of an echo, or what is unused in an error.
            ICMP => vec![l4 + 2..l4 + 4, l4 + 4..l4 + 6],
            TCP => vec![l4..l4 + 2, l4 + 16..l4 + 18],
            UDP => vec![l4..l4 + 2, l4 + 6..l4 + 8],
            _ => vec![],
        };
        for range in blank {
            frame
                .get_mut(range)
                .into_iter()
                .for_each(|bytes| bytes.fill(0));
        }
    }
    masqueraded
}

/// The identification in the IPv4 header of a frame.
pub(super) fn id(frame: &[u8]) -> [u8; 2] {
    [frame[ethernet::LEN + 4], frame[ethernet::LEN + 5]]
}

/// Blanks identification and checksum of the IPv4 header at `offset`.
fn mask_id(frame: &mut [u8], offset: usize) {
    frame[offset + 4..offset + 6].fill(0);
    frame[offset + 10..offset + 12].fill(0);
}
