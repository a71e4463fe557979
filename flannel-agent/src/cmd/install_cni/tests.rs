use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use super::*;

const OURS: &str = r#"{"name":"cbr0","plugins":[{"type":"flannel"},{"type":"portmap"}]}"#;
const CILIUM: &str = r#"{"name":"cilium","plugins":[{"type":"cilium-cni"}]}"#;

/// A folder with a source and the two targets, removed in the end.
struct Host(PathBuf);

impl Host {
    fn new(name: &str) -> Self {
        let root = std::env::temp_dir().join(format!("install-cni-{name}-{}", std::process::id()));
        let host = Self(root);
        for directory in [host.bin(), host.conf()] {
            fs::create_dir_all(directory).unwrap();
        }
        fs::write(host.0.join("plugin"), b"\x7fELF one").unwrap();
        fs::write(host.0.join("cni-conf.json"), OURS).unwrap();
        host
    }

    fn bin(&self) -> PathBuf {
        self.0.join("bin")
    }

    fn conf(&self) -> PathBuf {
        self.0.join("net.d")
    }

    fn plugin(&self) -> Result<Note, Error> {
        install_plugin(&self.0.join("plugin"), &self.bin())
    }

    fn config(&self) -> Result<Vec<Note>, Error> {
        install_config(&self.0.join("cni-conf.json"), &self.conf())
    }

    fn names(&self, directory: &Path) -> Vec<String> {
        let names = fs::read_dir(directory).unwrap();
        names
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

fn warnings(notes: &[Note]) -> Vec<&str> {
    let warnings = notes.iter().filter_map(|note| match note {
        Note::Warning(text) => Some(text.as_str()),
        Note::Done(_) => None,
    });
    warnings.collect()
}

#[test]
fn the_plugin_is_installed_executable_and_left_alone_when_it_is_the_same() {
    let host = Host::new("plugin");
    let target = host.bin().join("flannel");
    assert_eq!(
        host.plugin().unwrap(),
        Note::Done(format!("{}: installed", target.display()))
    );
    let first = fs::metadata(&target).unwrap();
    assert_eq!(first.permissions().mode() & 0o7777, 0o755);
    assert_eq!(
        host.plugin().unwrap(),
        Note::Done(format!("{}: is the same already", target.display()))
    );
    assert_eq!(fs::metadata(&target).unwrap().ino(), first.ino());
    // Another version is a new file, so that pods that are being set up run on in the old one.
    let running = fs::File::open(&target).unwrap();
    fs::write(host.0.join("plugin"), b"\x7fELF two").unwrap();
    host.plugin().unwrap();
    assert_eq!(fs::read(&target).unwrap(), b"\x7fELF two");
    assert_eq!(
        io::read_to_string(running).unwrap().as_bytes(),
        b"\x7fELF one"
    );
    assert_eq!(host.names(&host.bin()), ["flannel"]);
}

#[test]
fn a_config_of_flannels_is_replaced() {
    let host = Host::new("config");
    let target = host.conf().join(CONF_NAME);
    fs::write(&target, r#"{"name":"cbr0","plugins":[{"type":"flannel"}]}"#).unwrap();
    assert_eq!(warnings(&host.config().unwrap()), [""; 0]);
    assert_eq!(fs::read_to_string(&target).unwrap(), OURS);
    let before = fs::metadata(&target).unwrap().ino();
    host.config().unwrap();
    assert_eq!(fs::metadata(&target).unwrap().ino(), before);
    assert_eq!(host.names(&host.conf()), [CONF_NAME]);
}

#[test]
fn a_damaged_config_of_our_name_is_replaced() {
    let host = Host::new("damaged");
    let target = host.conf().join(CONF_NAME);
    fs::write(&target, &OURS[..20]).unwrap();
    assert_eq!(warnings(&host.config().unwrap()), [""; 0]);
    assert_eq!(fs::read_to_string(&target).unwrap(), OURS);
}

#[test]
fn a_foreign_config_of_our_name_stays() {
    let host = Host::new("foreign");
    let target = host.conf().join(CONF_NAME);
    fs::write(&target, CILIUM).unwrap();
    let notes = host.config().unwrap();
    let warnings = warnings(&notes);
    assert!(
        matches!(&warnings[..], [text] if text.contains("but cilium-cni's, and stays")),
        "{notes:?}"
    );
    assert_eq!(fs::read_to_string(&target).unwrap(), CILIUM);
}

#[test]
fn a_foreign_config_that_comes_first_stays_and_is_named_once() {
    let host = Host::new("first");
    let write = |name: &str, text: &str| fs::write(host.conf().join(name), text).unwrap();
    write("05-cilium.conflist", CILIUM);
    write("00-multus.conf", r#"{"name":"m","type":"multus"}"#);
    write("00-note.txt", CILIUM);
    write("10-flannel.conf", r#"{"name":"cbr0","type":"flannel"}"#);
    write("99-loopback.conf", r#"{"name":"lo","type":"loopback"}"#);
    let notes = host.config().unwrap();
    let warnings = warnings(&notes);
    assert!(
        matches!(&warnings[..], [text] if text.contains("00-multus.conf is multus's and comes before")),
        "{notes:?}"
    );
    let read = |name: &str| fs::read_to_string(host.conf().join(name)).unwrap();
    assert_eq!(read("05-cilium.conflist"), CILIUM);
    assert_eq!(read(CONF_NAME), OURS);
}

#[test]
fn what_gives_pods_no_network_is_refused_with_the_reason() {
    let host = Host::new("refused");
    for (text, reason) in [
        ("{", "it is not JSON"),
        (r#"{"plugins":[]}"#, "it names no plugin"),
        (CILIUM, "it has only cilium-cni"),
    ] {
        fs::write(host.0.join("cni-conf.json"), text).unwrap();
        let error = host.config().unwrap_err().to_string();
        assert!(
            error.contains(reason) && error.contains("cni-conf.json"),
            "{error}"
        );
    }
    assert!(host.names(&host.conf()).is_empty());
}
