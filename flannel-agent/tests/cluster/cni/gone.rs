//! DEL and GC: what has come goes, whatever was lost in between.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use lab::{cni::plugin_directory, process, wait};
use serde_json::{Value, json};

use super::{
    ENV,
    runtime::{Container, Runtime, after, files, pings, start, with_runtime},
};
use crate::support::{Outcome, Setting};

/// How long a delegate waits that is to be overtaken.
const DELAY: Duration = Duration::from_secs(1);

/// A plugin that is killed while its delegate is about to attach leaves nothing after DEL, whether the delegate goes on
/// or not.
pub(crate) fn killed(_: Setting) -> Outcome {
    with_runtime(ENV, |runtime| {
        let slow = Runtime {
            node: runtime.node,
            directory: runtime.directory.clone(),
            path: slow_plugins(runtime)?,
        };
        for goes_on in [true, false] {
            let [started, ended, aborts] =
                ["started", "ended", "aborts"].map(|name| runtime.directory.join(name));
            for file in [&started, &ended, &aborts] {
                fs::remove_file(file).ok();
            }
            if !goes_on {
                fs::write(&aborts, "")?;
            }
            let conf = runtime.conf("1.0.0");
            let container = runtime.container()?;
            let mut child = start(&mut slow.command("ADD", Some((&container, "eth0"))), &conf)?;
            wait::until("the delegate", Duration::from_secs(10), || {
                Ok(started.exists().then_some(()).ok_or_else(String::new))
            })?;
            child.kill()?;
            child.wait()?;
            ensure!(
                runtime.states().join(&container.id).exists(),
                "the state is not written before the delegate runs"
            );
            ensure!(!ended.exists(), "the delegate was not overtaken");
            let begin = Instant::now();
            slow.del(&container, &conf)?;
            ensure!(
                ended.exists() == goes_on,
                "DEL after {:?} did not wait for the delegate",
                begin.elapsed()
            );
            runtime.nothing_is_left()?;
        }
        Ok(())
    })
}

/// Commands for one container that come all at once, as no runtime should send them, end in nothing after one more DEL.
pub(crate) fn same_container(_: Setting) -> Outcome {
    /// Commands at a time.
    const THREADS: usize = 6;
    /// Rounds of ADD and DEL of each.
    const ROUNDS: usize = 4;
    with_runtime(ENV, |runtime| {
        let conf = runtime.conf("1.0.0");
        let container = runtime.container()?;
        let added = AtomicUsize::new(0);
        thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS)
                .map(|number| {
                    let (container, conf, added) = (&container, &conf, &added);
                    scope.spawn(move || -> Outcome {
                        for round in 0..ROUNDS {
                            if (number + round) % 2 == 0 {
                                // It fails where the interface is there already.
                                let answer = runtime.call("ADD", container, "eth0", conf)?;
                                added.fetch_add(answer.success.into(), Ordering::Relaxed);
                            } else {
                                runtime.del(container, conf)?;
                            }
                        }
                        Ok(())
                    })
                })
                .collect();
            let mut results = threads.into_iter().map(|thread| thread.join());
            results.try_for_each(|result| result.expect("no thread panics"))
        })?;
        ensure!(added.into_inner() > 0, "no ADD succeeded");
        runtime.del(&container, &conf)?;
        runtime.nothing_is_left()
    })
}

/// A directory with a `bridge` that waits before ADD.
fn slow_plugins(runtime: &Runtime<'_>) -> anyhow::Result<std::ffi::OsString> {
    let real = plugin_directory()?;
    let folder = runtime.directory.join("slow");
    fs::create_dir_all(&folder)?;
    let bridge = folder.join("bridge");
    let (here, real_bridge) = (runtime.directory.display(), real.join("bridge"));
    let script = format!(
        "#!/bin/sh\n[ $CNI_COMMAND = ADD ] || exec {real}\ntouch {here}/started\nsleep {delay}\n\
         [ -e {here}/aborts ] && exit 1\n{real}\ntouch {here}/ended\n",
        real = real_bridge.display(),
        delay = DELAY.as_secs(),
    );
    fs::write(&bridge, script)?;
    fs::set_permissions(&bridge, fs::Permissions::from_mode(0o755))?;
    Ok(std::env::join_paths([folder, real])?)
}

