//! What passes between runtime, plugin and delegate, with a delegate that writes down what it is told.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf, process::Command};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::{
    ENV, PLUGIN,
    runtime::{Container, Runtime, files, start, with_runtime},
};
use crate::support::{Outcome, Setting};

/// A `bridge` that keeps what it is told, and answers what it was given.
struct Delegate {
    folder: PathBuf,
}

impl Delegate {
    fn new(runtime: &Runtime<'_>) -> anyhow::Result<Self> {
        let folder = runtime.directory.join("delegate");
        fs::create_dir_all(&folder)?;
        let script = format!(
            "#!/bin/sh\ncd {}\necho $CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME >> calls\ncat > input.$CNI_COMMAND\n\
             [ -e answer.$CNI_COMMAND ] && cat answer.$CNI_COMMAND\n[ ! -e fails.$CNI_COMMAND ]\n",
            folder.display()
        );
        fs::write(folder.join("bridge"), script)?;
        fs::set_permissions(folder.join("bridge"), fs::Permissions::from_mode(0o755))?;
        let delegate = Self { folder };
        delegate.knows("1.0.0")?;
        Ok(delegate)
    }

    fn answers(&self, operation: &str, answer: &str) -> Outcome {
        Ok(fs::write(
            self.folder.join(format!("answer.{operation}")),
            answer,
        )?)
    }

    fn fails(&self, operation: &str, with: &str) -> Outcome {
        fs::write(self.folder.join(format!("fails.{operation}")), "")?;
        self.answers(operation, with)
    }

    fn recovers(&self, operation: &str) -> Outcome {
        Ok(fs::remove_file(
            self.folder.join(format!("fails.{operation}")),
        )?)
    }

    /// Its newest version of the specification.
    fn knows(&self, version: &str) -> Outcome {
        let answer = json!({ "cniVersion": version, "supportedVersions": ["0.3.1", version] });
        self.answers("VERSION", &answer.to_string())
    }

    /// What it was told last by this command.
    fn input(&self, operation: &str) -> anyhow::Result<String> {
        let path = self.folder.join(format!("input.{operation}"));
        fs::read_to_string(&path)
            .with_context(|| format!("{operation} has not come to the delegate"))
    }

    /// All calls but VERSION since the last time.
    fn calls(&self) -> anyhow::Result<Vec<String>> {
        let path = self.folder.join("calls");
        let text = fs::read_to_string(&path).unwrap_or_default();
        fs::write(&path, "")?;
        let calls = text.lines().filter(|call| !call.starts_with("VERSION"));
        Ok(calls.map(|call| call.trim().to_owned()).collect())
    }
}

