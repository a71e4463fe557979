//! Type information of the kernel and its modules.

use flannel_agent::fastpath::btf::Btf;

/// Whatever is in the file, an answer comes, and a structure that is found has its members within it.
pub(crate) fn run(bytes: &[u8]) {
    let Some(btf) = Btf::new(bytes) else {
        return;
    };
    for base in [b"".as_slice(), b"\0base\0"] {
        for name in ["", "s"] {
            let one = btf.offsets(base, name, ["a"]);
            let two = btf.offsets(base, name, ["b", "a"]);
            if let (Some([a]), Some([_, again])) = (one, two) {
                assert_eq!(a, again);
            }
            assert!(one.is_some() || two.is_none());
        }
    }
}
