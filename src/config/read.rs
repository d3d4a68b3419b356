//! From the located tree to the model, through serde. Serde stops at its first error; this reads
//! again without the value that was wrong, until the rest reads, so that every fault is reported.

use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{
    DeserializeSeed, Deserializer, Error as _, Expected, IntoDeserializer, MapAccess, SeqAccess, Unexpected,
    Visitor,
};
use serde::{Deserialize, forward_to_deserialize_any};

use super::model::Model;
use super::problem::did_you_mean;
use super::tree::{Entry, Fault, Kind, Mark, Node, Slot, index, push_key};

/// After so many faults the rest is not looked for.
const MOST_FAULTS: usize = 50;

/// Reads the model, and adds what is wrong to `faults`. The values that were wrong are marked as
/// `gone` in the tree and left out of the model. None where nothing could be read at all.
pub(super) fn model(root: &Node, faults: &mut Vec<Fault>) -> Option<Model> {
    loop {
        let error = match Model::deserialize(Value { node: root }) {
            Ok(model) => return Some(model),
            Err(error) => error,
        };
        let at = error.at.unwrap_or(root.at);
        let Some((last, above)) = error.steps.split_first() else {
            faults.push(Fault { at, path: String::new(), message: error.message });
            return None;
        };
        let (slot, path) = follow(root, above, last)?;
        if !error.caused_by_removal {
            faults.push(Fault { at, path, message: error.message });
        }
        slot.gone.set(true);
        if faults.len() >= MOST_FAULTS {
            let message = format!("{MOST_FAULTS} faults are enough for once: what follows was not read");
            faults.push(Fault { at, path: String::new(), message });
            return None;
        }
    }
}

/// The slot at the end of the steps (outermost last in `above`, then `last`), and its path.
fn follow<'a>(root: &'a Node, above: &[usize], last: &usize) -> Option<(&'a Slot, String)> {
    let (mut node, mut found, mut path) = (root, None, String::new());
    for &step in above.iter().rev().chain([last]) {
        let slot = match &node.kind {
            Kind::List(slots) => {
                path.push_str(&index(step));
                slots.get(step)?
            }
            Kind::Block(entries) => {
                let entry = entries.get(step)?;
                push_key(&mut path, &entry.key);
                &entry.slot
            }
            Kind::Scalar { .. } => return None,
        };
        node = &slot.value;
        found = Some(slot);
    }
    found.map(|slot| (slot, path))
}

/// What serde found wrong, while it rises to the root.
#[derive(Debug)]
struct Error {
    message: String,
    /// The place, once the innermost value is known.
    at: Option<Mark>,
    /// Positions in lists and blocks, innermost first.
    steps: Vec<usize>,
    /// A field is missing.
    missing: Option<&'static str>,
    /// The field is missing because it was wrong and is reported already.
    caused_by_removal: bool,
}

impl Error {
    fn new(message: String) -> Self {
        Self { message, at: None, steps: Vec::new(), missing: None, caused_by_removal: false }
    }

    fn at(mut self, at: Mark) -> Self {
        self.at.get_or_insert(at);
        self
    }

    fn below(mut self, step: usize) -> Self {
        self.steps.push(step);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl serde::de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Error::new(message.to_string())
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let expected = plain_words(&expected.to_string());
        Error::new(match found {
            Unexpected::Unit => format!("nothing stands here; expected {expected}, or leave the key out"),
            Unexpected::Str(text) => format!("expected {expected}, found `{text}`"),
            Unexpected::Signed(number) => format!("expected {expected}, found {number}"),
            Unexpected::Unsigned(number) => format!("expected {expected}, found {number}"),
            Unexpected::Seq => format!("expected {expected}, found a list"),
            Unexpected::Map => format!("expected {expected}, found a block of keys"),
            other => format!("expected {expected}, found {other}"),
        })
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn unknown_field(field: &str, known: &'static [&'static str]) -> Self {
        if field == "<<" {
            return Error::new("merge keys are not read; write the fields out".into());
        }
        let hint = did_you_mean(field, known.iter().copied());
        Error::new(format!("`{field}` is no key here{hint}{}", one_of(&hint, known)))
    }

    fn unknown_variant(variant: &str, known: &'static [&'static str]) -> Self {
        let hint = did_you_mean(variant, known.iter().copied());
        Error::new(format!("`{variant}` is not known here{hint}{}", one_of(&hint, known)))
    }

    fn missing_field(field: &'static str) -> Self {
        Error { missing: Some(field), ..Error::new(format!("`{field}` is missing")) }
    }
}

/// The list of what is known, where no hint says it better.
fn one_of(hint: &str, known: &[&str]) -> String {
    match hint {
        "" => format!("; expected one of `{}`", known.join("`, `")),
        _ => String::new(),
    }
}