fn with_delegate(test: impl FnOnce(&Runtime<'_>, &Delegate, &Container) -> Outcome) -> Outcome {
    with_runtime(ENV, |runtime| {
        let delegate = Delegate::new(runtime)?;
        let runtime = Runtime {
            node: runtime.node,
            directory: runtime.directory.clone(),
            path: delegate.folder.clone().into(),
        };
        test(&runtime, &delegate, &runtime.container()?)
    })
}

/// The delegate gets upstream's bytes at ADD, the same at DEL, and results and errors come back as they are.
pub(crate) fn exchanged(_: Setting) -> Outcome {
    with_delegate(|runtime, delegate, container| {
        let mut conf = runtime.conf("0.3.1");
        conf["ipam"] = json!({});
        let result = r#"{ "cniVersion":"0.3.1", "ips":[] , "dns":{}}"#;
        delegate.answers("ADD", result)?;
        let mut command = runtime.command("ADD", Some((container, "eth0")));
        let output = start(&mut command, &conf)?.wait_with_output()?;
        ensure!(output.stdout == result.as_bytes(), "{output:?}");
        let golden = r#"{"cniVersion":"0.3.1","hairpinMode":true,"ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.5.7.0/24"}]],"routes":[{"dst":"10.5.0.0/16"}],"type":"host-local"},"isDefaultGateway":true,"isGateway":true,"mtu":1450,"name":"cbr0","type":"bridge"}"#;
        ensure!(
            delegate.input("ADD")? == golden,
            "{}",
            delegate.input("ADD")?
        );
        let state = runtime.states().join(&container.id);
        ensure!(fs::read_to_string(&state)? == golden);
        let told = String::from_utf8_lossy(&output.stderr);
        ensure!(
            told.contains(&format!(
                "delegateAdd: netconf sent to delegate plugin:\n{golden}\n"
            )),
            "{told}"
        );

        // DEL goes by what is remembered, and the state stays until it has worked.
        conf["delegate"]["mtu"] = 9000.into();
        delegate.fails(
            "DEL",
            r#"{"code":103,"msg":"device is busy","details":"br0"}"#,
        )?;
        let answer = runtime.call("DEL", container, "eth0", &conf)?;
        ensure!(answer.code()? == 103, "{answer:?}");
        ensure!(
            answer.output["msg"] == "device is busy" && answer.output["details"] == "br0",
            "{answer:?}"
        );
        ensure!(state.exists(), "the state went although DEL failed");
        delegate.recovers("DEL")?;
        delegate.answers("DEL", "")?;
        runtime.del(container, &conf)?;
        ensure!(
            delegate.input("DEL")? == golden,
            "{}",
            delegate.input("DEL")?
        );
        ensure!(files(&runtime.states())?.is_empty());

        // A failed ADD leaves its state to the DEL that follows; results of the chain before us go along.
        conf["prevResult"] = json!({ "cniVersion": "0.3.1", "ips": [] });
        for (answer, part) in [
            (r#"{"code":11,"msg":"no"}"#, "no"),
            ("", "netplugin failed with no error message: exit status 1"),
            ("oops", "error parsing its diagnostic message"),
        ] {
            delegate.fails("ADD", answer)?;
            let answer = runtime.call("ADD", container, "eth0", &conf)?;
            let message = answer.output["msg"].as_str().unwrap_or_default();
            ensure!(!answer.success && message.contains(part), "{answer:?}");
            ensure!(state.exists());
        }
        let input: Value = serde_json::from_str(&delegate.input("ADD")?)?;
        ensure!(input["prevResult"] == conf["prevResult"], "{input}");
        runtime.del(container, &conf)?;
        ensure!(files(&runtime.states())?.is_empty());

        // Old plugins do not say which version their result is of.
        delegate.recovers("ADD")?;
        delegate.answers("ADD", r#"{"ips":[]}"#)?;
        let result = runtime.add(container, &conf)?;
        ensure!(result["cniVersion"] == "0.3.1", "{result}");
        delegate.answers("ADD", "nothing")?;
        let answer = runtime.call("ADD", container, "eth0", &conf)?;
        ensure!(answer.code()? == 999, "{answer:?}");
        Ok(())
    })
}

/// STATUS and GC go to a delegate that knows them, and to no other; STATUS tells what is missing.
pub(crate) fn passed_on(_: Setting) -> Outcome {
    with_delegate(|runtime, delegate, container| {
        delegate.answers("ADD", r#"{"cniVersion":"1.1.0","ips":[]}"#)?;
        let conf = runtime.conf("1.1.0");
        let mut request = conf.clone();
        request["cni.dev/valid-attachments"] = json!([{ "containerID": "x", "ifname": "eth0" }]);
        let call =
            |operation, conf: &Value| runtime.run(&mut runtime.command(operation, None), conf);
        call("STATUS", &conf)?.ok()?;
        call("GC", &request)?.ok()?;
        ensure!(delegate.calls()?.is_empty(), "it does not know them");
        delegate.knows("1.1.0")?;
        call("STATUS", &conf)?.ok()?;
        call("GC", &request)?.ok()?;
        ensure!(delegate.calls()? == ["STATUS", "GC"]);
        let input: Value = serde_json::from_str(&delegate.input("GC")?)?;
        ensure!(
            input["cni.dev/valid-attachments"] == request["cni.dev/valid-attachments"]
                && input["type"] == "bridge",
            "{input}"
        );

        // Stale attachments are detached one by one, and one that cannot be keeps none of the others.
        runtime.add(container, &conf)?;
        let other = runtime.container()?;
        runtime.add(&other, &conf)?;
        delegate.calls()?;
        delegate.fails("DEL", r#"{"code":5,"msg":"stuck"}"#)?;
        let answer = call("GC", &request)?;
        let details = answer.output["details"].as_str().unwrap_or_default();
        ensure!(
            answer.code()? == 999 && details.matches("stuck").count() == 2,
            "{answer:?}"
        );
        ensure!(files(&runtime.states())?.len() == 4);
        delegate.recovers("DEL")?;
        delegate.calls()?;
        call("GC", &request)?.ok()?;
        let expected = [container, &other].map(|container| format!("DEL {} eth0", container.id));
        let calls = delegate.calls()?;
        ensure!(
            expected.iter().all(|call| calls.contains(call)),
            "{calls:?}"
        );
        ensure!(files(&runtime.states())?.is_empty());

        delegate.fails("STATUS", r#"{"code":51,"msg":"no addresses"}"#)?;
        let answer = call("STATUS", &conf)?;
        ensure!(
            answer.code()? == 51 && answer.output["msg"] == "no addresses",
            "{answer:?}"
        );
        delegate.recovers("STATUS")?;
        fs::write(runtime.env(), "FLANNEL_MTU=1450\n")?;
        let answer = call("STATUS", &conf)?;
        let message = answer.output["msg"].as_str().unwrap_or_default();
        ensure!(
            answer.code()? == 50 && message.contains("FLANNEL_SUBNET"),
            "{answer:?}"
        );
        fs::write(runtime.env(), ENV)?;
        runtime.add(container, &conf)?;
        fs::remove_file(runtime.env())?;
        let answer = call("STATUS", &conf)?;
        ensure!(answer.code()? == 51, "containers are attached: {answer:?}");
        fs::write(runtime.env(), ENV)?;
        fs::remove_file(delegate.folder.join("bridge"))?;
        let answer = call("STATUS", &conf)?;
        ensure!(answer.code()? == 50, "{answer:?}");
        Ok(())
    })
}

/// Errors are the specification's, with upstream's words.
pub(crate) fn errors(_: Setting) -> Outcome {
    with_delegate(|runtime, delegate, container| {
        let conf = runtime.conf("1.0.0");
        let fails = |operation: &str, conf: &Value, code: u64, part: &str| {
            let answer = runtime.call(operation, container, "eth0", conf)?;
            let message = answer.output["msg"].as_str().unwrap_or_default();
            ensure!(
                answer.code()? == code && message.contains(part),
                "{answer:?}"
            );
            ensure!(answer.output["cniVersion"] == "1.1.0", "{answer:?}");
            Ok(())
        };
        fails("ADD", &json!([]), 6, "failed to load netconf")?;
        fails("ADD", &json!({}), 7, "missing network name")?;
        fails(
            "ADD",
            &runtime.conf("9.9.9"),
            1,
            "incompatible CNI versions",
        )?;
        fails("STATUS", &conf, 1, "config version does not allow STATUS")?;
        fails("UPDATE", &conf, 4, "unknown CNI_COMMAND: UPDATE")?;
        let mut absent = conf.clone();
        absent["delegate"]["type"] = "absent".into();
        fails(
            "ADD",
            &absent,
            999,
            "failed to delegate add: failed to find plugin \"absent\" in path [",
        )?;
        let mut wrong = conf.clone();
        wrong["delegate"]["ipam"] = json!({});
        fails(
            "ADD",
            &wrong,
            7,
            "'delegate' dictionary must not have 'ipam' field",
        )?;
        fs::rename(runtime.env(), runtime.directory.join("away"))?;
        let missing = format!(
            "failed to load flannel 'subnet.env' file: open {}: no such file or directory. Check the flannel pod log for this node.",
            runtime.env().display()
        );
        fails("ADD", &conf, 11, &missing)?;
        ensure!(delegate.calls()?.is_empty(), "the delegate was asked");

        let mut unnamed = runtime.command("ADD", Some((container, "eth0")));
        unnamed.env_remove("CNI_IFNAME").env("CNI_NETNS", "");
        let answer = runtime.run(&mut unnamed, &conf)?;
        ensure!(
            answer.code()? == 4
                && answer.output["msg"] == "required env variables [CNI_NETNS,CNI_IFNAME] missing",
            "{answer:?}"
        );
        let version = runtime
            .run(&mut runtime.command("VERSION", None), &Value::Null)?
            .ok()?;
        ensure!(
            version["supportedVersions"].as_array().map(Vec::len) == Some(7),
            "{version}"
        );
        let by_hand = Command::new(PLUGIN).env_remove("CNI_COMMAND").output()?;
        let about = String::from_utf8(by_hand.stderr)?;
        ensure!(
            by_hand.status.success() && by_hand.stdout.is_empty() && about.contains("1.1.0"),
            "{about}"
        );
        Ok(())
    })
}
