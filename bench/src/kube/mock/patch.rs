//! The two forms of patches that are used on nodes: JSON merge patch (RFC 7386) and strategic merge patch.
//!
//! Strategic means that some lists are merged by a key (`patchMergeKey` of `k8s.io/api/core/v1`); all others are
//! replaced. Of its directives, deletion of a list's element is known and the wanted order is ignored.

use serde_json::{Map, Value};

/// `$patch: delete` in an element takes that element away.
const DIRECTIVE: &str = "$patch";
/// The order that a merged list should have.
const ORDER: &str = "$setElementOrder/";

/// Which form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Merge,
    Strategic,
}

impl Form {
    /// That of a `Content-Type`.
    pub(super) fn of(content_type: &str) -> Option<Self> {
        match content_type.split(';').next().map(str::trim) {
            Some("application/merge-patch+json") => Some(Self::Merge),
            Some("application/strategic-merge-patch+json") => Some(Self::Strategic),
            _ => None,
        }
    }

    /// Applies a patch to a node.
    pub(super) fn apply(self, node: &mut Value, patch: &Value) {
        merge(node, patch, self, &mut Vec::new());
    }
}

/// The lists of a node that are merged, and by which field; none: as sets of plain values.
const MERGED: [(&[&str], Option<&str>); 5] = [
    (&["status", "conditions"], Some("type")),
    (&["status", "addresses"], Some("type")),
    (&["metadata", "ownerReferences"], Some("uid")),
    (&["metadata", "finalizers"], None),
    (&["spec", "podCIDRs"], None),
];

fn merge<'a>(target: &mut Value, patch: &'a Value, form: Form, path: &mut Vec<&'a str>) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Map::new().into();
    }
    let fields = target.as_object_mut().expect("it is one");
    for (name, value) in patch {
        if value.is_null() {
            fields.remove(name);
            continue;
        }
        if form == Form::Strategic && name.starts_with(ORDER) {
            continue;
        }
        path.push(name);
        let field = fields.entry(name).or_insert(Value::Null);
        let merged = MERGED.iter().find(|(list, _)| *list == path.as_slice());
        match (form, merged, value) {
            (Form::Strategic, Some((_, key)), Value::Array(elements)) => {
                merge_list(field, elements, *key);
            }
            _ => merge(field, value, form, path),
        }
        path.pop();
    }
}

fn merge_list(target: &mut Value, patch: &[Value], key: Option<&str>) {
    if !target.is_array() {
        *target = Value::Array(Vec::new());
    }
    let list = target.as_array_mut().expect("it is one");
    for element in patch {
        let same = |other: &Value| match key {
            Some(key) => other[key] == element[key],
            None => other == element,
        };
        let position = list.iter().position(same);
        let is_deletion = element[DIRECTIVE] == "delete";
        match position {
            Some(position) if is_deletion => drop(list.remove(position)),
            Some(position) => merge(
                &mut list[position],
                element,
                Form::Strategic,
                &mut Vec::new(),
            ),
            None if is_deletion => {}
            None => list.push(element.clone()),
        }
    }
}
