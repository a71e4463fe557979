//! etcd that wants TLS, certificates or users: agents reach it, and go on when certificates and tokens change.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use lab::{Agent, Cluster, Segment, etcd::PREFIX, process};

use crate::etcds::{Server, knows_peer};
use crate::support::{Outcome, PROMPT, Setting, Skipped, eventually, with_unready_cluster};

/// Certificates in a directory of the lab.
struct Certificates(PathBuf);

impl Certificates {
    fn new(cluster: &Cluster) -> anyhow::Result<Self> {
        let missing = Command::new("openssl").arg("version").output().is_err();
        ensure!(!missing, Skipped("openssl is not installed".to_owned()));
        let directory = cluster.id().directory().join("tls");
        fs::create_dir_all(&directory)?;
        let address = Segment::First.gateway();
        let settings = format!(
            "[req]\ndistinguished_name=name\nprompt=no\n[name]\nCN=flannel\n\
             [authority]\nbasicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\n\
             subjectKeyIdentifier=hash\n\
             [leaf]\nsubjectAltName=IP:{address},IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n"
        );
        fs::write(directory.join("settings"), settings)?;
        Ok(Self(directory))
    }

    fn openssl(&self, arguments: &str) -> Outcome {
        let mut command = Command::new("openssl");
        command
            .current_dir(&self.0)
            .args(arguments.split_whitespace());
        Ok(process::run_command(None, &mut command, "").map(drop)?)
    }

    /// An authority: `<name>.pem`, `<name>.key`.
    fn authority(&self, name: &str) -> Outcome {
        self.openssl(&format!(
            "req -x509 -config settings -extensions authority -subj /CN={name} -days 2 \
             -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key -out {name}.pem"
        ))
    }

    /// A certificate for etcd or an agent, `<name>.pem` and `<name>.key`.
    fn signed(&self, authority: &str, name: &str) -> Outcome {
        self.openssl(&format!(
            "req -config settings -subj /CN={name} -newkey ec -pkeyopt ec_paramgen_curve:P-256 \
             -nodes -keyout {name}.key -out {name}.csr"
        ))?;
        self.openssl(&format!(
            "x509 -req -in {name}.csr -CA {authority}.pem -CAkey {authority}.key -CAcreateserial \
             -days 2 -extfile settings -extensions leaf -out {name}.pem"
        ))
    }

    fn path(&self, file: &str) -> String {
        self.0.join(file).display().to_string()
    }

    /// Puts `<from>`'s files in place of `<to>`'s, each at once, as `mv` does.
    fn replace(&self, from: &str, to: &str) -> Outcome {
        for suffix in ["pem", "key"] {
            let next = self.0.join("next");
            fs::copy(self.path(&format!("{from}.{suffix}")), &next)?;
            fs::rename(&next, self.path(&format!("{to}.{suffix}")))?;
        }
        Ok(())
    }

    fn server(&self, cluster: &Cluster) -> anyhow::Result<Server> {
        let files = [
            format!("--cert-file={}", self.path("server.pem")),
            format!("--key-file={}", self.path("server.key")),
        ];
        let ctl = [
            format!("--cacert={}", self.path("ca.pem")),
            format!("--cert={}", self.path("server.pem")),
            format!("--key={}", self.path("server.key")),
        ];
        Ok(Server::new(cluster, 1, "https")?
            .with(&files)
            .with_ctl(&ctl))
    }
}

/// Runs the agent of node 1 with other arguments, from now on.
fn restart_with(agent: &Agent, arguments: &[String], environment: &[(&str, &str)]) -> Outcome {
    if agent.check_running().is_ok() {
        agent.stop()?;
    }
    agent.configure(|config| {
        config.arguments = arguments.to_vec();
        config.environment = environment
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
    });
    Ok(agent.start()?)
}

/// Waits for a line in what the agent has logged since `from`.
fn logged(agent: &Agent, from: usize, parts: &[&str]) -> Outcome {
    eventually("a line in the log", 2 * PROMPT, || {
        let log = agent.log();
        let new = &log[from..];
        let found = new
            .lines()
            .any(|line| parts.iter().all(|part| line.contains(part)));
        Ok(found
            .then_some(())
            .ok_or_else(|| format!("{parts:?}: {new}")))
    })
}

