//! Wrong input is refused with one clear message, and the right one is picked up.

use std::{thread, time::Duration};

use anyhow::ensure;
use lab::NodeConfig;

use crate::support::{Outcome, PROMPT, Setting, eventually, udp_arrives, with_cluster};

/// A wrong config, what the message about it must name, and nothing else.
const WRONG: [(&str, [&str; 2]); 4] = [
    (r#"{"Network":"10.5.0.0/16","#, ["network config", "JSON"]),
    (r#"{"Network":"10.5.0.0/99"}"#, ["Network", "10.5.0.0/99"]),
    (
        r#"{"Network":"10.5.0.0/16","SubnetLen":8,"Backend":{"Type":"vxlan"}}"#,
        ["SubnetLen", "8"],
    ),
    (
        r#"{"Network":"10.5.0.0/16","Backend":{"Type":"teleport"}}"#,
        ["Type", "teleport"],
    ),
];

pub(crate) fn malformed_network_config(setting: Setting) -> Outcome {
    with_cluster(setting.pair(), |cluster| {
        let (node, etcd) = (cluster.node(1), cluster.etcd());
        let agent = node.agent();
        agent.stop()?;
        for (number, (config, names)) in WRONG.into_iter().enumerate() {
            etcd.put_config(config)?;
            if number == 0 {
                agent.start()?;
            }
            eventually("a message about the config", PROMPT, || {
                let log = agent.log();
                let last = warnings(&log).pop().unwrap_or_default();
                Ok(names
                    .iter()
                    .all(|name| last.contains(name))
                    .then_some(())
                    .ok_or_else(|| format!("{config}: {last}")))
            })?;
        }
        // Looked at several times by now, and said once.
        thread::sleep(Duration::from_millis(2200));
        let log = agent.log();
        for (config, names) in WRONG {
            let said = warnings(&log)
                .into_iter()
                .filter(|line| names.iter().all(|name| line.contains(name)))
                .count();
            ensure!(said == 1, "{said} messages about {config}:\n{log}");
        }
        etcd.put_config(&setting.network())?;
        agent.wait_ready()?;
        udp_arrives(&node.pods()[0], &cluster.node(2).pods()[0], 200, 64).map(drop)
    })
}

/// The log's lines about the network config in etcd.
fn warnings(log: &str) -> Vec<&str> {
    log.lines()
        .filter(|line| line.contains("WARN") && line.contains("network config at"))
        .collect()
}

/// An agent that finds no config waits for it.
pub(crate) fn no_network_config(setting: Setting) -> Outcome {
    with_cluster(
        setting.cluster(vec![setting.node(), NodeConfig::stock()]),
        |cluster| {
            let agent = cluster.node(1).agent();
            agent.stop()?;
            cluster
                .etcd()
                .delete(&format!("{}/config", lab::etcd::PREFIX))?;
            agent.start()?;
            eventually("a message", PROMPT, || {
                let log = agent.log();
                Ok(log
                    .contains("no network config at")
                    .then_some(())
                    .ok_or(log))
            })?;
            cluster.etcd().put_config(&setting.network())?;
            agent.wait_ready()?;
            Ok(())
        },
    )
}
