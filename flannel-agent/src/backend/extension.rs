//! The extension backend: commands of the operator bring about what other backends do. Pure: which command is run with
//! which environment; `reconcile::extension` runs them.
//!
//! As upstream's `pkg/backend/extension`: no shell; the text is split at white space, and in each part `$NAME` stands for
//! the value of a variable.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

use super::Reach;
use crate::{family::PerFamily, lease::Lease, lease::value::BackendData, netconf::NetworkConfig};

/// A node as commands are told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its subnets.
    pub subnets: PerFamily<IpNet>,
    /// Its addresses.
    pub addresses: PerFamily<IpAddr>,
    /// What its first command has printed; empty if it has none.
    pub data: String,
}

/// A command that is ready to be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The field of the network config, for messages: `SubnetAddCommand`.
    pub field: &'static str,
    /// Program and arguments; never empty, but each may be.
    pub arguments: Vec<String>,
    /// Variables beside those that the agent has itself.
    pub variables: Vec<(&'static str, String)>,
    /// What it finds on its standard input.
    pub input: String,
}

impl Node {
    /// Another node, if its backend is extension.
    pub fn of(lease: &Lease) -> Option<Self> {
        let BackendData::Extension(data) = &lease.attributes.backend else {
            return None;
        };
        Some(Self {
            subnets: lease.subnets,
            addresses: lease.attributes.addresses,
            data: data.clone().unwrap_or_default(),
        })
    }

    fn variables(&self) -> Vec<(&'static str, String)> {
        // What does not exist is empty: a variable of the agent's own must not be taken for it.
        let net = |net: Option<IpNet>| net.map(|net| net.to_string()).unwrap_or_default();
        let address = |ip: Option<IpAddr>| ip.map(|ip| ip.to_string()).unwrap_or_default();
        vec![
            ("SUBNET", net(self.subnets.v4)),
            ("IPV6SUBNET", net(self.subnets.v6)),
            ("PUBLIC_IP", address(self.addresses.v4)),
            ("PUBLIC_IPV6", address(self.addresses.v6)),
        ]
    }

    /// What is run for this other node's subnet; none if `text` is empty.
    pub fn command(&self, field: &'static str, text: &str) -> Option<Command> {
        Command::new(field, text, self.variables(), &self.data)
    }

    /// What is run for this node itself, once it has a lease.
    pub fn own_command(
        &self,
        field: &'static str,
        text: &str,
        config: &NetworkConfig,
    ) -> Option<Command> {
        let network = config.networks().v4;
        let network = network.map(|net| net.to_string()).unwrap_or_default();
        let mut variables = vec![("NETWORK", network)];
        variables.extend(self.variables());
        Command::new(field, text, variables, "")
    }
}

impl Command {
    /// The command that `text` stands for; none if there is nothing but white space in it.
    pub fn new(
        field: &'static str,
        text: &str,
        variables: Vec<(&'static str, String)>,
        input: &str,
    ) -> Option<Self> {
        let mut environment: BTreeMap<String, String> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        environment.extend(
            variables
                .iter()
                .map(|(name, value)| ((*name).to_owned(), value.clone())),
        );
        let arguments: Vec<String> = text
            .split_whitespace()
            .map(|part| expand(part, &environment))
            .collect();
        (!arguments.is_empty()).then(|| Self {
            field,
            arguments,
            variables,
            input: format!("{input}\n"),
        })
    }
}

/// Only leases of the same backend concern the commands.
pub(super) fn reach(backend: &BackendData) -> Result<Reach, String> {
    match backend {
        BackendData::Extension(_) => Ok(Reach::Elsewhere),
        other => Err(format!(
            "its BackendType is \"{}\", this node's is extension",
            other.kind()
        )),
    }
}

/// Replaces `$NAME` and `${NAME}` as Go's `os.Expand`: by nothing if there is no such variable.
fn expand(text: &str, environment: &BTreeMap<String, String>) -> String {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        expanded += before;
        rest = match name(after) {
            Name::None => {
                expanded.push('$');
                after
            }
            Name::Malformed(rest) => rest,
            Name::Of(name, rest) => {
                expanded += environment.get(name).map_or("", String::as_str);
                rest
            }
        };
    }
    expanded + rest
}

