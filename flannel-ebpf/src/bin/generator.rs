//! The benchmark's packet generator, and the sink that counts what arrives.
//!
//! `generator` is never attached: the benchmark runs it by `BPF_PROG_TEST_RUN` with live frames, as if a pod's veth had
//! received them. `sink` sits at TC ingress of the device where the packets are to arrive.
//!
//! On the host this program is an empty shell, so that the workspace builds without the BPF toolchain.
#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", no_main)]

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action};
    use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
    use aya_ebpf::macros::{classifier, map, xdp};
    use aya_ebpf::maps::{Array, PerCpuArray};
    use aya_ebpf::programs::{TcContext, XdpContext};
    use flannel_common::generator::{Headers, Plan};
    use flannel_common::wire::ethernet;

    /// What to generate.
    #[map]
    static PLAN: Array<Plan> = Array::with_max_entries(1, 0);

    /// The flow that is next.
    #[map]
    static NEXT_FLOW: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);

    /// Packets that have arrived.
    #[map]
    static ARRIVED: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

    /// Writes all headers and lets the packet in.
    ///
    /// The kernel runs the frames in pages that it uses again and again, with whatever the last packet's path has made
    /// of them (`xdp_test_run_batch` in net/bpf/test_run.c), so nothing in them can be relied on.
    #[xdp]
    pub fn generator(ctx: XdpContext) -> u32 {
        write(&ctx).map_or(xdp_action::XDP_ABORTED, |()| xdp_action::XDP_PASS)
    }

    #[inline(always)]
    fn write(ctx: &XdpContext) -> Option<()> {
        let plan = PLAN.get(0)?;
        let next = NEXT_FLOW.get_ptr_mut(0)?;
        let headers = headers(ctx.data(), ctx.data_end())?;
        // SAFETY: the element is this CPU's own, and test runs do not interrupt each other.
        let flow = unsafe {
            *next = if *next + 1 < plan.flows { *next + 1 } else { 0 };
            *next
        };
        let udp = plan.udp(flow);
        let ip = if plan.subnets > 0 {
            // SAFETY: no pointer is involved.
            plan.ip(unsafe { bpf_get_prandom_u32() })
        } else {
            plan.headers.ip
        };
        // SAFETY: `headers` checked the bounds, and packet data starts at an even address, which is all that headers
        // need. One by one, because larger copies become calls of a slow `memcpy`.
        unsafe {
            (&raw mut (*headers).ethernet).write(plan.headers.ethernet);
            (&raw mut (*headers).ip).write(ip);
            (&raw mut (*headers).udp).write(udp);
        }
        Some(())
    }

    /// The headers of a packet, if it is long enough. The bounds are read once: the verifier connects no two readings.
    #[inline(always)]
    fn headers(data: usize, end: usize) -> Option<*mut Headers> {
        (data + size_of::<Headers>() <= end).then_some(data as *mut Headers)
    }

    /// Counts and drops what the generator has made; leaves everything else alone.
    #[classifier]
    pub fn sink(ctx: TcContext) -> i32 {
        if take(&ctx).is_some() {
            TC_ACT_SHOT as i32
        } else {
            TC_ACT_UNSPEC
        }
    }

    /// The same for the device that joins two nodes, where packets are encapsulated or their destination is chosen at
    /// random: takes all IPv4.
    #[classifier]
    pub fn wire_sink(ctx: TcContext) -> i32 {
        if take_ipv4(&ctx).is_some() {
            TC_ACT_SHOT as i32
        } else {
            TC_ACT_UNSPEC
        }
    }

    #[inline(always)]
    fn take_ipv4(ctx: &TcContext) -> Option<()> {
        // SAFETY: as for `take`.
        let headers = unsafe { &*headers(ctx.data(), ctx.data_end())? };
        (headers.ethernet.ethertype == ethernet::IPV4).then(arrived)?
    }

    #[inline(always)]
    fn take(ctx: &TcContext) -> Option<()> {
        let plan = PLAN.get(0)?;
        let expected = &plan.headers;
        // SAFETY: `headers` checked the bounds, and packet data starts at an even address, which is all that headers
        // need.
        let headers = unsafe { &*headers(ctx.data(), ctx.data_end())? };
        // Fragments and options do not occur; the protocol tells UDP from what merely looks like it.
        let ours = headers.ethernet.ethertype == expected.ethernet.ethertype
            && headers.ip.protocol == expected.ip.protocol
            && { headers.ip.source } == { expected.ip.source }
            && { headers.ip.destination } == { expected.ip.destination }
            && plan.has_ports(headers.udp.source, headers.udp.destination);
        ours.then(arrived)?
    }

    #[inline(always)]
    fn arrived() -> Option<()> {
        let arrived = ARRIVED.get_ptr_mut(0)?;
        // SAFETY: the element is this CPU's own, and programs of one hook do not interrupt each other on a CPU.
        unsafe { *arrived += 1 };
        Some(())
    }

    #[panic_handler]
    fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
        // An endless loop does not pass the verifier: a program that can panic is refused at load time.
        loop {}
    }

    /// The kernel lets programs call GPL-only helpers if this names a compatible licence (include/linux/license.h).
    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 4] = *b"GPL\0";
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
