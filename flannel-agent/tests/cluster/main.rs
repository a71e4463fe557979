//! The agent in clusters: real etcd, real CNI plugins, real packets between pods on different nodes.
//!
//! One theme per file. A test's name says what is claimed, after the backend and the path that it is claimed for:
//! `vxlan::subnet::…` runs with `--fast-path=subnet`, `vxlan::off::…` on the kernel path alone. Each test has a cluster
//! of its own, so any number of them run side by side.

mod alloc;
mod away;
mod beside;
mod blackholes;
mod bypass;
mod cleanup;
mod cni;
mod comparison;
mod config;
mod declined;
mod dialog;
mod differential;
mod escape;
mod etcds;
mod extension;
mod fallback;
mod floods;
mod flow;
mod flows;
mod headers;
mod ipip;
mod ipv6;
mod ipvs;
mod kernels;
mod kube;
mod legs;
mod life;
mod marks;
mod matrix;
mod members;
mod meter;
mod migration;
mod mixed;
mod model;
mod mtu;
mod nodes;
mod offloads;
mod order;
mod pair;
mod permission;
mod policies;
mod privileges;
mod process;
mod repair;
mod restart;
mod routes;
mod rule_sources;
mod rule_tools;
mod rules;
mod scenarios;
mod secure;
mod service_pair;
mod services;
mod spoofing;
mod stores;
mod suites;
mod support;
mod tiers;
mod udp;
mod window;
mod wire;
mod xdp;

use std::process::ExitCode;

use lab::signals;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use suites::{
    CAUGHT, CNI, CONTROL, EVERYWHERE, FAST, FAST_VXLAN, FLOW, FLOW_ALONE, FLOW_LIFE, FLOW_TRAFFIC,
    IPV6, Lacks, MARKED, MARKS, RULED, SPECIAL, SPECIAL_RULED, TRAFFIC, Test, VXLAN,
};
use support::{Backend, Path, Setting, Skipped};

