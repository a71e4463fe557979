//! Messages survive the way, and what is no message is named as such.

use super::*;

fn passed<T: Serialize + DeserializeOwned>(message: &T) -> Option<T> {
    let mut bytes = Vec::new();
    write(&mut bytes, message).unwrap();
    read(&mut bytes.as_slice()).unwrap()
}

#[test]
fn messages_survive_the_way() {
    let requests = [
        Request::Hello { version: VERSION },
        Request::Mode(Mode::Subnet),
        Request::Counts,
        Request::FastPath,
        Request::Restore,
    ];
    for request in requests {
        assert_eq!(passed(&request).as_ref(), Some(&request));
    }
    let answers = [
        Answer::Hello(Node::this(Some(Mode::Flow))),
        Answer::Counts(Counts {
            cpu_ns: 7,
            datagrams: 8,
        }),
        Answer::FastPath(None),
        Answer::FastPath(Some(FastPath::default())),
        Answer::Restored(Some(Mode::Off)),
        Answer::Refused("no".to_owned()),
    ];
    for answer in answers {
        assert_eq!(passed(&answer).as_ref(), Some(&answer));
    }
}

#[test]
fn messages_follow_each_other_and_the_end_is_no_error() {
    let mut bytes = Vec::new();
    write(&mut bytes, &Request::Counts).unwrap();
    write(&mut bytes, &Request::Mode(Mode::Off)).unwrap();
    let mut from = bytes.as_slice();
    assert_eq!(read(&mut from).unwrap(), Some(Request::Counts));
    assert_eq!(read(&mut from).unwrap(), Some(Request::Mode(Mode::Off)));
    assert_eq!(read::<Request>(&mut from).unwrap(), None);
}

#[test]
fn what_is_no_message_is_an_error() {
    let of = |bytes: &[u8]| read::<Request>(&mut &*bytes);
    // "GET " as a length: nothing is allocated for it.
    assert!(matches!(of(b"GET / HTTP/1.1"), Err(Error::Length(_))));
    assert!(matches!(of(b"\0\0\0\x02{]"), Err(Error::Content(_))));
    assert!(
        matches!(of(b"\0\0\0\x09\"counts"), Err(Error::Io(_))),
        "cut short"
    );
    assert!(matches!(of(b"\0\0"), Err(Error::Io(_))), "cut shorter");
    let long = Answer::Refused("x".repeat(LONGEST as usize));
    assert!(matches!(
        write(&mut Vec::new(), &long),
        Err(Error::Length(_))
    ));
}

#[test]
fn purposes_and_modes_are_known_by_what_they_are_called() {
    for purpose in Purpose::ALL {
        assert_eq!(Purpose::of(purpose.bytes()[0]), Some(purpose));
    }
    assert_eq!(Purpose::of(b'G'), None);
    for mode in Mode::ALL {
        assert_eq!(Mode::of(mode.name()), Some(mode));
        let json = serde_json::to_value(mode).unwrap();
        assert_eq!(json, mode.name(), "as the agent writes it");
    }
    assert_eq!(Mode::of("fast"), None);
}
