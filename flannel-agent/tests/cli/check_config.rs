//! `check-config`.

use std::{
    fs,
    io::Write as _,
    process::{Command, Stdio},
};

/// Exit status, standard output and standard error of the command, with `input` on its standard input.
fn check(arguments: &[&str], input: &str) -> (Option<i32>, String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_flannel-agent"))
        .arg("check-config")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // With a wrong command line it ends without reading.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
fn the_effective_config_is_printed() {
    let json = r#"{"network":"10.5.0.0/16","Backend":{"Type":"ipip"}}"#;
    let expected = r#"{
  "Network": "10.5.0.0/16",
  "SubnetLen": 24,
  "SubnetMin": "10.5.1.0",
  "SubnetMax": "10.5.255.0",
  "EnableNFTables": false,
  "Backend": {
    "Type": "ipip",
    "DirectRouting": false
  }
}
"#;
    assert_eq!(
        check(&["-"], json),
        (Some(0), expected.to_owned(), String::new())
    );
    let file = std::env::temp_dir().join(format!("flannel-check-config-{}", std::process::id()));
    fs::write(&file, json).unwrap();
    let from_file = check(&[file.to_str().unwrap()], "");
    fs::remove_file(&file).unwrap();
    assert_eq!(from_file, (Some(0), expected.to_owned(), String::new()));
    // What it prints is a config that means the same.
    assert_eq!(check(&["-"], expected).1, expected);
}

#[test]
fn warnings_are_no_failure() {
    let json = r#"{"Network":"10.5.0.0/16","Nework":1,
        "Backend":{"Type":"extension","SubnetAddCommand":"ip route add \"$SUBNET\" via $PUBLIC_IP"}}"#;
    let (code, config, findings) = check(&["-"], json);
    assert_eq!(code, Some(0));
    assert!(
        config.contains("\"SubnetAddCommand\": \"ip route add"),
        "{config}"
    );
    assert_eq!(
        findings,
        "warning: Nework: unknown, without effect\n\
         warning: Backend.SubnetAddCommand: \" means nothing there: commands are run without a shell, by flanneld since \
         0.28.2 too; put it into a script and name that\n"
    );
}

#[test]
fn every_error_is_printed() {
    let json =
        r#"{"Network":"10.5.0.0/16","SubnetLen":8,"Foo":1,"Backend":{"Type":"vxlan","VNI":"x"}}"#;
    let (code, config, findings) = check(&["-"], json);
    assert_eq!((code, config.as_str()), (Some(1), ""));
    let lines: Vec<&str> = findings.lines().collect();
    assert!(
        matches!(lines[..], [length, vni, foo]
            if length.starts_with("error: SubnetLen = 8: ")
                && vni.starts_with("error: Backend.VNI = \"x\": ")
                && foo == "warning: Foo: unknown, without effect"),
        "{findings}"
    );
    let (code, _, findings) = check(&["-"], "no JSON");
    assert_eq!(code, Some(1));
    assert!(
        findings.starts_with("error: not a JSON object: "),
        "{findings}"
    );
}

#[test]
fn a_missing_file_and_a_wrong_command_line_are_told_apart() {
    let (code, _, findings) = check(&["/no/such/file"], "");
    assert_eq!(code, Some(1));
    assert!(
        findings.starts_with("error: /no/such/file: No such file or directory"),
        "{findings}"
    );
    for arguments in [&[][..], &["a", "b"], &["--what", "-"]] {
        let (code, _, said) = check(arguments, "");
        assert_eq!(code, Some(2), "{arguments:?}: {said}");
        assert!(said.contains("Usage"), "{said}");
    }
}
