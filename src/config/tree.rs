//! YAML text as a tree that remembers where everything stands, so that whatever is found wrong
//! later can be pointed at. Plain scalars keep their text: what `true` or `8080` is, is for the
//! one who reads it to say.
//!
//! A subset of YAML, on purpose: one document, text as keys, no tags beyond the core schema's,
//! no recursion, and aliases that may not blow the document up.

use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;

use serde_saphyr::granit_parser::{Event, Marker, Parser, ScalarStyle, Tag, options};

/// How deep lists and blocks may stand in each other; the model needs six.
const DEEPEST: usize = 32;

/// How many nodes aliases may add, all together.
const MOST_ALIASED: usize = 50_000;

/// A place in the text, both from 1; columns count characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Mark {
    pub(super) line: usize,
    pub(super) column: usize,
}

/// A value, and where it begins.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) at: Mark,
    pub(super) kind: Kind,
    /// How many nodes stand here, this one and what aliases repeat included.
    size: usize,
}

/// What a node is.
#[derive(Debug)]
pub(super) enum Kind {
    /// Text; `plain` where it stands without quotes.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<Slot>),
    Block(Vec<Entry>),
}

/// An element of a list.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) value: Rc<Node>,
    /// Set when the value was found wrong, so that the rest can be read without it.
    pub(super) gone: Cell<bool>,
}

/// A key with its value.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) key_at: Mark,
    pub(super) slot: Slot,
}

/// Something wrong, and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) at: Mark,
    /// As `routes[2].upstream`.
    pub(super) path: String,
    pub(super) message: String,
}

impl Node {
    /// The text of a scalar that is not null.
    pub(super) fn text(&self) -> Option<&str> {
        match &self.kind {
            Kind::Scalar { text, .. } if !self.is_null() => Some(text),
            _ => None,
        }
    }

    /// Nothing: `key:` with no value, `~` or `null`.
    pub(super) fn is_null(&self) -> bool {
        matches!(&self.kind, Kind::Scalar { text, plain: true }
            if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }
}

impl Slot {
    fn new(value: Rc<Node>) -> Self {
        Self { value, gone: Cell::new(false) }
    }
}

/// Reads the text. Gives the tree, or none for a text without content, and the faults that did
/// not keep it from being read on; or the one that did.
pub(super) fn parse(text: &str) -> Result<(Option<Rc<Node>>, Vec<Fault>), Fault> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let options =
        options! { emit_comments: false, flow_nesting_limit: DEEPEST, block_nesting_limit: DEEPEST };
    let mut builder = Builder::default();
    for next in Parser::new_from_str_with_options(text, options) {
        let (event, span) = next.map_err(|error| Fault {
            at: mark(error.marker()),
            path: String::new(),
            message: format!("not valid YAML: {}", error.info()),
        })?;
        builder.take(event, mark(span.tag_start().as_ref().unwrap_or(&span.start)))?;
    }
    Ok((builder.root, builder.faults))
}

fn mark(marker: &Marker) -> Mark {
    Mark { line: marker.line().max(1), column: marker.col() + 1 }
}

#[derive(Default)]
struct Builder {
    root: Option<Rc<Node>>,
    open: Vec<Open>,
    anchors: HashMap<usize, Rc<Node>>,
    aliased: usize,
    documents: usize,
    faults: Vec<Fault>,
}

/// A list or block whose end has not come.
struct Open {
    at: Mark,
    anchor: usize,
    size: usize,
    content: Content,
}

enum Content {
    List(Vec<Slot>),
    Block { entries: Vec<Entry>, lines: HashMap<String, usize>, key: Option<(Key, Mark)> },
}

/// A key whose value is awaited.
enum Key {
    Text(String),
    /// Reported: its value is dropped. Empty where it is not text.
    Wrong(String),
}

