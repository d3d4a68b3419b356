//! JSON as tokens and key sets are written in it, read so that it has one meaning: an object that has a
//! name twice is refused at any depth (RFC 7519 section 4 leaves that to the reader, and readers differ).

use std::fmt;
use std::mem;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Number;

/// From here on a double does not tell a whole number from its neighbours.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// A value. Numbers are kept as their JSON text.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Text(Box<str>),
    Number(Box<str>),
    Truth(bool),
    List(Vec<Value>),
    Object(Object),
    /// `null`, or a number of which only the neighbourhood is known.
    Nothing,
}

/// Names with their values, sorted by name, each once.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Object(Vec<(Box<str>, Value)>);

/// What a dotted name leads to.
#[derive(Clone, Copy)]
enum Found<'a> {
    Nowhere,
    One(&'a Value),
    Several,
}

impl Object {
    /// Reads the one object that these bytes are; none where they are anything else.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }

    /// The value of a name of this very object.
    pub(super) fn own(&self, name: &str) -> Option<&Value> {
        let at = self.0.binary_search_by(|(known, _)| (**known).cmp(name)).ok()?;
        Some(&self.0[at].1)
    }

    /// The value of a name, which may be in objects inside (`realm.tenant`), and may itself have dots. A
    /// name that can be read in two ways, and leads somewhere in both, leads nowhere.
    pub(super) fn find(&self, name: &str) -> Option<&Value> {
        let mut found = Found::Nowhere;
        self.look(name, &mut found);
        match found {
            Found::One(value) => Some(value),
            Found::Nowhere | Found::Several => None,
        }
    }

    fn look<'a>(&'a self, name: &str, found: &mut Found<'a>) {
        if let Some(value) = self.own(name) {
            *found = match *found {
                Found::Nowhere => Found::One(value),
                Found::One(_) | Found::Several => Found::Several,
            };
        }
        for (at, _) in name.match_indices('.') {
            if let Some(Value::Object(inner)) = self.own(&name[..at]) {
                inner.look(&name[at + 1..], found);
            }
        }
    }

    /// The bytes that it takes on the heap.
    pub(super) fn bytes(&self) -> usize {
        let entry = |(name, value): &(Box<str>, Value)| name.len() + value.bytes();
        self.0.capacity() * mem::size_of::<(Box<str>, Value)>() + self.0.iter().map(entry).sum::<usize>()
    }
}

impl Value {
    /// Text as it is, numbers and truth values as JSON writes them.
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Value::Text(text) | Value::Number(text) => Some(text),
            Value::Truth(true) => Some("true"),
            Value::Truth(false) => Some("false"),
            Value::List(_) | Value::Object(_) | Value::Nothing => None,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Value::Text(text) | Value::Number(text) => text.len(),
            Value::List(list) => {
                list.capacity() * mem::size_of::<Value>() + list.iter().map(Value::bytes).sum::<usize>()
            }
            Value::Object(object) => object.bytes(),
            Value::Truth(_) | Value::Nothing => 0,
        }
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor)
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ObjectVisitor;

impl<'de> Visitor<'de> for ObjectVisitor {
    type Value = Object;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
        let mut entries: Vec<(Box<str>, Value)> = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        entries.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        if entries.windows(2).any(|two| two[0].0 == two[1].0) {
            return Err(A::Error::custom("a name is there twice"));
        }
        Ok(Object(entries))
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.into()))
    }

    fn visit_bool<E: Error>(self, truth: bool) -> Result<Value, E> {
        Ok(Value::Truth(truth))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Value, E> {
        Ok(Value::Number(number.to_string().into()))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Value, E> {
        Ok(Value::Number(number.to_string().into()))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Value, E> {
        // Two tenants with such numbers would be counted as one.
        let exact = number.abs() < EXACT;
        let number = Number::from_f64(number).filter(|_| exact);
        Ok(number.map_or(Value::Nothing, |number| Value::Number(number.to_string().into())))
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Nothing)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element()? {
            values.push(value);
        }
        Ok(Value::List(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Value, A::Error> {
        ObjectVisitor.visit_map(map).map(Value::Object)
    }
}