/// The authority alone verifies etcd, else the system's; what does not verify is said with the remedy.
pub(crate) fn by_the_authority_alone(setting: Setting) -> Outcome {
    with_unready_cluster(setting.cluster(vec![setting.node()]), |cluster| {
        let files = Certificates::new(cluster)?;
        files.authority("ca")?;
        files.authority("other")?;
        files.signed("ca", "server")?;
        let mut server = files.server(cluster)?;
        server.start()?;
        server.put_config(setting)?;
        let agent = cluster.node(1).agent();
        let (url, ca) = (
            format!("--etcd-endpoints={}", server.url()),
            files.path("ca.pem"),
        );

        restart_with(agent, &[url.clone(), format!("--etcd-cafile={ca}")], &[])?;
        agent.wait_ready()?;
        server.put_peer(101)?;
        knows_peer(agent, 101)?;

        // The variable names the system's authorities.
        restart_with(agent, std::slice::from_ref(&url), &[("SSL_CERT_FILE", &ca)])?;
        agent.wait_ready()?;
        server.put_peer(102)?;
        knows_peer(agent, 102)?;

        let before = agent.log().len();
        let plain = url.replace("https:", "http:");
        restart_with(agent, &[plain], &[])?;
        logged(agent, before, &["WARN", "etcd at http://", "https"])?;

        let before = agent.log().len();
        let other = format!("--etcd-cafile={}", files.path("other.pem"));
        restart_with(agent, &[url, other], &[])?;
        logged(agent, before, &["WARN", "UnknownIssuer", "--etcd-cafile"])?;
        // It waits, and can be stopped.
        Ok(agent.stop()?)
    })
}

/// Certificates of the client are asked for, changed while the agent runs, and wrong ones harm nothing.
pub(crate) fn with_certificates_that_change(setting: Setting) -> Outcome {
    with_unready_cluster(setting.cluster(vec![setting.node()]), |cluster| {
        let files = Certificates::new(cluster)?;
        for authority in ["ca", "ca2"] {
            files.authority(authority)?;
        }
        for (authority, name) in [
            ("ca", "server"),
            ("ca", "agent"),
            ("ca", "second"),
            ("ca2", "server2"),
            ("ca2", "third"),
        ] {
            files.signed(authority, name)?;
        }
        let both =
            fs::read_to_string(files.path("ca.pem"))? + &fs::read_to_string(files.path("ca2.pem"))?;
        let wants = [
            "--client-cert-auth".to_owned(),
            format!("--trusted-ca-file={}", files.path("trusted.pem")),
        ];
        fs::write(files.path("trusted.pem"), &both)?;
        let mut server = files.server(cluster)?.with(&wants);
        server.start()?;
        server.put_config(setting)?;
        let agent = cluster.node(1).agent();
        fs::copy(files.path("ca.pem"), files.path("authority.pem"))?;
        let authority = [
            format!("--etcd-endpoints={}", server.url()),
            format!("--etcd-cafile={}", files.path("authority.pem")),
        ];

        let before = agent.log().len();
        restart_with(agent, &authority, &[])?;
        logged(agent, before, &["WARN", "--etcd-certfile"])?;
        let identity = [
            format!("--etcd-certfile={}", files.path("agent.pem")),
            format!("--etcd-keyfile={}", files.path("agent.key")),
        ];
        restart_with(agent, &[&authority[..], &identity[..]].concat(), &[])?;
        agent.wait_ready()?;

        let before = agent.log().len();
        files.replace("second", "agent")?;
        logged(
            agent,
            before,
            &["INFO", "connected to etcd with the new ones"],
        )?;
        server.put_peer(101)?;
        knows_peer(agent, 101)?;

        // Half of a change, and a wrong one: the connection stays.
        let before = agent.log().len();
        fs::write(files.path("agent.pem"), "nonsense")?;
        logged(agent, before, &["WARN", "--etcd-certfile", "kept"])?;
        server.put_peer(102)?;
        knows_peer(agent, 102)?;

        // Another authority for both ends.
        let before = agent.log().len();
        fs::write(files.path("authority.pem"), &both)?;
        files.replace("third", "agent")?;
        logged(
            agent,
            before,
            &["INFO", "connected to etcd with the new ones"],
        )?;
        server.kill()?;
        files.replace("server2", "server")?;
        fs::copy(files.path("ca2.pem"), files.path("ca.pem"))?;
        server.start()?;
        server.put_peer(103)?;
        knows_peer(agent, 103)
    })
}

/// Life of a token in seconds.
const TOKEN: u64 = 1;

/// Tokens that etcd remembers.
pub(crate) fn with_users(setting: Setting) -> Outcome {
    users(setting, |_| Ok(format!("--auth-token-ttl={TOKEN}")))
}