impl Builder {
    fn take(&mut self, event: Event<'_>, at: Mark) -> Result<(), Fault> {
        match event {
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents > 1 {
                    return Err(self.fault(at, "a second document begins here; expected one per file"));
                }
            }
            Event::Scalar(text, style, anchor, tag) => {
                self.check_tag(tag.as_deref(), at);
                let plain = style == ScalarStyle::Plain && tag.is_none_or(|tag| !is_text_tag(&tag));
                let kind = Kind::Scalar { text: text.into_owned(), plain };
                self.finish(Node { at, kind, size: 1 }, anchor);
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.check_tag(tag.as_deref(), at);
                self.open.push(Open { at, anchor, size: 1, content: Content::List(Vec::new()) });
            }
            Event::MappingStart(_, anchor, tag) => {
                self.check_tag(tag.as_deref(), at);
                let content = Content::Block { entries: Vec::new(), lines: HashMap::new(), key: None };
                self.open.push(Open { at, anchor, size: 1, content });
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(open) = self.open.pop() {
                    let kind = match open.content {
                        Content::List(items) => Kind::List(items),
                        Content::Block { entries, .. } => Kind::Block(entries),
                    };
                    self.finish(Node { at: open.at, kind, size: open.size }, open.anchor);
                }
            }
            Event::Alias(anchor) => {
                let Some(node) = self.anchors.get(&anchor).cloned() else {
                    return Err(self.fault(at, "this alias stands inside its own anchor"));
                };
                self.aliased += node.size;
                if self.aliased > MOST_ALIASED {
                    return Err(self.fault(at, format!("aliases repeat more than {MOST_ALIASED} values")));
                }
                self.place(node, at);
            }
            _ => {}
        }
        Ok(())
    }

    fn finish(&mut self, node: Node, anchor: usize) {
        let (at, node) = (node.at, Rc::new(node));
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        self.place(node, at);
    }

    /// Puts a finished node where the innermost open list or block awaits it.
    fn place(&mut self, node: Rc<Node>, at: Mark) {
        let Some(open) = self.open.last_mut() else {
            self.root = (!node.is_null()).then_some(node);
            return;
        };
        open.size += node.size;
        match &mut open.content {
            Content::List(items) => items.push(Slot::new(node)),
            Content::Block { entries, lines, key } => match key.take() {
                Some((Key::Wrong(_), _)) => {}
                Some((Key::Text(key), key_at)) => entries.push(Entry { key, key_at, slot: Slot::new(node) }),
                None => {
                    let text = node.text().unwrap_or_default().to_owned();
                    let wrong = match node.text() {
                        None => Some("expected text as a key".to_owned()),
                        Some(text) => lines
                            .insert(text.to_owned(), at.line)
                            .map(|first| format!("`{text}` is here twice; the first is on line {first}")),
                    };
                    let Some(message) = wrong else {
                        *key = Some((Key::Text(text), at));
                        return;
                    };
                    *key = Some((Key::Wrong(text), at));
                    let fault = self.fault(at, message);
                    self.faults.push(fault);
                }
            },
        }
    }

    /// A fault at what is being read.
    fn fault(&self, at: Mark, message: impl Into<String>) -> Fault {
        let mut path = String::new();
        for open in &self.open {
            match &open.content {
                Content::List(items) => path.push_str(&index(items.len())),
                Content::Block { key: Some((Key::Text(text) | Key::Wrong(text), _)), .. } => {
                    push_key(&mut path, text);
                }
                Content::Block { .. } => {}
            }
        }
        Fault { at, path, message: message.into() }
    }

    fn check_tag(&mut self, tag: Option<&Tag>, at: Mark) {
        if let Some(tag) = tag.filter(|tag| tag.is_custom() && !is_text_tag(tag)) {
            let fault = self.fault(at, format!("the tag `{}` means nothing here", tag.original()));
            self.faults.push(fault);
        }
    }
}

/// Adds a key to a path, in quotes where it could be read as more than one.
pub(super) fn push_key(path: &mut String, key: &str) {
    if !path.is_empty() {
        path.push('.');
    }
    if key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
        path.push_str(key);
    } else {
        path.push_str(&format!("{key:?}"));
    }
}

