use flannel_common::addr::Mac;
use proptest::prelude::*;

use super::*;
use crate::lease::value::Vtep;

const BOTH: PerFamily<()> = PerFamily {
    v4: Some(()),
    v6: Some(()),
};

fn names() -> Names {
    Names::new(DEFAULT_PREFIX).unwrap()
}

fn of(annotations: &[(&str, &str)]) -> Annotations {
    let all: BTreeMap<String, &str> = annotations
        .iter()
        .map(|(name, value)| (format!("{DEFAULT_PREFIX}/{name}"), *value))
        .collect();
    Annotations::read(&serde_json::to_string(&all).unwrap(), &names()).unwrap()
}

fn vtep(last: u8) -> Vtep {
    Vtep {
        vni: Some(1),
        mac: Mac([0x5a, 0x09, 0xd8, 0xcd, 0x01, last]),
    }
}

fn vxlan() -> Attributes {
    Attributes {
        addresses: PerFamily::v4([192, 168, 100, 1].into()),
        backend: BackendData::Vxlan(PerFamily::v4(vtep(0x41))),
    }
}

fn dual(backend: BackendData) -> Attributes {
    Attributes {
        addresses: PerFamily {
            v4: Some([192, 168, 100, 1].into()),
            v6: Some("fd00:100::1".parse().unwrap()),
        },
        backend,
    }
}

/// What is written over `before`, by names without the prefix.
fn written(before: &[(&str, &str)], attributes: &Attributes) -> Vec<(&'static str, String)> {
    let changes = of(before).changes(attributes);
    changes
        .into_iter()
        .map(|(key, value)| (key.name(), value))
        .collect()
}

fn owned<'a>(rows: &[(&'a str, &str)]) -> Vec<(&'a str, String)> {
    rows.iter()
        .map(|(name, value)| (*name, (*value).to_owned()))
        .collect()
}

/// What the real flanneld wrote to a kube-apiserver 1.36.
const GROUND_TRUTH: [(&str, &str); 4] = [
    ("kube-subnet-manager", "true"),
    ("backend-type", "vxlan"),
    ("backend-data", r#"{"VNI":1,"VtepMAC":"5a:09:d8:cd:01:41"}"#),
    ("public-ip", "192.168.100.1"),
];

#[test]
fn prefixes_are_upstreams() {
    // pkg/subnet/kube/annotations_test.go, Test_newAnnotations.
    for (prefix, name) in [
        (
            "flannel.alpha.coreos.com",
            "flannel.alpha.coreos.com/backend-type",
        ),
        (
            "flannel.alpha.coreos.com/",
            "flannel.alpha.coreos.com/backend-type",
        ),
        (
            "flannel.alpha.coreos.com/prefix",
            "flannel.alpha.coreos.com/prefix-backend-type",
        ),
        (
            "flannel.alpha.coreos.com/prefix-",
            "flannel.alpha.coreos.com/prefix-backend-type",
        ),
        ("org.com", "org.com/backend-type"),
        ("org9.com", "org9.com/backend-type"),
        ("org.com/9", "org.com/9-backend-type"),
    ] {
        assert_eq!(Names::new(prefix).unwrap().full(Key::BackendType), name);
    }
    for prefix in [
        "org",
        "org/",
        "org/prefix",
        "org.COM",
        "org.com/PREFIX",
        "a.b/c/d",
        "a.b//c",
        "",
        "/",
        "a..b",
    ] {
        let error = Names::new(prefix).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("--kube-annotation-prefix = {prefix}: ")),
            "{error}"
        );
    }
}

#[test]
fn annotations_are_upstreams_to_the_byte() {
    let mut expected = owned(&GROUND_TRUTH);
    assert_eq!(written(&[], &vxlan()), expected);
    assert_eq!(of(&GROUND_TRUTH).attributes(&BOTH, &names()), Ok(vxlan()));

    let both = dual(BackendData::Vxlan(PerFamily {
        v4: Some(vtep(0x41)),
        v6: Some(vtep(0x42)),
    }));
    let v6 = [
        (
            "backend-v6-data",
            r#"{"VNI":1,"VtepMAC":"5a:09:d8:cd:01:42"}"#,
        ),
        ("public-ip", "192.168.100.1"),
        ("public-ipv6", "fd00:100::1"),
    ];
    expected.truncate(3);
    expected.extend(owned(&v6));
    assert_eq!(written(&[], &both), expected);
    let written = of(&[&GROUND_TRUTH[..], &v6].concat());
    assert_eq!(written.attributes(&BOTH, &names()), Ok(both));
    // A family that is off in this cluster does not matter, whatever it says.
    assert_eq!(
        written.attributes(&PerFamily::v4(()), &names()),
        Ok(vxlan())
    );
}

