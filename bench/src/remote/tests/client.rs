//! Options that make no sense are refused with the value and what to give instead.

use clap::Parser;

use super::*;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    options: Options,
}

fn refusal(argument: &str) -> String {
    let line = ["bench", "--server=10.5.2.2:5210", argument];
    Line::try_parse_from(line).unwrap_err().to_string()
}

#[test]
fn defaults_are_those_of_the_manual() {
    let line = Line::try_parse_from(["bench", "--server=bench-server:5210"]).unwrap();
    let options = line.options;
    assert_eq!(options.duration, Duration::from_secs(5));
    assert_eq!((options.rounds, options.fast_path), (5, Mode::Flow));
    assert_eq!((options.udp_rate, options.udp_size), (50_000, 64));
}

#[test]
fn wrong_values_are_named_with_the_remedy() {
    for (argument, named) in [
        ("--duration=1ms", "give 100ms to 10m"),
        ("--duration=long", "--duration"),
        ("--rounds=0", "--rounds"),
        ("--fast-path=off", "give flow or subnet"),
        ("--udp-size=9000", "--udp-size"),
        ("--udp-rate=0", "--udp-rate"),
    ] {
        let said = refusal(argument);
        let value = argument.split('=').next_back().unwrap();
        assert!(said.contains(named) && said.contains(value), "{said}");
    }
}

#[test]
fn a_server_without_a_port_is_refused() {
    assert_eq!(
        resolve("127.0.0.1:5210").unwrap(),
        SocketAddr::from(([127, 0, 0, 1], 5210))
    );
    let error = format!("{:#}", resolve("127.0.0.1").unwrap_err());
    assert!(error.starts_with("--server = 127.0.0.1: give"), "{error}");
}