fn main() -> ExitCode {
    if let Some(code) = model::agent::main() {
        return code;
    }
    signals::tear_down_on_signals(signals::exit_code).expect("signal handlers can be installed");
    let mut trials = Vec::new();
    for backend in [Backend::Vxlan, Backend::HostGw] {
        for path in [Path::Kernel, Path::Fast, Path::Flow] {
            let setting = Setting {
                backend,
                path,
                mark: false,
                broken: None,
            };
            let vxlan = (backend == Backend::Vxlan).then_some(VXLAN);
            let control = (backend == Backend::Vxlan && path == Path::Kernel).then_some(CONTROL);
            let cni = control.map(|_| CNI);
            let fast = (path == Path::Fast).then_some(FAST);
            let fast_vxlan = fast.and(vxlan).map(|_| FAST_VXLAN);
            let flow = (path == Path::Flow).then_some(FLOW);
            let flow_traffic = flow.map(|_| FLOW_TRAFFIC);
            let life = flow.map(|_| FLOW_LIFE);
            let marks = flow.map(|_| MARKS);
            let ipv6 = flow.map(|_| IPV6);
            let alone = flow.and(vxlan).map(|_| FLOW_ALONE);
            let ruled = (path != Path::Fast).then_some(RULED);
            let traffic = ruled.map(|_| TRAFFIC);
            let beside = ruled.map(|_| beside::RULED);
            let beside_traffic = ruled.map(|_| beside::TRAFFIC);
            let beside_alone = alone.map(|_| beside::FLOW_ALONE);
            let tests = [
                Some(EVERYWHERE),
                vxlan,
                control,
                cni,
                fast,
                fast_vxlan,
                flow,
                flow_traffic,
                life,
                marks,
                alone,
                ipv6,
                ruled,
                traffic,
                beside,
                beside_traffic,
                beside_alone,
            ];
            trials.extend(
                tests
                    .into_iter()
                    .flatten()
                    .flatten()
                    .map(|(name, test)| trial(setting, name, *test)),
            );
        }
    }
    for backend in [Backend::Vxlan, Backend::HostGw] {
        let setting = Setting {
            backend,
            path: Path::Flow,
            mark: true,
            broken: None,
        };
        let tests = [RULED, FLOW, MARKS, MARKED, IPV6, beside::RULED]
            .into_iter()
            .flatten();
        trials.extend(tests.map(|(name, test)| trial(setting, name, *test)));
        let read = Setting {
            mark: false,
            ..setting
        };
        let both = SPECIAL_RULED.iter();
        trials.extend(both.clone().map(|test| special(setting, *test)));
        let by_reading = SPECIAL.iter().chain(both);
        trials.extend(by_reading.map(|test| special(read, *test)));
    }
    trials.extend(
        CAUGHT
            .iter()
            .map(|(broken, test, complaint)| caught(broken, *test, complaint)),
    );
    trials.extend(
        ipip::TESTS
            .iter()
            .map(|(name, path, test, lacks)| of_backend("ipip", name, *path, *test, *lacks)),
    );
    for (backend, tests) in [("extension", extension::TESTS), ("alloc", alloc::TESTS)] {
        trials.extend(
            tests
                .iter()
                .map(|(name, test)| of_backend(backend, name, Path::Kernel, *test, || None)),
        );
    }
    trials.extend(stores::trials());
    trials.extend(
        migration::TESTS
            .iter()
            .map(|(name, setting, test)| trial(*setting, name, *test)),
    );
    trials.extend(udp::TESTS.iter().map(|(name, test)| alone(name, *test)));
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn trial(setting: Setting, name: &str, test: Test) -> Trial {
    Trial::ignorable_test(
        format!("{setting}::{name}"),
        move || match support::missing(setting.path) {
            Some(reason) => Ok(Completion::ignored_with(reason)),
            None => match test(setting) {
                Ok(()) => Ok(Completion::Completed),
                Err(error) => match error.downcast::<Skipped>() {
                    Ok(Skipped(reason)) => Ok(Completion::ignored_with(reason)),
                    Err(error) => Err(Failed::from(format!("{error:#}"))),
                },
            },
        },
    )
}

/// A trial of something that not every kernel has.
fn special(setting: Setting, (name, test, lacks): (&str, Test, Lacks)) -> Trial {
    Trial::ignorable_test(
        format!("{setting}::{name}"),
        move || match support::missing(setting.path).or_else(lacks) {
            Some(reason) => Ok(Completion::ignored_with(reason)),
            None => test(setting)
                .map(|()| Completion::Completed)
                .map_err(|error| Failed::from(format!("{error:#}"))),
        },
    )
}

/// A trial of a backend that has no tests but its own: of the setting only the path is used.
fn of_backend(backend: &str, name: &str, path: Path, test: Test, lacks: Lacks) -> Trial {
    let setting = Setting {
        backend: Backend::Vxlan,
        path,
        mark: false,
        broken: None,
    };
    Trial::ignorable_test(
        format!("{backend}::{name}"),
        move || match support::missing(path).or_else(lacks) {
            Some(reason) => Ok(Completion::ignored_with(reason)),
            None => test(setting)
                .map(|()| Completion::Completed)
                .map_err(|error| Failed::from(format!("{error:#}"))),
        },
    )
}

/// A trial of the udp backend's data path, which needs no cluster.
fn alone(name: &str, test: fn() -> support::Outcome) -> Trial {
    Trial::ignorable_test(format!("udp::{name}"), move || {
        if let Some(reason) = support::missing(Path::Kernel) {
            return Ok(Completion::ignored_with(reason));
        }
        test()
            .map(|()| Completion::Completed)
            .map_err(|error| Failed::from(format!("{error:#}")))
    })
}

/// A trial that wants `test` to fail on a wrong object.
fn caught(broken: &'static str, test: Test, complaint: &'static str) -> Trial {
    let setting = Setting {
        backend: Backend::Vxlan,
        path: Path::Flow,
        mark: false,
        broken: Some(broken),
    };
    Trial::ignorable_test(format!("{broken}_is_caught"), move || {
        if std::env::var_os(support::BROKEN_OBJECTS).is_none() {
            return Ok(Completion::ignored_with(
                "no wrong objects: `cargo xtask test` builds them",
            ));
        }
        if let Some(reason) = support::missing(setting.path) {
            return Ok(Completion::ignored_with(reason));
        }
        match test(setting) {
            Ok(()) => Err(Failed::from("the test does not notice what is wrong")),
            Err(error) if error.to_string().contains(complaint) => Ok(Completion::Completed),
            Err(error) => Err(Failed::from(format!(
                "fails for another reason than {complaint:?}: {error:#}"
            ))),
        }
    })
}
