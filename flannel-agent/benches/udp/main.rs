//! The udp backend against upstream's way to carry packets: `cargo bench -p flannel-agent --bench udp`, as root.
//!
//! Two nodes are network namespaces with a link between them and a proxy each: ours, or one with upstream's thread and calls
//! (see [`baseline`]). Both carry the same loads in turn, in one run, in an order that changes from round to round. The
//! report shows medians of the rounds, and median, least and most of the rounds' ratios.
//!
//! `FLANNEL_UDP_PROXY` names a program as a third: it is started as `PROGRAM NETNS ADDRESS BIND PORT MTU SUBNET=NODE`, enters
//! the namespace, and prints the name of the device that it has made. `FLANNEL_UDP_ROUNDS` is how many rounds there are.

mod baseline;
mod load;
mod tunnel;

use std::{env, process::ExitCode};

use anyhow::{Context as _, Result, bail};
use load::{Load, Sample};
use tunnel::{Carrier, Tunnel};

/// Rounds, without other wish.
const ROUNDS: usize = 5;

fn main() -> ExitCode {
    // `cargo bench` says so; `cargo test --benches` does not.
    if !env::args().any(|argument| argument == "--bench") {
        return ExitCode::SUCCESS;
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("network namespaces need root");
    }
    lab::signals::tear_down_on_signals(lab::signals::exit_code)?;
    let rounds = match env::var("FLANNEL_UDP_ROUNDS") {
        Ok(text) => text.parse().context("FLANNEL_UDP_ROUNDS is no number")?,
        Err(_) => ROUNDS,
    };
    let mut carriers = vec![Carrier::Upstream, Carrier::Ours];
    carriers.extend(env::var_os("FLANNEL_UDP_PROXY").map(|path| Carrier::Program(path.into())));
    let mut samples = vec![vec![Vec::new(); carriers.len()]; Load::ALL.len()];
    for round in 0..rounds {
        for turn in 0..carriers.len() {
            let index = (turn + round) % carriers.len();
            let tunnel = Tunnel::start(&carriers[index])?;
            for (load, samples) in Load::ALL.iter().zip(&mut samples) {
                let sample = load.run(&tunnel);
                samples[index]
                    .push(sample.with_context(|| format!("{load}, {}", carriers[index]))?);
            }
        }
    }
    for (load, samples) in Load::ALL.iter().zip(&samples) {
        report(*load, &carriers, samples);
    }
    Ok(())
}

fn report(load: Load, carriers: &[Carrier], samples: &[Vec<Sample>]) {
    println!("{load}");
    for (carrier, of) in carriers.iter().zip(samples) {
        let rate = median(of.iter().map(|sample| sample.rate).collect());
        let cpu = median(of.iter().map(|sample| sample.cpu).collect());
        print!(
            "  {carrier:<40} {rate:>9.1} {}, {cpu:>7.2} µs CPU each",
            load.unit()
        );
        if *carrier == Carrier::Ours {
            println!();
            continue;
        }
        let ours = carriers
            .iter()
            .position(|carrier| *carrier == Carrier::Ours)
            .expect("always there");
        let ratios = |value: fn(&Sample) -> f64| {
            let pairs = samples[ours].iter().zip(of);
            let mut ratios: Vec<_> = pairs
                .map(|(ours, other)| value(ours) / value(other))
                .collect();
            ratios.sort_by(f64::total_cmp);
            let (least, most) = (ratios[0], ratios[ratios.len() - 1]);
            format!("{:.2} ({least:.2} to {most:.2})", median(ratios))
        };
        println!(
            "; ours: rate × {}, CPU × {}",
            ratios(|it| it.rate),
            ratios(|it| it.cpu)
        );
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) {
        f64::midpoint(values[middle - 1], values[middle])
    } else {
        values[middle]
    }
}
