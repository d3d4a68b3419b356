//! Every parser of a peer's or an operator's bytes, on the inputs that fuzzing was given and has
//! found worth keeping (`fuzz/seeds`, `fuzz/corpus`), and on new ones made of them.
//!
//! New input is made for `PANNIER_FUZZ_SECONDS` (a fraction of a second unless told). That is what
//! `make fuzz` does on a machine without cargo-fuzz.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

#[path = "../fuzz/src/lib.rs"]
pub mod targets;

macro_rules! tests {
    ($($target:ident: $seeds:literal, $words:literal;)+) => {
        $(#[test]
        fn $target() {
            drive(stringify!($target), targets::$target, $seeds, $words);
        })+

        #[test]
        fn no_target_is_forgotten() {
            let files = list(&Path::new(FUZZ).join("fuzz_targets"));
            let mut files: Vec<_> = files.iter().map(|file| file.file_stem().unwrap().to_str().unwrap()).collect();
            files.sort();
            let mut targets = vec![$(stringify!($target)),+];
            targets.sort();
            assert_eq!(files, targets);
        }
    };
}

tests! {
    request_head: "request", "http";
    response_head: "response", "http";
    chunked: "chunked", "http";
    detect: "detect", "http";
    differential_request: "request", "http";
    differential_response: "response", "http";
    differential_pair: "request", "http";
    mesh: "mesh", "http";
    configuration: "configuration", "configuration";
}

/// Seeds that are read no further than their first bytes would find nothing.
#[test]
fn seeds_are_still_requests() {
    for (seed, requests) in [("get", 1), ("sized", 1), ("three", 3)] {
        let input = std::fs::read(Path::new(FUZZ).join("seeds/mesh").join(format!("client-{seed}"))).unwrap();
        assert_eq!(targets::requests(&input), requests, "{seed}");
    }
}

const FUZZ: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz");

/// The longest input that is made.
const MAX_INPUT: usize = 4096;

/// Runs a target on its corpus, and then on what can be made of it until the time is up; at least a
/// few hundred times.
fn drive(name: &str, target: fn(&[u8]), seeds: &str, words: &str) {
    let seconds = std::env::var("PANNIER_FUZZ_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(0.3);
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let run = |input: &[u8]| {
        let shown = OnPanic(name, input);
        target(input);
        drop(shown);
    };
    let fuzz = Path::new(FUZZ);
    let mut files = list(&fuzz.join("seeds").join(seeds));
    assert!(!files.is_empty(), "no seeds for {name}");
    files.extend(list(&fuzz.join("corpus").join(name)));
    let corpus: Vec<_> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
    corpus.iter().for_each(|input| run(input));
    let made = inputs(corpus, dictionary(&fuzz.join(format!("{words}.dict"))));
    let (mut runner, mut runs) = (TestRunner::default(), 0u64);
    while runs < 300 || Instant::now() < end {
        run(&made.new_tree(&mut runner).expect("a strategy without filters").current());
        runs += 1;
    }
    println!("{name}: {} kept inputs, {runs} new ones", files.len());
}

/// Shows the input that a target has panicked on.
struct OnPanic<'a>(&'a str, &'a [u8]);

impl Drop for OnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{} fails on b\"{}\"", self.0, self.1.escape_ascii());
        }
    }
}

fn list(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// The words of a libFuzzer dictionary: in quotes, a line each, with `\xNN` for what is not text.
fn dictionary(file: &Path) -> Vec<Vec<u8>> {
    let text = std::fs::read_to_string(file).unwrap();
    let quoted = |line: &str| line.strip_prefix('"')?.strip_suffix('"').map(str::to_owned);
    let words: Vec<_> = text.lines().filter_map(quoted).map(|word| unescaped(&word)).collect();
    assert!(!words.is_empty());
    words
}

fn unescaped(word: &str) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::new(), word.as_bytes());
    while let [byte, after @ ..] = rest {
        (rest, bytes) = match (byte, after) {
            (b'\\', [b'x', digits @ ..]) => {
                let code = u8::from_str_radix(std::str::from_utf8(&digits[..2]).unwrap(), 16).unwrap();
                (&digits[2..], [bytes, vec![code]].concat())
            }
            (b'\\', [escaped, after @ ..]) => (after, [bytes, vec![*escaped]].concat()),
            (byte, after) => (after, [bytes, vec![*byte]].concat()),
        };
    }
    bytes
}

/// One change to an input.
#[derive(Debug, Clone)]
enum Edit {
    Insert(Vec<u8>),
    Overwrite(Vec<u8>),
    Remove(usize),
    Cut,
}

/// What can be made of a corpus and a dictionary.
fn inputs(corpus: Vec<Vec<u8>>, words: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let words = select(words);
    let noise = prop::collection::vec(any::<u8>(), 1..8);
    let edit = prop_oneof![
        4 => words.clone().prop_map(Edit::Insert),
        1 => select(corpus.clone()).prop_map(Edit::Insert),
        1 => noise.clone().prop_map(Edit::Insert),
        2 => prop_oneof![words, noise].prop_map(Edit::Overwrite),
        2 => (1..16usize).prop_map(Edit::Remove),
        1 => Just(Edit::Cut),
    ];
    let edits = prop::collection::vec((any::<Index>(), edit), 0..6);
    let base = prop_oneof![9 => select(corpus), 1 => Just(Vec::new())];
    (base, edits)
        .prop_map(|(base, edits)| edits.into_iter().fold(base, |input, (at, edit)| edited(input, at, edit)))
}

fn edited(mut input: Vec<u8>, at: Index, edit: Edit) -> Vec<u8> {
    let at = at.index(input.len() + 1);
    let end = |len: usize| input.len().min(at + len);
    match edit {
        Edit::Insert(bytes) => drop(input.splice(at..at, bytes)),
        Edit::Overwrite(bytes) => drop(input.splice(at..end(bytes.len()), bytes)),
        Edit::Remove(len) => drop(input.drain(at..end(len))),
        Edit::Cut => input.truncate(at),
    }
    input.truncate(MAX_INPUT);
    input
}
