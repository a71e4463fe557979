//! An agent gets its mode back, whatever happens in between.

use std::{
    fs,
    os::unix::net::UnixListener,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use super::*;

/// Something that answers as an agent does, and remembers what it was asked for.
struct Pretender {
    directory: PathBuf,
    modes: Arc<Mutex<Vec<String>>>,
}

impl Pretender {
    /// One with a mode; it becomes active only if `works`.
    fn start(mode: &str, works: bool) -> (Self, Agent) {
        Self::busy(mode, works, 0)
    }

    /// One that answers so many requests for a mode with the old status, without doing anything.
    fn busy(mode: &str, works: bool, mut ignored: u32) -> (Self, Agent) {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("bench-agent-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        fs::create_dir(&directory).unwrap();
        let socket = directory.join("agent.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let modes = Arc::new(Mutex::new(vec![mode.to_owned()]));
        let asked = Arc::clone(&modes);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut request = String::new();
                stream.read_to_string(&mut request).unwrap();
                let mut asked = asked.lock().unwrap();
                if let Some(mode) = request.strip_prefix("fast-path ") {
                    if ignored == 0 {
                        asked.push(mode.trim_end().to_owned());
                    }
                    ignored = ignored.saturating_sub(1);
                }
                let mode = asked.last().unwrap();
                let active = works && mode != "off";
                let text = format!(
                    r#"{{"fast_path":{{"mode":"{mode}","active":{active},"reason":"no right","remedy":"give it"}}}}"#
                );
                stream.write_all(text.as_bytes()).unwrap();
            }
        });
        (Self { directory, modes }, Agent::new(&socket))
    }

    fn modes(&self) -> Vec<String> {
        self.modes.lock().unwrap().clone()
    }
}

impl Drop for Pretender {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.directory).ok();
    }
}

#[test]
fn the_mode_that_was_found_comes_back_once() {
    let (pretender, agent) = Pretender::start("subnet", true);
    assert_eq!(agent.restore().unwrap(), None, "nothing was changed");
    agent.set(Mode::Off).unwrap();
    agent.set(Mode::Flow).unwrap();
    agent.set(Mode::Off).unwrap();
    assert_eq!(agent.restore().unwrap(), Some(Mode::Subnet));
    assert_eq!(agent.restore().unwrap(), None);
    assert_eq!(
        pretender.modes(),
        ["subnet", "off", "flow", "off", "subnet"]
    );
}

#[test]
fn a_busy_agent_is_asked_again() {
    let (pretender, agent) = Pretender::busy("flow", true, 2);
    agent.set(Mode::Off).unwrap();
    assert_eq!(pretender.modes(), ["flow", "off"]);
}

#[test]
fn an_error_or_a_panic_restores_too() {
    let (pretender, agent) = Pretender::start("flow", true);
    let ended = std::panic::catch_unwind(|| {
        let _restoring = Restoring(&agent);
        agent.set(Mode::Off).unwrap();
        panic!("as if something were wrong");
    });
    assert!(ended.is_err());
    assert_eq!(pretender.modes(), ["flow", "off", "flow"]);
}

#[test]
fn nothing_is_changed_after_the_end() {
    let (pretender, agent) = Pretender::start("flow", true);
    agent.set(Mode::Off).unwrap();
    agent.restore_and_end();
    assert!(matches!(agent.set(Mode::Off), Err(Error::Ending)));
    assert_eq!(pretender.modes(), ["flow", "off", "flow"]);
}

#[test]
fn a_mode_that_does_not_work_is_an_error_with_the_agents_reason_and_is_taken_back() {
    let (pretender, agent) = Pretender::start("off", false);
    let error = agent.set(Mode::Flow).unwrap_err().to_string();
    assert!(
        error.contains("flow, but not active: no right; give it"),
        "{error}"
    );
    assert_eq!(agent.restore().unwrap(), Some(Mode::Off));
    assert_eq!(pretender.modes(), ["off", "flow", "off"]);
}

#[test]
fn an_agent_that_was_not_active_gets_its_mode_back_all_the_same() {
    let (_pretender, agent) = Pretender::start("flow", false);
    agent.set(Mode::Off).unwrap();
    assert_eq!(agent.restore().unwrap(), Some(Mode::Flow));
}

#[test]
fn a_missing_socket_is_named_with_its_option() {
    let agent = Agent::new(Path::new("/nowhere/agent.sock"));
    let error = agent.set(Mode::Off).unwrap_err().to_string();
    assert!(
        error.starts_with("--agent-socket = /nowhere/agent.sock: "),
        "{error}"
    );
    assert_eq!(agent.restore().unwrap(), None);
}
