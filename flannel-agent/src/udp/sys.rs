//! Calls that neither the standard library nor rustix has: making a TUN device, and many datagrams by one call with
//! segmentation (`UDP_SEGMENT`, `UDP_GRO`; Linux 4.18 and 5.0). All that is unsafe in the udp backend is here.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
    ptr,
};

use super::runs::Run;

/// Bytes of a buffer for datagrams: the largest aggregate.
const BUFFER: usize = 65_535;

/// Room for one control message with a number, aligned as the kernel's headers are.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

/// `CMSG_SPACE` of an integer: a 16-byte header and data padded to 8.
const CONTROL: usize = 24;

// SAFETY: a computation on numbers.
const _: () =
    assert!(unsafe { libc::CMSG_SPACE(size_of::<libc::c_int>() as u32) } as usize <= CONTROL);

impl Control {
    const EMPTY: Self = Self([0; CONTROL]);
}

/// Turns a descriptor of `/dev/net/tun` into a device that carries bare packets, named by `pattern`; returns its name.
///
/// # Errors
/// What the kernel says, and `InvalidInput` for a name that is too long.
pub(super) fn make_tun(tun: &OwnedFd, pattern: &str) -> io::Result<String> {
    let mut name = [0; libc::IFNAMSIZ];
    if pattern.len() >= name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (slot, byte) in name.iter_mut().zip(pattern.bytes()) {
        *slot = byte as libc::c_char;
    }
    let flags = libc::IFF_TUN | libc::IFF_NO_PI;
    let mut request = libc::ifreq {
        ifr_name: name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: flags as libc::c_short,
        },
    };
    // SAFETY: the request holds a name that ends with zero and the flags that the command reads, and outlives the call.
    if unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let name = request.ifr_name.iter().take_while(|byte| **byte != 0);
    let name = name.map(|byte| *byte as u8).collect();
    String::from_utf8(name).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Has the kernel hand over datagrams of one sender and size as one buffer.
///
/// # Errors
/// What the kernel says.
pub(super) fn receive_aggregates(socket: BorrowedFd<'_>) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option is an integer, of the length that is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_GRO,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Sends runs of packets. It holds memory for the call only: what is in it between calls points nowhere.
pub(super) struct Sender {
    headers: Vec<libc::mmsghdr>,
    slices: Vec<libc::iovec>,
    addresses: Vec<libc::sockaddr_in>,
    controls: Vec<Control>,
}

impl Sender {
    /// For so many runs by one call.
    pub(super) fn with_capacity(runs: usize) -> Self {
        Self {
            headers: Vec::with_capacity(runs),
            slices: Vec::with_capacity(runs),
            addresses: Vec::with_capacity(runs),
            controls: Vec::with_capacity(runs),
        }
    }

    /// Sends runs of packets that lie in `buffer` to `port` of their nodes, waiting for room. Returns how many runs were
    /// sent, at least one.
    ///
    /// # Errors
    /// Why the first one was not sent.
    ///
    /// # Panics
    /// If a run does not lie in the buffer.
    pub(super) fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        buffer: &[u8],
        runs: &[Run],
        port: u16,
    ) -> io::Result<usize> {
        self.slices.clear();
        self.addresses.clear();
        self.controls.clear();
        self.headers.clear();
        for run in runs {
            let bytes = &buffer[run.bytes.clone()];
            self.slices.push(libc::iovec {
                // Only read from.
                iov_base: bytes.as_ptr().cast_mut().cast(),
                iov_len: bytes.len(),
            });
            self.addresses.push(libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: port.to_be(),
                sin_addr: libc::in_addr {
                    s_addr: u32::from_ne_bytes(run.node.octets()),
                },
                sin_zero: [0; 8],
            });
            self.controls.push(Control::EMPTY);
        }
        // Only now: the vectors do not move any more.
        for (index, run) in runs.iter().enumerate() {
            let mut header = empty_header();
            header.msg_hdr.msg_name = (&raw mut self.addresses[index]).cast();
            header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            header.msg_hdr.msg_iov = &raw mut self.slices[index];
            header.msg_hdr.msg_iovlen = 1;
            if run.packets() > 1 {
                let size = u16::try_from(run.size).expect("a packet is smaller than 64 KiB");
                segment(&mut header.msg_hdr, &mut self.controls[index], size);
            }
            self.headers.push(header);
        }
        // SAFETY: each header points to an address, a slice of the buffer and maybe a control message, which all live
        // until the call returns and are only read; the length is that of the vector.
        let sent = unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                self.headers.len() as libc::c_uint,
                0,
            )
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