/// DEL frees address and veth when the state file is upstream's, damaged, or gone, and `subnet.env` with it.
pub(crate) fn without_state(_: Setting) -> Outcome {
    type Loss = fn(&Runtime<'_>, &Path) -> Outcome;
    let losses: [(&str, Loss); 5] = [
        ("upstream's state", |runtime, state| {
            // No link says whose it is, and the agent is away.
            let link = format!("{}:eth0", state.display());
            fs::remove_file(link)?;
            fs::remove_file(runtime.env())?;
            Ok(())
        }),
        ("a damaged state", |_, state| {
            let text = fs::read(state)?;
            fs::write(state, &text[..text.len() / 2])?;
            Ok(())
        }),
        ("no state", |_, state| Ok(fs::remove_file(state)?)),
        ("neither state nor subnet.env", |runtime, state| {
            fs::remove_file(runtime.env())?;
            Ok(fs::remove_file(state)?)
        }),
        ("nothing at all", |runtime, _| {
            fs::remove_file(runtime.env())?;
            Ok(fs::remove_dir_all(runtime.states())?)
        }),
    ];
    with_runtime(ENV, |runtime| {
        for (what, lose) in losses {
            for with_result in [true, false] {
                fs::write(runtime.env(), ENV)?;
                let conf = runtime.conf("1.0.0");
                let container = runtime.container()?;
                let result = runtime.add(&container, &conf)?;
                ensure!(runtime.addresses()?.len() == 1);
                lose(runtime, &runtime.states().join(&container.id))?;
                let conf = if with_result {
                    after(&conf, &result)
                } else {
                    conf
                };
                runtime.del(&container, &conf).context(what)?;
                runtime.nothing_is_left().context(what)?;
                runtime.del(&container, &conf).context(what)?;
            }
        }
        // What was never there, and could not have been.
        let container = runtime.container()?;
        let mut conf = runtime.conf("1.0.0");
        conf["delegate"]["name"] = "wrong".into();
        fs::write(runtime.env(), ENV)?;
        runtime.del(&container, &conf)?;
        // What upstream's plugin finds of ours is a file of the same name with what it hands to the delegate.
        let conf = runtime.conf("1.0.0");
        runtime.add(&container, &conf)?;
        let state = fs::read_to_string(runtime.states().join(&container.id))?;
        let state: Value = serde_json::from_str(&state)?;
        let bridge = plugin_directory()?.join("bridge");
        let mut upstream = runtime.command_of(&bridge, "DEL", Some((&container, "eth0")));
        runtime.run(&mut upstream, &state)?.ok()?;
        ensure!(runtime.addresses()?.is_empty(), "an address is taken");
        runtime.del(&container, &conf)?;
        runtime.nothing_is_left()
    })
}

/// Two interfaces of one container do not meet, in whichever order they go.
pub(crate) fn interfaces(_: Setting) -> Outcome {
    with_runtime(ENV, |runtime| {
        for order in [["eth0", "eth1"], ["eth1", "eth0"]] {
            let conf = runtime.conf("1.0.0");
            let container = runtime.container()?;
            // Only one can have the default route.
            let mut second = conf.clone();
            second["delegate"] = json!({ "hairpinMode": true });
            let mut results = Vec::new();
            for (interface, conf) in [("eth0", &conf), ("eth1", &second)] {
                let result = runtime.call("ADD", &container, interface, conf)?.ok()?;
                results.push((interface, after(conf, &result)));
            }
            ensure!(runtime.addresses()?.len() == 2);
            for interface in order {
                let conf = |name: &str| {
                    let found = results.iter().find(|(known, _)| *known == name);
                    &found.expect("both are known").1
                };
                let call = |operation, name: &str| {
                    runtime.call(operation, &container, name, conf(name))?.ok()
                };
                call("DEL", interface)?;
                call("DEL", interface)?;
                if interface == order[0] {
                    let arguments = ["link", "show", order[1]];
                    process::run(Some(&container.netns), "ip", &arguments)?;
                    let left = runtime.left()?;
                    // A veth, an address, a state file and a link, if any, to it.
                    ensure!((3..=4).contains(&left.len()), "{order:?}: {left:?}");
                }
            }
            runtime.nothing_is_left()?;
        }
        Ok(())
    })
}

/// GC detaches what the runtime does not know, of this network, and nothing else.
pub(crate) fn collected(_: Setting) -> Outcome {
    with_runtime(ENV, |runtime| {
        let conf = runtime.conf("1.0.0");
        let [stays, goes, upstreams] = [(); 3].map(|()| runtime.container());
        let (stays, goes, upstreams) = (stays?, goes?, upstreams?);
        for container in [&stays, &goes, &upstreams] {
            runtime.add(container, &conf)?;
        }
        let states = runtime.states();
        fs::remove_file(states.join(format!("{}:eth0", upstreams.id)))?;
        fs::write(states.join("other"), r#"{"name":"other","type":"bridge"}"#)?;
        fs::write(states.join("damaged"), r#"{"name":"#)?;
        fs::write(states.join(".left.lock"), "")?;
        // Their namespaces are gone with their processes.
        for container in [&goes, &upstreams] {
            lab::netns::remove(container.netns.path())?;
        }

        let mut request = runtime.conf("1.1.0");
        let collect = |request: &Value| runtime.run(&mut runtime.command("GC", None), request);
        let answer = collect(&request)?;
        ensure!(answer.code()? == 7, "without a list: {answer:?}");
        request["cni.dev/valid-attachments"] = attachments(&[&stays]);
        ensure!(
            runtime.addresses()?.len() == 3,
            "GC without a list did something"
        );
        collect(&request)?.ok()?;
        let expected = [
            stays.id.clone(),
            format!("{}:eth0", stays.id),
            "other".into(),
        ];
        let mut names = files(&states)?;
        names.sort();
        ensure!(names == sorted(expected), "{names:?}");
        ensure!(
            runtime.addresses()?.len() == 1,
            "{:?}",
            runtime.addresses()?
        );
        pings(&stays, "10.5.7.1")?;

        // Nil, as Go writes a list without members.
        request["cni.dev/valid-attachments"] = Value::Null;
        collect(&request)?.ok()?;
        ensure!(files(&states)? == ["other"], "{:?}", files(&states)?);
        ensure!(runtime.addresses()?.is_empty());
        let old = collect(&runtime.conf("1.0.0"))?;
        ensure!(old.code()? == 1, "{old:?}");
        let links = process::run(Some(runtime.node.netns()), "ip", &["link", "show"])?;
        ensure!(links.contains("cni0"), "{links}");
        Ok(())
    })
}

fn attachments(containers: &[&Container]) -> Value {
    let attachment =
        |container: &&Container| json!({ "containerID": container.id, "ifname": "eth0" });
    containers.iter().map(attachment).collect()
}

fn sorted<const N: usize>(mut names: [String; N]) -> [String; N] {
    names.sort();
    names
}
