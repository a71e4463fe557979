//! Offsets of structure members in the running kernel, from its type information (BTF, Documentation/bpf/btf.rst).
//!
//! aya reads BTF only to relocate programs that were compiled against it; this answers the one question left.

use std::fs;
use std::path::Path;

/// Where the kernel shows its types: `vmlinux` its own, others those of a module, which build upon them (kernel 5.11,
/// commit 36e68442d1af).
const DIRECTORY: &str = "/sys/kernel/btf";

const HEADER_LEN: usize = 24;
const MAGIC: u16 = 0xeb9f;
const TYPE_LEN: usize = 12;
const MEMBER_LEN: usize = 12;

const KIND_STRUCT: u32 = 4;

/// The types of the running kernel: several MB, so read once and not kept.
pub struct Kernel(Vec<u8>);

impl Kernel {
    /// Reads them; none where the kernel does not show them.
    pub fn read() -> Option<Self> {
        fs::read(Path::new(DIRECTORY).join("vmlinux"))
            .ok()
            .map(Self)
    }

    /// Offsets in bytes of `members` of structure `name`, as `module` or the kernel itself defines it.
    pub fn offsets<const N: usize>(
        &self,
        module: Option<&str>,
        name: &str,
        members: [&str; N],
    ) -> Option<[u32; N]> {
        let base = Btf::new(&self.0)?;
        if let Some(offsets) = base.offsets(&[], name, members) {
            return Some(offsets);
        }
        let own = fs::read(Path::new(DIRECTORY).join(module?)).ok()?;
        Btf::new(&own)?.offsets(base.strings, name, members)
    }
}

/// One set of types.
pub struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
}

impl<'a> Btf<'a> {
    /// Types and names as the file shows them; none if its header is not that of such a file, or leads out of it.
    pub fn new(bytes: &'a [u8]) -> Option<Self> {
        if word16(bytes, 0)? != MAGIC {
            return None;
        }
        let header_len = word(bytes, 4)? as usize;
        if header_len < HEADER_LEN {
            return None;
        }
        let section = |at: usize| {
            let start = header_len.checked_add(word(bytes, at)? as usize)?;
            let end = start.checked_add(word(bytes, at + 4)? as usize)?;
            bytes.get(start..end)
        };
        Some(Self {
            types: section(8)?,
            strings: section(16)?,
        })
    }

    /// Looks the structure up; names below the length of `base` are in there.
    pub fn offsets<const N: usize>(
        &self,
        base: &[u8],
        name: &str,
        members: [&str; N],
    ) -> Option<[u32; N]> {
        let is = |offset: u32, wanted: &str| {
            let offset = offset as usize;
            let strings = if offset < base.len() {
                base.get(offset..)
            } else {
                self.strings.get(offset - base.len()..)
            };
            strings.is_some_and(|strings| {
                strings.starts_with(wanted.as_bytes()) && strings.get(wanted.len()) == Some(&0)
            })
        };
        let mut at = 0;
        while at < self.types.len() {
            let info = word(self.types, at + 4)?;
            let kind = info >> 24 & 0x1f;
            let count = (info & 0xffff) as usize;
            let first = at + TYPE_LEN;
            if kind == KIND_STRUCT && count > 0 && is(word(self.types, at)?, name) {
                let bit_fields = info >> 31 != 0;
                let mut found = [0; N];
                for (slot, member) in found.iter_mut().zip(members) {
                    let mut records = (0..count).map(|index| first + index * MEMBER_LEN);
                    let record = records.find(|record| {
                        word(self.types, *record).is_some_and(|offset| is(offset, member))
                    })?;
                    let bits = word(self.types, record + 8)?;
                    *slot = if bit_fields { bits & 0xff_ffff } else { bits } / u8::BITS;
                }
                return Some(found);
            }
            at = first + extra_len(kind, count)?;
        }
        None
    }
}

/// Bytes behind the common part of a type's record (`enum` of `BTF_KIND_*`, include/uapi/linux/btf.h); `None` for a kind
/// that is newer than this.
fn extra_len(kind: u32, count: usize) -> Option<usize> {
    Some(match kind {
        // Pointer, forward, typedef, volatile, const, restrict, function, float, type tag.
        2 | 7..=12 | 16 | 18 => 0,
        // Integer, variable, declaration tag.
        1 | 14 | 17 => 4,
        // Array.
        3 => 12,
        // Structure, union, data section, 64-bit enumeration.
        4 | 5 | 15 | 19 => 12 * count,
        // Enumeration, function prototype.
        6 | 13 => 8 * count,
        _ => return None,
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

fn word16(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Types and strings of a structure `s` with members `a` at byte 8 and `b` at byte 16.
    fn example(string_base: u32) -> Vec<u8> {
        let strings = b"\0s\0a\0b\0";
        let name = |at: u32| string_base + at;
        let types: [u32; 3 + 3 + 6] = [
            0,
            2 << 24,
            0, // a pointer to nothing in particular
            name(1),
            4 << 24 | 2,
            24,
            name(3),
            1,
            64,
            name(5),
            1,
            128,
        ];
        let types_len = types.len() as u32 * 4;
        let header = [
            u32::from(MAGIC) | 1 << 16,
            24,
            0,
            types_len,
            types_len,
            strings.len() as u32,
        ];
        let words = header.into_iter().chain(types);
        words
            .flat_map(u32::to_ne_bytes)
            .chain(strings.iter().copied())
            .collect()
    }

    #[test]
    fn members_are_found_by_name() {
        let bytes = example(0);
        let btf = Btf::new(&bytes).expect("a valid header");
        assert_eq!(btf.offsets(&[], "s", ["b", "a"]), Some([16, 8]));
        assert_eq!(btf.offsets(&[], "s", ["c"]), None);
        assert_eq!(btf.offsets(&[], "t", ["a"]), None);
    }

    #[test]
    fn names_of_a_module_follow_those_of_the_kernel() {
        let bytes = example(10);
        let btf = Btf::new(&bytes).expect("a valid header");
        assert_eq!(btf.offsets(&[b'x'; 10], "s", ["b"]), Some([16]));
    }

    #[test]
    fn garbage_is_no_answer() {
        assert!(Btf::new(b"garbage that is longer than a header").is_none());
        let bytes = example(0);
        for end in 0..bytes.len() {
            if let Some(btf) = Btf::new(&bytes[..end]) {
                // Must not panic; a cut-off table has no answer or the right one.
                let offsets = btf.offsets(&[], "s", ["a"]);
                assert!(offsets.is_none() || offsets == Some([8]));
            }
        }
    }
}