/// Asks that a message be cut into datagrams of `size` bytes.
fn segment(header: &mut libc::msghdr, control: &mut Control, size: u16) {
    header.msg_control = (&raw mut *control).cast();
    // SAFETY: computations on numbers.
    let (space, length) = unsafe {
        let size = size_of::<u16>() as libc::c_uint;
        (libc::CMSG_SPACE(size), libc::CMSG_LEN(size))
    };
    header.msg_controllen = space as _;
    // SAFETY: the header has a control buffer that is aligned and larger than one message with two bytes, as asserted
    // above, so the first message and its data lie in it.
    unsafe {
        let message = libc::CMSG_FIRSTHDR(header);
        (*message).cmsg_level = libc::SOL_UDP;
        (*message).cmsg_type = libc::UDP_SEGMENT;
        (*message).cmsg_len = length as _;
        libc::CMSG_DATA(message).cast::<u16>().write_unaligned(size);
    }
}

/// Receives datagrams, many by one call. Its memory is not moved: the headers point into it.
pub(super) struct Receiver {
    buffers: Vec<u8>,
    headers: Vec<libc::mmsghdr>,
    slices: Vec<libc::iovec>,
    controls: Vec<Control>,
}

impl Receiver {
    /// With so many buffers.
    pub(super) fn new(buffers: usize) -> Self {
        Self {
            buffers: vec![0; buffers * BUFFER],
            headers: Vec::with_capacity(buffers),
            slices: Vec::with_capacity(buffers),
            controls: vec![Control::EMPTY; buffers],
        }
    }

    /// Receives what there is, and returns how many buffers it takes, at least one.
    ///
    /// # Errors
    /// What the kernel says; `WouldBlock` if there is nothing.
    pub(super) fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        self.slices.clear();
        self.headers.clear();
        let buffers = self.buffers.chunks_exact_mut(BUFFER);
        self.slices.extend(buffers.map(|buffer| libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        }));
        for (slice, control) in self.slices.iter_mut().zip(&mut self.controls) {
            let mut header = empty_header();
            header.msg_hdr.msg_iov = slice;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = (&raw mut *control).cast();
            header.msg_hdr.msg_controllen = CONTROL as _;
            self.headers.push(header);
        }
        // SAFETY: each header points to a buffer and to room for control messages of its own, of the given lengths, which
        // nothing else borrows and which live until the call returns.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                self.headers.len() as libc::c_uint,
                libc::MSG_DONTWAIT as _,
                ptr::null_mut(),
            )
        };
        usize::try_from(received).map_err(|_| io::Error::last_os_error())
    }

    /// What the last call has put into a buffer: datagrams side by side, and the bytes of each; the last may have fewer.
    ///
    /// # Panics
    /// If that call has not filled the buffer.
    pub(super) fn datagrams(&mut self, index: usize) -> (&mut [u8], usize) {
        let header = &self.headers[index];
        let length = (header.msg_len as usize).min(BUFFER);
        let size = aggregate_size(&header.msg_hdr).unwrap_or(length);
        (&mut self.buffers[index * BUFFER..][..length], size)
    }
}

/// The size of the datagrams in a received message, if it is an aggregate.
fn aggregate_size(header: &libc::msghdr) -> Option<usize> {
    // SAFETY: the kernel has written the control messages and their length, and the room that they are in is alive: it is
    // the receiver's, as the header is.
    let message = unsafe { libc::CMSG_FIRSTHDR(header).as_ref()? };
    if (message.cmsg_level, message.cmsg_type) != (libc::SOL_UDP, libc::UDP_GRO) {
        return None;
    }
    // SAFETY: the data of this message is an integer (`udp_cmsg_recv` of net/ipv4/udp.c), in the room asserted above.
    let size = unsafe {
        libc::CMSG_DATA(message)
            .cast::<libc::c_int>()
            .read_unaligned()
    };
    usize::try_from(size).ok().filter(|size| *size > 0)
}

fn empty_header() -> libc::mmsghdr {
    // SAFETY: a structure of integers and pointers, for which zeroes are valid.
    unsafe { MaybeUninit::zeroed().assume_init() }
}
