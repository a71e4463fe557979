//! A JSON object as upstream's decoder reads it, and what can be wrong with one of its fields.
//!
//! Go's `encoding/json`: keys match without regard to case, the last of several wins, `null` leaves a field as it was,
//! nothing is coerced.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::RangeInclusive,
    str::FromStr,
};

use serde::{
    Deserialize,
    de::{Deserializer, MapAccess, Visitor},
};
use serde_json::Value;

use super::Error;

/// The fields of an object, by key in lower case: the key as it was written, and the value.
#[derive(Default)]
pub(super) struct Fields {
    values: BTreeMap<String, (String, Value)>,
    /// Keys that were there more than once, or in two spellings.
    repeated: BTreeSet<String>,
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Fields;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Fields::default();
                while let Some((key, value)) = map.next_entry::<String, Value>()? {
                    if value.is_null() {
                        continue;
                    }
                    let name = key.to_ascii_lowercase();
                    if fields.values.insert(name, (key.clone(), value)).is_some() {
                        fields.repeated.insert(key);
                    }
                }
                Ok(fields)
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

/// An error that has been noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Noted;

/// What was found in a document.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) errors: Vec<Error>,
    pub(super) warnings: Vec<String>,
}

impl Findings {
    /// Notes that a field breaks a rule.
    pub(super) fn error(
        &mut self,
        field: impl Into<String>,
        value: impl fmt::Display,
        rule: impl Into<String>,
    ) -> Noted {
        self.errors.push(Error::Field {
            field: field.into(),
            value: value.to_string(),
            rule: rule.into(),
        });
        Noted
    }
}

/// Reads the fields of one object and remembers which were asked for.
pub(super) struct Reader<'a> {
    fields: Fields,
    /// What comes before a field's name: nothing, or `Backend.`.
    path: &'static str,
    asked: BTreeSet<String>,
    pub(super) findings: &'a mut Findings,
}

impl<'a> Reader<'a> {
    pub(super) fn new(fields: Fields, path: &'static str, findings: &'a mut Findings) -> Self {
        Self {
            fields,
            path,
            asked: BTreeSet::new(),
            findings,
        }
    }

    /// The value of a field, if it is there.
    pub(super) fn get(&mut self, name: &str) -> Option<Value> {
        let name = name.to_ascii_lowercase();
        let value = self
            .fields
            .values
            .get(&name)
            .map(|(_, value)| value.clone());
        self.asked.insert(name);
        value
    }

    /// Notes that a field breaks a rule.
    pub(super) fn fail(
        &mut self,
        name: &str,
        value: impl fmt::Display,
        rule: impl Into<String>,
    ) -> Noted {
        self.findings
            .error(format!("{}{name}", self.path), value, rule)
    }

    /// Notes what nobody has asked for, and what was written twice.
    pub(super) fn finish(self) {
        for (name, (key, _)) in &self.fields.values {
            if !self.asked.contains(name) {
                self.findings
                    .warnings
                    .push(format!("{}{key}: unknown, without effect", self.path));
            }
        }
        for key in &self.fields.repeated {
            self.findings.warnings.push(format!(
                "{}{key}: given more than once, the last one counts",
                self.path
            ));
        }
    }

    pub(super) fn boolean(&mut self, name: &str) -> Result<Option<bool>, Noted> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(self.fail(name, other, "must be true or false")),
        }
    }

    pub(super) fn integer(
        &mut self,
        name: &str,
        range: RangeInclusive<u64>,
    ) -> Result<Option<u64>, Noted> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        match value.as_u64().filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(self.fail(
                name,
                value,
                format!(
                    "must be a whole number from {} to {}",
                    range.start(),
                    range.end()
                ),
            )),
        }
    }

    pub(super) fn string(&mut self, name: &str) -> Result<Option<String>, Noted> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.fail(name, other, "must be a string")),
        }
    }

    pub(super) fn parsed<T: FromStr>(
        &mut self,
        name: &str,
        kind: &str,
    ) -> Result<Option<T>, Noted> {
        let Some(text) = self.string(name)? else {
            return Ok(None);
        };
        match text.parse() {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(self.fail(name, Value::from(text), format!("must be {kind}"))),
        }
    }
}