/// What follows a `$`.
enum Name<'a> {
    /// No name: the `$` stands for itself.
    None,
    /// A brace without a name or an end, which is left out, and what follows.
    Malformed(&'a str),
    /// A name, and what follows it.
    Of(&'a str, &'a str),
}

fn name(text: &str) -> Name<'_> {
    /// Names of one character that shells know.
    const SPECIAL: &str = "*#$@!?-0123456789";
    if let Some(inside) = text.strip_prefix('{') {
        return match inside.split_once('}') {
            None => Name::Malformed(inside),
            Some(("", rest)) => Name::Malformed(rest),
            Some((name, rest)) => Name::Of(name, rest),
        };
    }
    let length = if text.starts_with(|first| SPECIAL.contains(first)) {
        1
    } else {
        text.find(|c: char| c != '_' && !c.is_ascii_alphanumeric())
            .unwrap_or(text.len())
    };
    match text.split_at(length) {
        ("", _) => Name::None,
        (name, rest) => Name::Of(name, rest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_replaced_as_go_does() {
        let environment = [("A", "1"), ("A_B2", "x y"), ("-", "dash")];
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let environment = BTreeMap::from(environment);
        for (text, expected) in [
            ("plain", "plain"),
            ("$A", "1"),
            ("a$A/b", "a1/b"),
            ("${A}$A_B2", "1x y"),
            ("$A-b", "1-b"),
            ("$NO$A", "1"),
            ("${NO}", ""),
            ("$", "$"),
            ("$/$A", "$/1"),
            ("a$", "a$"),
            ("${}x", "x"),
            ("${A", "A"),
            ("$$A", "A"),
            ("$1A", "A"),
            ("$-x", "dashx"),
            ("\"$A\"", "\"1\""),
        ] {
            assert_eq!(expand(text, &environment), expected, "{text}");
        }
    }

    fn node() -> Node {
        Node {
            subnets: PerFamily::v4("10.5.7.0/24".parse().unwrap()),
            addresses: PerFamily::v4("192.168.100.2".parse().unwrap()),
            data: "the key".into(),
        }
    }

    #[test]
    fn commands_are_told_of_the_node() {
        let text = "  ip route\tadd $SUBNET via ${PUBLIC_IP} x$IPV6SUBNET ";
        let command = node().command("SubnetAddCommand", text).unwrap();
        assert_eq!(
            command.arguments,
            [
                "ip",
                "route",
                "add",
                "10.5.7.0/24",
                "via",
                "192.168.100.2",
                "x"
            ]
        );
        assert_eq!(command.input, "the key\n");
        let variables = [
            ("SUBNET", "10.5.7.0/24"),
            ("IPV6SUBNET", ""),
            ("PUBLIC_IP", "192.168.100.2"),
            ("PUBLIC_IPV6", ""),
        ]
        .map(|(name, value)| (name, value.to_owned()));
        assert_eq!(command.variables, variables);

        let config = NetworkConfig::parse(br#"{"Network":"10.5.0.0/16"}"#).unwrap();
        let own = node().own_command("PostStartupCommand", "x $NETWORK", &config);
        let own = own.unwrap();
        assert_eq!(own.arguments, ["x", "10.5.0.0/16"]);
        assert_eq!(own.input, "\n");
        assert_eq!(own.variables[0], ("NETWORK", "10.5.0.0/16".to_owned()));
        assert_eq!(own.variables[1..], variables);
    }

    #[test]
    fn an_empty_command_is_none() {
        assert_eq!(node().command("SubnetAddCommand", " \n"), None);
    }
}
