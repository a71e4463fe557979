//! IPsec policies, read only: a peer whose packets the kernel encrypts must never be reached in plain text.

use std::{io, net::IpAddr};

use ipnet::IpNet;
use netlink_sys::protocols::NETLINK_XFRM;

use super::dump::{attribute, dump, number};

/// `XFRM_MSG_GETPOLICY` of include/uapi/linux/xfrm.h.
const GET_POLICY: u16 = 0x15;
/// Length of `struct xfrm_userpolicy_info`, in bytes, and where its fields lie.
const POLICY_LEN: usize = 168;
const DESTINATION: usize = 0;
const SOURCE: usize = 16;
const FAMILY: usize = 40;
const DESTINATION_LEN: usize = 42;
const SOURCE_LEN: usize = 43;
const DIRECTION: usize = 160;
const ACTION: usize = 161;
/// Length of `struct xfrm_userpolicy_id`, which a dump does not look at.
const REQUEST_LEN: usize = 64;
/// `XFRM_POLICY_OUT`; the other directions are about what arrives.
const OUT: u8 = 1;
/// `XFRM_POLICY_ALLOW`: let packets pass, through the policy's templates if it has some.
const ALLOW: u8 = 0;
/// `XFRMA_TMPL`, `XFRMA_IF_ID`.
const TEMPLATES: u16 = 5;
const INTERFACE: u16 = 31;

/// The far ends of the policies that encrypt or refuse packets. Those for an XFRM interface do not count, since
/// only what is routed to it is theirs. A kernel without IPsec has none.
///
/// # Errors
/// When the dump fails.
pub fn remotes() -> io::Result<Vec<IpNet>> {
    match dump(NETLINK_XFRM, GET_POLICY, &[0; REQUEST_LEN]) {
        Ok(policies) => Ok(policies.iter().filter_map(|bytes| remote(bytes)).collect()),
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// The far end of a policy, the body of an `XFRM_MSG_NEWPOLICY`, if the policy concerns the fast path.
pub fn remote(policy: &[u8]) -> Option<IpNet> {
    let info = policy.get(..POLICY_LEN)?;
    let attributes = policy.get(POLICY_LEN..)?;
    let family = u16::from_ne_bytes([info[FAMILY], info[FAMILY + 1]]);
    let passes = info[ACTION] == ALLOW && attribute(attributes, TEMPLATES).is_none();
    let bound = attribute(attributes, INTERFACE)
        .and_then(|value| number(&value, 0))
        .is_some_and(|id| id != 0);
    if passes || bound {
        return None;
    }
    let (address, length) = if info[DIRECTION] == OUT {
        (DESTINATION, DESTINATION_LEN)
    } else {
        (SOURCE, SOURCE_LEN)
    };
    let address = match i32::from(family) {
        libc::AF_INET => IpAddr::from(*info[address..].first_chunk::<4>()?),
        libc::AF_INET6 => IpAddr::from(*info[address..].first_chunk::<16>()?),
        _ => return None,
    };
    IpNet::new(address, info[length]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(direction: u8, action: u8, attributes: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; POLICY_LEN];
        bytes[DESTINATION..DESTINATION + 4].copy_from_slice(&[192, 168, 1, 2]);
        bytes[SOURCE..SOURCE + 4].copy_from_slice(&[192, 168, 1, 1]);
        bytes[FAMILY] = libc::AF_INET as u8;
        (bytes[DESTINATION_LEN], bytes[SOURCE_LEN]) = (32, 32);
        (bytes[DIRECTION], bytes[ACTION]) = (direction, action);
        bytes.extend(attributes);
        bytes
    }

    #[test]
    fn policies_that_encrypt_or_refuse_count() {
        const IN: u8 = 0;
        const BLOCK: u8 = 1;
        const WITH_TEMPLATE: [u8; 8] = [8, 0, TEMPLATES as u8, 0, 1, 2, 3, 4];
        const ON_INTERFACE: [u8; 16] = [
            8,
            0,
            TEMPLATES as u8,
            0,
            1,
            2,
            3,
            4,
            8,
            0,
            INTERFACE as u8,
            0,
            7,
            0,
            0,
            0,
        ];
        let net = |text: &str| text.parse::<IpNet>().ok();
        assert_eq!(
            remote(&policy(OUT, ALLOW, &WITH_TEMPLATE)),
            net("192.168.1.2/32")
        );
        assert_eq!(
            remote(&policy(IN, ALLOW, &WITH_TEMPLATE)),
            net("192.168.1.1/32")
        );
        assert!(remote(&policy(OUT, BLOCK, &[])).is_some());
        assert!(remote(&policy(OUT, ALLOW, &[])).is_none(), "lets pass");
        assert!(remote(&policy(OUT, ALLOW, &ON_INTERFACE)).is_none());
        assert!(remote(&[0; 20]).is_none());
        let mut v6 = policy(OUT, BLOCK, &[]);
        v6[FAMILY] = libc::AF_INET6 as u8;
        v6[DESTINATION..DESTINATION + 16].copy_from_slice(&[0xfd; 16]);
        v6[DESTINATION_LEN] = 8;
        assert_eq!(remote(&v6).map(|net| net.trunc()), net("fd00::/8"));
    }
}