/// An element's place in a path.
pub(super) fn index(i: usize) -> String {
    format!("[{i}]")
}

/// `!!str`, or `!` alone.
fn is_text_tag(tag: &Tag) -> bool {
    tag.is_yaml_core_schema_tag("str") || tag.original() == "!"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(node: &Node) -> String {
        let children = match &node.kind {
            Kind::Scalar { text, plain } => return format!("{}{text}", if *plain { "" } else { "'" }),
            Kind::List(items) => items.iter().map(|slot| shape(&slot.value)).collect::<Vec<_>>(),
            Kind::Block(entries) => entries
                .iter()
                .map(|entry| {
                    format!(
                        "{}@{}:{}={}",
                        entry.key,
                        entry.key_at.line,
                        entry.key_at.column,
                        shape(&entry.slot.value)
                    )
                })
                .collect(),
        };
        format!("{}:{}({})", node.at.line, node.at.column, children.join(" "))
    }

    #[test]
    fn everything_has_a_place() {
        let (root, faults) = parse("# c\na: 1\nb:\n  - 'x'\n  - é: {q: !!str 2}\n    r:\n").unwrap();
        assert_eq!(shape(&root.unwrap()), "2:1(a@2:1=1 b@3:1=4:3('x 5:5(é@5:5=5:8(q@5:9='2) r@6:5=~)))");
        assert_eq!(faults, []);
    }

    #[test]
    fn nothing_is_a_text_without_content() {
        for text in ["", "\n\n", "# only a comment\n", "---\n", "~", "---\n# c\n...\n"] {
            assert!(parse(text).unwrap().0.is_none(), "{text:?}");
        }
    }

    #[test]
    fn duplicates_and_odd_keys_are_faults_that_do_not_end_reading() {
        let (root, faults) = parse("a: 1\na: 2\n[x]: 3\n~: 4\nb: !mine 5\n").unwrap();
        assert_eq!(shape(&root.unwrap()), "1:1(a@1:1=1 b@5:1=5)");
        let faults: Vec<_> = faults.iter().map(|f| (f.at.line, f.at.column, f.message.as_str())).collect();
        assert_eq!(
            faults,
            [
                (2, 1, "`a` is here twice; the first is on line 1"),
                (3, 1, "expected text as a key"),
                (4, 1, "expected text as a key"),
                (5, 4, "the tag `!mine` means nothing here"),
            ]
        );
    }

    #[test]
    fn aliases_repeat_and_do_not_explode() {
        let (root, _) = parse("a: &x [1, 2]\nb: *x\n").unwrap();
        assert_eq!(shape(&root.unwrap()), "1:1(a@1:1=1:7(1 2) b@2:1=1:7(1 2))");

        let mut bomb = String::from("a: &a [x, x, x, x, x, x, x, x, x, x]\n");
        for (from, to) in ["ab", "bc", "cd", "de", "ef", "fg"].map(|pair| pair.split_at(1)) {
            let tens = vec![format!("*{from}"); 10].join(", ");
            bomb += &format!("{to}: &{to} [{tens}]\n");
        }
        assert!(parse(&bomb).unwrap_err().message.contains("aliases repeat more than"));
        assert!(parse("a: &a [*a]").unwrap_err().message.contains("inside its own anchor"));
        assert!(parse("a: *none").unwrap_err().message.contains("not valid YAML"));
    }

    #[test]
    fn what_ends_reading() {
        assert!(parse("a: 1\n---\nb: 2\n").unwrap_err().message.contains("second document"));
        assert!(parse(&"[".repeat(5_000)).is_err());
        assert!(parse(&"- ".repeat(5_000)).is_err());
        let fault = parse("a: [1, 2\nb: 3\n").unwrap_err();
        assert!(fault.message.starts_with("not valid YAML: "), "{}", fault.message);
        assert_eq!(fault.at.line, 2);
    }
}