#[test]
fn backends_without_data_write_null() {
    let host_gw = |addresses| Attributes {
        addresses,
        backend: BackendData::HostGw,
    };
    let v4 = PerFamily::v4([192, 168, 100, 1].into());
    let expected = [
        ("kube-subnet-manager", "true"),
        ("backend-type", "host-gw"),
        ("backend-data", "null"),
        ("public-ip", "192.168.100.1"),
    ];
    assert_eq!(written(&[], &host_gw(v4)), owned(&expected));
    assert_eq!(of(&expected).attributes(&BOTH, &names()), Ok(host_gw(v4)));
    let expected = [
        ("kube-subnet-manager", "true"),
        ("backend-type", "host-gw"),
        ("backend-data", "null"),
        ("backend-v6-data", "null"),
        ("public-ip", "192.168.100.1"),
        ("public-ipv6", "fd00:100::1"),
    ];
    assert_eq!(written(&[], &dual(BackendData::HostGw)), owned(&expected));
    assert_eq!(
        of(&expected).attributes(&BOTH, &names()),
        Ok(dual(BackendData::HostGw))
    );
    for (backend, kind) in [
        (BackendData::Ipip, "ipip"),
        (BackendData::Other(String::new()), ""),
        (BackendData::Extension(None), "extension"),
    ] {
        let attributes = Attributes {
            addresses: v4,
            backend,
        };
        let expected = [
            ("kube-subnet-manager", "true"),
            ("backend-type", kind),
            ("backend-data", "null"),
            ("public-ip", "192.168.100.1"),
        ];
        assert_eq!(written(&[], &attributes), owned(&expected));
        assert_eq!(of(&expected).attributes(&BOTH, &names()), Ok(attributes));
    }
}

#[test]
fn what_is_said_already_is_not_written() {
    assert!(of(&GROUND_TRUTH).changes(&vxlan()).is_empty());
    for (name, value) in GROUND_TRUTH {
        let mut other = GROUND_TRUTH.to_vec();
        other.retain(|(kept, _)| *kept != name);
        assert_eq!(written(&other, &vxlan()), owned(&[(name, value)]));
        other.push((name, "something"));
        assert_eq!(written(&other, &vxlan()), owned(&[(name, value)]));
    }
}

#[test]
fn a_family_that_is_off_is_left_as_it_is() {
    let leftover = [("backend-v6-data", "null"), ("public-ipv6", "fd00::9")];
    let before = [&GROUND_TRUTH[..], &leftover].concat();
    assert!(of(&before).changes(&vxlan()).is_empty());
    let v6_only = Attributes {
        addresses: PerFamily {
            v4: None,
            v6: Some("fd00:100::1".parse().unwrap()),
        },
        backend: BackendData::Vxlan(PerFamily {
            v4: None,
            v6: Some(vtep(0x42)),
        }),
    };
    let expected = [
        (
            "backend-v6-data",
            r#"{"VNI":1,"VtepMAC":"5a:09:d8:cd:01:42"}"#,
        ),
        ("public-ipv6", "fd00:100::1"),
    ];
    assert_eq!(written(&before, &v6_only), owned(&expected));
}

#[test]
fn an_overwrite_is_published_as_it_is() {
    let overwrite = ("public-ip-overwrite", "203.0.113.7");
    let before = [
        &GROUND_TRUTH[..],
        &[overwrite, ("public-ipv6-overwrite", "")],
    ]
    .concat();
    assert_eq!(
        written(&before, &vxlan()),
        owned(&[("public-ip", "203.0.113.7")])
    );
    let verbatim = [&GROUND_TRUTH[..], &[("public-ip-overwrite", "gw.example")]].concat();
    assert_eq!(
        written(&verbatim, &vxlan()),
        owned(&[("public-ip", "gw.example")])
    );
    let v6 = ("public-ipv6-overwrite", "2001:db8::7");
    assert!(
        written(&[v6], &dual(BackendData::HostGw))
            .contains(&("public-ipv6", "2001:db8::7".to_owned()))
    );
    // When it goes, the address comes back.
    let mut gone = GROUND_TRUTH.to_vec();
    gone[3].1 = "203.0.113.7";
    assert_eq!(
        written(&gone, &vxlan()),
        owned(&[("public-ip", "192.168.100.1")])
    );
}

