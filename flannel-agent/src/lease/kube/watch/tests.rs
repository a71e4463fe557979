use proptest::prelude::*;

use super::*;

fn names() -> Names {
    Names::new("flannel.alpha.coreos.com").unwrap()
}

fn change(line: &str) -> Result<Change, String> {
    read(line.as_bytes(), &names()).map_err(|error| error.to_string())
}

fn all(lines: &mut Lines) -> Vec<String> {
    std::iter::from_fn(|| {
        lines
            .next_line()
            .map(|line| String::from_utf8_lossy(line).into_owned())
    })
    .collect()
}

#[test]
fn events_become_changes() {
    let node = r#"{"kind":"Node","metadata":{"name":"n1","resourceVersion":"7"},"spec":{"podCIDR":"10.5.1.0/24"}}"#;
    for kind in ["ADDED", "MODIFIED"] {
        let Ok(Change::Put(put)) = change(&format!(r#"{{"type":"{kind}","object":{node}}}"#))
        else {
            panic!("{kind}");
        };
        assert_eq!((put.name.as_str(), put.version.as_str()), ("n1", "7"));
    }
    assert_eq!(
        change(&format!(r#"{{"type":"DELETED","object":{node}}}"#)),
        Ok(Change::Removed {
            name: "n1".into(),
            version: "7".into()
        })
    );
    assert_eq!(
        change(
            r#"{"type":"BOOKMARK","object":{"kind":"Node","metadata":{"resourceVersion":"9","creationTimestamp":null},"spec":{},"status":{}}}"#
        ),
        Ok(Change::Bookmark("9".into()))
    );
}

#[test]
fn the_end_of_a_watch_says_why() {
    let line = r#"{"type":"ERROR","object":{"kind":"Status","status":"Failure","message":"too old resource version: 1 (5)","reason":"Expired","code":410}}"#;
    let Ok(Change::Ended(refusal)) = change(line) else {
        panic!("not ended");
    };
    assert_eq!(
        (refusal.code, refusal.message.as_str()),
        (410, "too old resource version: 1 (5)")
    );
}

#[test]
fn a_node_that_is_not_understood_is_named() {
    let line = r#"{"type":"MODIFIED","object":{"metadata":{"name":"n1","resourceVersion":"7"},"spec":{"podCIDRs":7}}}"#;
    let Ok(Change::Unreadable {
        name,
        version,
        reason,
    }) = change(line)
    else {
        panic!("understood");
    };
    assert_eq!((name.as_str(), version.as_str()), ("n1", "7"));
    assert!(reason.contains("integer `7`"), "{reason}");
    let Ok(Change::Unreadable { name, version, .. }) = change(r#"{"type":"ADDED","object":7}"#)
    else {
        panic!("understood");
    };
    assert!(name.is_empty() && version.is_empty());
}

#[test]
fn garbage_is_no_change() {
    for line in [
        "garbage",
        "{}",
        "[]",
        r#"{"type":"ADDED"}"#,
        r#"{"type":"ADDED","object":{"metadata":{"na"#,
        r#"{"type":"OTHER","object":{"metadata":{"name":"n1"}}}"#,
        r#"{"type":"DELETED","object":{}}"#,
        r#"{"type":"BOOKMARK","object":7}"#,
    ] {
        let error = change(line).unwrap_err();
        assert!(error.contains(line), "{error}");
    }
}

#[test]
fn lines_are_whole_or_not_there() {
    let mut lines = Lines::default();
    lines.push(b"one\n\r\n\ntw").unwrap();
    assert_eq!(all(&mut lines), ["one"]);
    lines.push(b"o\nthr").unwrap();
    lines.push(b"").unwrap();
    assert_eq!(all(&mut lines), ["two"]);
    lines.push(b"ee\n").unwrap();
    assert_eq!(all(&mut lines), ["three"]);
    assert_eq!(lines.bytes.len() - lines.start, 0);
}

#[test]
fn a_line_that_does_not_end_is_garbage() {
    let mut lines = Lines::default();
    let part = vec![b'x'; 1 << 20];
    let mut pushed = 0;
    while lines.push(&part).is_ok() {
        assert_eq!(lines.next_line(), None);
        pushed += part.len();
        assert!(pushed <= LINE_MAX + 2 * part.len());
    }
    assert!(pushed >= LINE_MAX);
}

proptest! {
    #[test]
    fn how_bytes_are_cut_does_not_matter(text in "[a-c\n]{0,60}", cuts in prop::collection::vec(1_usize..9, 0..30)) {
        let mut lines = Lines::default();
        let (mut rest, mut seen) = (text.as_bytes(), Vec::new());
        for cut in cuts.into_iter().chain([text.len()]) {
            let (now, later) = rest.split_at(cut.min(rest.len()));
            rest = later;
            lines.push(now).unwrap();
            seen.extend(all(&mut lines));
        }
        let (whole, _) = text.rsplit_once('\n').unwrap_or_default();
        let expected: Vec<&str> = whole.split('\n').filter(|line| !line.is_empty()).collect();
        prop_assert_eq!(seen, expected);
    }

    #[test]
    fn no_line_is_a_panic(line in prop::collection::vec(any::<u8>(), 0..80)) {
        let _ = read(&line, &names());
    }
}