/// Serde's names for what it expects, in the reader's words.
fn plain_words(expected: &str) -> String {
    match expected {
        "a string" => "text",
        "path string" => "a file's path",
        "u8" => "a whole number from 0 to 255",
        "u16" => "a whole number from 0 to 65535",
        "u32" => "a whole number from 0 to 4294967295",
        "u64" | "usize" => "a whole number from 0",
        "a nonzero u32" => "a whole number from 1 to 4294967295",
        "a nonzero usize" => "a whole number from 1",
        "a sequence" => "a list",
        "a map" => "a block of keys",
        "option" => "a value",
        _ if expected.starts_with("struct ") => "a block of keys",
        _ if expected.starts_with("enum ") => "one word",
        _ => expected,
    }
    .into()
}

/// A node, as serde reads it.
#[derive(Clone, Copy)]
struct Value<'a> {
    node: &'a Node,
}

impl<'a> Value<'a> {
    /// The error of a value that is of another kind than the visitor's.
    fn wrong<'de, V: Visitor<'de>>(self, visitor: &V) -> Error {
        let found = match &self.node.kind {
            _ if self.node.is_null() => Unexpected::Unit,
            Kind::Scalar { text, .. } => Unexpected::Str(text),
            Kind::List(_) => Unexpected::Seq,
            Kind::Block(_) => Unexpected::Map,
        };
        Error::invalid_type(found, visitor).at(self.node.at)
    }

    fn list<'de, V: Visitor<'de>>(self, slots: &'a [Slot], visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(Items { slots, next: 0 }).map_err(|error| error.at(self.node.at))
    }

    fn block<'de, V: Visitor<'de>>(self, entries: &'a [Entry], visitor: V) -> Result<V::Value, Error> {
        visitor.visit_map(Fields { entries, next: 0 }).map_err(|mut error| {
            if let Some(field) = error.missing.take() {
                // The value was wrong, or its key misspelt: either way that is reported already.
                error.caused_by_removal = entries
                    .iter()
                    .filter(|entry| entry.slot.gone.get())
                    .any(|entry| entry.key == field || !did_you_mean(&entry.key, [field]).is_empty());
            }
            error.at(self.node.at)
        })
    }

    fn number<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let Kind::Scalar { text, plain: true } = &self.node.kind else {
            return Err(self.wrong(&visitor));
        };
        let read = if let Ok(number) = text.parse::<u64>() {
            visitor.visit_u64(number)
        } else if let Ok(number) = text.parse::<i64>() {
            visitor.visit_i64(number)
        } else {
            return Err(self.wrong(&visitor));
        };
        read.map_err(|error: Error| error.at(self.node.at))
    }

    fn text<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.node.text() {
            Some(text) => visitor.visit_str(text).map_err(|error: Error| error.at(self.node.at)),
            None => Err(self.wrong(&visitor)),
        }
    }
}

impl<'de> Deserializer<'de> for Value<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.kind {
            Kind::Scalar { .. } => self.text(visitor),
            Kind::List(slots) => self.list(slots, visitor),
            Kind::Block(entries) => self.block(entries, visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.node.is_null() {
            return Err(self.wrong(&visitor));
        }
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.kind {
            Kind::List(slots) => self.list(slots, visitor),
            _ => Err(self.wrong(&visitor)),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.kind {
            Kind::Block(entries) => self.block(entries, visitor),
            _ => Err(self.wrong(&visitor)),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.node.text() {
            Some(text) => {
                let variant: StrDeserializer<'_, Error> = text.into_deserializer();
                visitor.visit_enum(variant).map_err(|error| error.at(self.node.at))
            }
            None => Err(self.wrong(&visitor)),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.text(visitor)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.text(visitor)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        // The two words of YAML 1.2 and JSON, and no `yes`.
        match &self.node.kind {
            Kind::Scalar { text, plain: true } if text == "true" => visitor.visit_bool(true),
            Kind::Scalar { text, plain: true } if text == "false" => visitor.visit_bool(false),
            _ => Err(self.wrong(&visitor)),
        }
    }

    fn deserialize_u8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.number(visitor)
    }

    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.number(visitor)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.number(visitor)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.number(visitor)
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u128 f32 f64 char bytes byte_buf unit unit_struct tuple
        tuple_struct identifier ignored_any
    }
}

struct Items<'a> {
    slots: &'a [Slot],
    next: usize,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        while let Some(slot) = self.slots.get(self.next) {
            let step = self.next;
            self.next += 1;
            if !slot.gone.get() {
                let value = seed.deserialize(Value { node: &slot.value });
                return value.map(Some).map_err(|error| error.at(slot.value.at).below(step));
            }
        }
        Ok(None)
    }
}

struct Fields<'a> {
    entries: &'a [Entry],
    /// The entry after the one whose key was read last.
    next: usize,
}

impl<'de> MapAccess<'de> for Fields<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        while let Some(entry) = self.entries.get(self.next) {
            let step = self.next;
            self.next += 1;
            if !entry.slot.gone.get() {
                let key: StrDeserializer<'_, Error> = entry.key.as_str().into_deserializer();
                return seed.deserialize(key).map(Some).map_err(|error| error.at(entry.key_at).below(step));
            }
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let step = self.next.saturating_sub(1);
        let Some(entry) = self.entries.get(step) else {
            return Err(Error::custom("a value was read before its key"));
        };
        let value = &entry.slot.value;
        seed.deserialize(Value { node: value }).map_err(|error| error.at(value.at).below(step))
    }
}