/// Tokens that etcd signs; each change of a user makes all of them old.
pub(crate) fn with_users_and_signed_tokens(setting: Setting) -> Outcome {
    users(setting, |cluster| {
        let files = Certificates::new(cluster)?;
        files.openssl("ecparam -name prime256v1 -genkey -noout -out token.key")?;
        files.openssl("ec -in token.key -pubout -out token.pub")?;
        let (public, private) = (files.path("token.pub"), files.path("token.key"));
        Ok(format!(
            "--auth-token=jwt,pub-key={public},priv-key={private},sign-method=ES256,ttl={TOKEN}s"
        ))
    })
}

/// Tokens expire and passwords change: requests go on, or the reason is said and nothing is withdrawn.
fn users(setting: Setting, tokens: impl Fn(&Cluster) -> anyhow::Result<String>) -> Outcome {
    with_unready_cluster(setting.cluster(vec![setting.node()]), |cluster| {
        let arguments = [tokens(cluster)?, "--bcrypt-cost=4".to_owned()];
        let mut server = Server::new(cluster, 1, "http")?.with(&arguments);
        server.start()?;
        server.put_config(setting)?;
        for command in [
            "user add root:root",
            "user grant-role root root",
            "role add flannel",
            &format!("role grant-permission flannel --prefix=true readwrite {PREFIX}/"),
            "user add flannel:first",
            "user grant-role flannel flannel",
            "auth enable",
        ] {
            let words: Vec<_> = command.split_whitespace().collect();
            server.ctl(&words).with_context(|| command.to_owned())?;
        }
        let server = server.with_ctl(&["--user=root:root".to_owned()]);
        let agent = cluster.node(1).agent();
        let url = format!("--etcd-endpoints={}", server.url());
        let user = "--etcd-username=flannel".to_owned();

        let before = agent.log().len();
        restart_with(agent, std::slice::from_ref(&url), &[])?;
        logged(agent, before, &["WARN", "etcd wants a user"])?;
        let before = agent.log().len();
        let wrong = [
            url.clone(),
            user.clone(),
            "--etcd-password=wrong".to_owned(),
        ];
        restart_with(agent, &wrong, &[])?;
        logged(
            agent,
            before,
            &["WARN", "authentication failed", "--etcd-password"],
        )?;
        // As old unit files do it.
        restart_with(agent, &[url, user], &[("FLANNELD_ETCD_PASSWORD", "first")])?;
        let own = agent.wait_ready()?.lease.context("no lease")?.subnet;
        server.put_peer(101)?;
        knows_peer(agent, 101)?;

        thread::sleep(Duration::from_secs(3 * TOKEN));
        let key = format!("{PREFIX}/subnets/{}", own.replace('/', "-"));
        server.ctl(&["del", "--", &key])?;
        eventually("the lease, with a new token", PROMPT, || {
            Ok(server
                .has_lease(&own)?
                .then_some(())
                .ok_or_else(|| "none".into()))
        })?;
        ensure!(agent.status()?.problems.is_empty(), "{:?}", agent.status()?);

        server.ctl(&["user", "add", "other:other"])?;
        server.ctl(&["del", "--", &key])?;
        eventually("the lease, with users that have changed", PROMPT, || {
            Ok(server
                .has_lease(&own)?
                .then_some(())
                .ok_or_else(|| "none".into()))
        })?;

        password(&server, "second")?;
        server.ctl(&["del", "--", &key])?;
        agent.wait_status("the reason", |status| {
            status
                .problems
                .iter()
                .any(|text| text.contains("--etcd-password"))
        })?;
        let status = agent.status()?;
        ensure!(status.ready && status.peers.len() == 1, "{status:?}");
        password(&server, "first")?;
        eventually("the lease, with the old password", 3 * PROMPT, || {
            Ok(server
                .has_lease(&own)?
                .then_some(())
                .ok_or_else(|| "none".into()))
        })?;
        agent.wait_status("no problem", |status| status.problems.is_empty())?;
        let log = fs::read_to_string(Path::new(&agent.log_path()))?;
        ensure!(!log.contains("first"), "a password in the log: {log}");
        Ok(())
    })
}

fn password(server: &Server, password: &str) -> Outcome {
    server
        .ctl_with_input(
            &["user", "passwd", "flannel", "--interactive=false"],
            &format!("{password}\n"),
        )
        .map(drop)
}