#[test]
fn a_patch_has_the_changes_alone() {
    let before = [&GROUND_TRUTH[..], &[("public-ip-overwrite", "203.0.113.7")]].concat();
    let changes = of(&before).changes(&vxlan());
    let other = Names::new("example.org/a").unwrap();
    assert_eq!(
        patch(&changes, &other),
        r#"{"metadata":{"annotations":{"example.org/a-public-ip":"203.0.113.7"}}}"#
    );
}

#[test]
fn errors_name_annotation_and_value() {
    let error = |name, value| {
        let mut annotations = GROUND_TRUTH.to_vec();
        annotations.retain(|(kept, _)| *kept != name);
        annotations.push((name, value));
        of(&annotations).attributes(&BOTH, &names()).unwrap_err()
    };
    for (name, value) in [
        ("public-ip", "here"),
        ("public-ipv6", "10.0.0.1"),
        ("backend-data", "garbage"),
        ("backend-v6-data", "{}"),
    ] {
        let error = error(name, value);
        let expected = format!("annotation flannel.alpha.coreos.com/{name} = {value}: must be ");
        assert!(error.starts_with(&expected), "{error}");
    }
    let error = error("backend-data", r#"{"VtepMAC":"ff:ff:ff:ff:ff:ff"}"#);
    assert!(
        error.contains("backend-data = ff:ff:ff:ff:ff:ff: must be a unicast"),
        "{error}"
    );
}

#[test]
fn inputs_choose_the_interface() {
    let public = |annotations: &[(&str, &str)]| of(annotations).node_public(&names());
    assert_eq!(public(&GROUND_TRUTH), Ok(PerFamily::default()));
    assert_eq!(public(&[("node-public-ip", "")]), Ok(PerFamily::default()));
    let both = public(&[
        ("node-public-ip", "10.0.0.1"),
        ("node-public-ipv6", "fd00::1"),
    ]);
    assert_eq!(both.unwrap().join(), "10.0.0.1,fd00::1");
    for (name, value) in [("node-public-ip", "fd00::1"), ("node-public-ipv6", "x")] {
        let error = public(&[(name, value)]).unwrap_err();
        let expected =
            format!("annotation flannel.alpha.coreos.com/{name} = {value}: must be an IPv");
        assert!(error.starts_with(&expected), "{error}");
    }
}

#[test]
fn other_peoples_annotations_are_not_kept() {
    let json = r#"{"a":{"deep":[1]},"flannel.alpha.coreos.com/public-ip":"1.2.3.4","flannel.alpha.coreos.com/new":7,"x.flannel.alpha.coreos.com/backend-type":"x"}"#;
    let annotations = Annotations::read(json, &names()).unwrap();
    assert_eq!(annotations, of(&[("public-ip", "1.2.3.4")]));
    assert!(!annotations.managed());
    let number = r#"{"flannel.alpha.coreos.com/public-ip":7}"#;
    assert!(Annotations::read(number, &names()).is_err());
    assert!(Annotations::read("[]", &names()).is_err());
}

proptest! {
    #[test]
    fn what_is_written_is_enough_and_is_read_back(last in any::<[u8; 2]>(), v6: bool, direct: bool) {
        let mut attributes = dual(if direct {
            BackendData::HostGw
        } else {
            BackendData::Vxlan(PerFamily { v4: Some(vtep(last[0])), v6: v6.then(|| vtep(last[1])) })
        });
        if !v6 {
            attributes.addresses.v6 = None;
        }
        let changes = Annotations::default().changes(&attributes);
        let json: serde_json::Value = serde_json::from_str(&patch(&changes, &names())).unwrap();
        let after = Annotations::read(&json["metadata"]["annotations"].to_string(), &names()).unwrap();
        prop_assert!(after.managed());
        prop_assert!(after.changes(&attributes).is_empty());
        prop_assert_eq!(after.attributes(&BOTH, &names()), Ok(attributes));
    }

    #[test]
    fn nothing_that_an_annotation_holds_is_a_panic(text in "\\PC*", other in "\\PC*") {
        let annotations = of(&[
            ("kube-subnet-manager", "true"), ("backend-type", "vxlan"), ("backend-data", &text),
            ("public-ip", &other), ("node-public-ip", &text),
        ]);
        let _ = annotations.attributes(&BOTH, &names());
        let _ = annotations.node_public(&names());
        prop_assert!(!annotations.changes(&vxlan()).is_empty());
    }
}
