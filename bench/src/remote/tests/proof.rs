//! A path is proven by all four hooks, before and during a measurement, or it is not proven.

use super::*;

const LEAST: Least = Least {
    sent: 90,
    received: 80,
    back: 70,
};

/// A reading of client out, server in, server out, client in.
fn reading([client_out, server_in, server_out, client_in]: [u64; 4]) -> Reading {
    let side = |fast_egress, fast_ingress| {
        Some(FastPath {
            counters: Counters {
                fast_egress,
                fast_ingress,
                ..Counters::default()
            },
            reason: None,
        })
    };
    Reading {
        client: side(client_out, client_in),
        server: side(server_out, server_in),
    }
}

fn proof(path: Path, probed: Result<(), String>, counted: [u64; 4]) -> Verdict {
    let start = reading([1000; 4]);
    let end = reading(counted.map(|count| 1000 + count));
    conclude(path, (Counted::default(), probed), [&start, &end], LEAST).verdict
}

#[test]
fn all_four_hooks_must_have_carried_it() {
    assert_eq!(proof(Path::Fast, Ok(()), [90, 80, 70, 70]), Verdict::Proven);
    for (place, name) in ["client out", "server in", "server out", "client in"]
        .into_iter()
        .enumerate()
    {
        let mut counted = [90, 80, 70, 70];
        counted[place] -= 1;
        let Verdict::Lacking(lack) = proof(Path::Fast, Ok(()), counted) else {
            panic!("{name} is not looked at");
        };
        assert!(lack.contains(name), "{lack}");
    }
}

#[test]
fn one_packet_by_bpf_is_not_the_kernels_path() {
    assert_eq!(proof(Path::Kernel, Ok(()), [0; 4]), Verdict::Proven);
    for place in 0..4 {
        let mut counted = [0; 4];
        counted[place] = 1;
        assert!(matches!(
            proof(Path::Kernel, Ok(()), counted),
            Verdict::Lacking(_)
        ));
    }
}

#[test]
fn what_the_probe_lacked_counts() {
    let lack = Err("nothing moved".to_owned());
    assert_eq!(
        proof(Path::Fast, lack, [90, 80, 70, 70]),
        Verdict::Lacking("nothing moved".to_owned())
    );
}

#[test]
fn a_path_that_nobody_chose_is_told() {
    let told = |counted| proof(Path::AsIs, Ok(()), counted);
    assert_eq!(told([90, 80, 70, 70]), Verdict::Seen(Seen::Fast));
    assert_eq!(told([0; 4]), Verdict::Seen(Seen::Kernel));
    assert_eq!(told([90, 80, 0, 0]), Verdict::Seen(Seen::Mixed));
    let (start, mut end) = (reading([0; 4]), reading([99; 4]));
    end.server = None;
    let probed = (Counted::default(), Ok(()));
    let proof = conclude(Path::AsIs, probed, [&start, &end], LEAST);
    assert_eq!(proof.verdict, Verdict::Seen(Seen::Unknown));
}

#[test]
fn without_both_agents_nothing_is_proven() {
    let (start, mut end) = (reading([0; 4]), reading([0; 4]));
    end.client = None;
    let counted = end.since(&start);
    assert!(counted.judge(Path::Kernel, LEAST).is_err());
}
