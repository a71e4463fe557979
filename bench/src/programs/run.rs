//! One run of a program by `BPF_PROG_TEST_RUN`.

use std::{mem::offset_of, time::Duration};

use anyhow::{Context as _, Result, bail};
use aya::{
    TestRunOptions,
    programs::{Program, SchedClassifier, TestRun as _, Xdp},
};
use bytemuck::{Pod, Zeroable, bytes_of};
use flannel_common::{
    testing::{
        fixtures::{Expected, Fixture},
        model::To,
    },
    wire::vxlan,
};

/// `TC_ACT_UNSPEC` of include/uapi/linux/pkt_cls.h: the kernel goes on with the packet.
pub const TC_ACT_UNSPEC: i32 = -1;
/// `TC_ACT_SHOT`: dropped.
pub const TC_ACT_SHOT: i32 = 2;
/// `TC_ACT_REDIRECT`: to where the program has said.
pub const TC_ACT_REDIRECT: i32 = 7;

/// Room for the whole of it, which a test run writes, on any kernel.
const LARGEST_CONTEXT: usize = 512;

/// `XDP_DROP` of include/uapi/linux/bpf.h.
pub const XDP_DROP: i32 = 1;
/// `XDP_PASS`.
pub const XDP_PASS: i32 = 2;

/// A bit of the packet's mark that is somebody else's.
const OTHER_MARK: u32 = 1 << 20;

/// `struct __sk_buff` of include/uapi/linux/bpf.h, as far as a test run takes anything from it.
#[derive(Clone, Copy, Default, Pod, Zeroable)]
#[repr(C)]
struct SkBuff {
    before_mark: [u32; 2],
    mark: u32,
    before_ingress_ifindex: [u32; 6],
    ingress_ifindex: u32,
    ifindex: u32,
    before_gso_segs: [u32; 30],
    gso_segs: u32,
    before_gso_size: [u32; 2],
    gso_size: u32,
    padding: u32,
}

const _: () = assert!(
    offset_of!(SkBuff, mark) == 8
        && offset_of!(SkBuff, ingress_ifindex) == 36
        && offset_of!(SkBuff, ifindex) == 40
        && offset_of!(SkBuff, gso_segs) == 164
        && offset_of!(SkBuff, gso_size) == 176
);

/// What a program made of a packet.
pub struct Ran {
    /// What it returned.
    pub verdict: i32,
    /// The packet afterwards.
    pub frame: Vec<u8>,
    /// Whether of its mark just what is somebody else's is left, and nothing of what goes into a pod.
    pub mark_is_clean: bool,
    /// Mean time of one run.
    pub duration: Duration,
}

/// Runs a program on the fixture's packet, in the network namespace of the calling thread.
pub(super) fn once(
    program: &Program,
    fixture: &Fixture,
    sets_origin: bool,
    repeat: u32,
) -> Result<Ran> {
    match program {
        Program::SchedClassifier(program) => once_tc(program, fixture, sets_origin, repeat),
        Program::Xdp(program) => once_xdp(program, fixture, repeat),
        _ => bail!("{} is of a type that is not expected", fixture.hook.name()),
    }
}

fn once_xdp(program: &Xdp, fixture: &Fixture, repeat: u32) -> Result<Ran> {
    let mut frame = vec![0; fixture.frame.len()];
    let result = program
        .test_run(TestRunOptions {
            data_in: Some(&fixture.frame),
            data_out: Some(&mut frame),
            repeat,
            ..TestRunOptions::new()
        })
        .context("BPF_PROG_TEST_RUN")?;
    frame.truncate(result.data_size_out as usize);
    Ok(Ran {
        verdict: result.return_value as i32,
        frame,
        mark_is_clean: true,
        duration: result.duration,
    })
}

fn once_tc(
    program: &SchedClassifier,
    fixture: &Fixture,
    sets_origin: bool,
    repeat: u32,
) -> Result<Ran> {
    let mark = if fixture.attested {
        fixture.tables.config.mark
    } else {
        0
    };
    let context = SkBuff {
        mark: mark | OTHER_MARK,
        ingress_ifindex: if sets_origin { fixture.came_from } else { 0 },
        ifindex: fixture.device.index,
        gso_size: fixture.gso_size,
        gso_segs: (fixture.frame.len() as u32)
            .checked_div(fixture.gso_size)
            .unwrap_or(0),
        ..SkBuff::default()
    };
    let mut frame = vec![0; fixture.frame.len() + vxlan::OVERHEAD];
    let mut after = [0; LARGEST_CONTEXT];
    let result = program
        .test_run(TestRunOptions {
            data_in: Some(&fixture.frame),
            data_out: Some(&mut frame),
            ctx_in: Some(bytes_of(&context)),
            ctx_out: Some(&mut after),
            repeat,
            ..TestRunOptions::new()
        })
        .context("BPF_PROG_TEST_RUN")?;
    frame.truncate(result.data_size_out as usize);
    let left: u32 = match fixture.expected {
        Expected::Fast {
            to: To::VethPeer(_),
            ..
        } if result.return_value as i32 == TC_ACT_REDIRECT => 0,
        _ => OTHER_MARK,
    };
    Ok(Ran {
        verdict: result.return_value as i32,
        frame,
        mark_is_clean: after[offset_of!(SkBuff, mark)..].starts_with(&left.to_ne_bytes()),
        duration: result.duration,
    })
}

/// Asks the kernel whether a test run takes the interface that a packet came in by.
pub(super) fn sets_origin(program: &SchedClassifier) -> bool {
    /// The loopback interface of any namespace.
    const LOOPBACK: u32 = 1;
    /// Any frame of a sufficient length will do.
    const FRAME: [u8; 64] = [0; 64];
    let context = SkBuff {
        ingress_ifindex: LOOPBACK,
        ..SkBuff::default()
    };
    let options = TestRunOptions {
        data_in: Some(&FRAME),
        ctx_in: Some(bytes_of(&context)),
        ..TestRunOptions::new()
    };
    program.test_run(options).is_ok()
}
