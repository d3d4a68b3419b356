//! A strict reader of OpenMetrics 1.0 text for tests: it panics at the first line that breaks the
//! rules, and so proves what it accepts.

use std::collections::{BTreeMap, BTreeSet};

/// A valid exposition.
pub(crate) struct Exposition {
    samples: BTreeMap<(String, Labels), f64>,
}

type Labels = BTreeMap<String, String>;

impl Exposition {
    /// The value of the sample with exactly these labels.
    pub(crate) fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        self.samples.get(&(name.to_owned(), labels)).copied()
    }
}

#[derive(Default)]
struct Family {
    name: String,
    kind: Option<String>,
    unit: Option<String>,
    help: Option<String>,
    samples: Vec<(String, Labels, f64)>,
}

/// Reads an exposition.
pub(crate) fn parse(text: &str) -> Exposition {
    let body = text.strip_suffix("# EOF\n").expect("ends with # EOF and a line feed");
    let mut names = BTreeSet::new();
    let mut samples = BTreeMap::new();
    let mut family = Family::default();
    for line in body.lines() {
        assert!(!line.is_empty() && line.trim() == line, "no blank lines or stray spaces: {line:?}");
        match line.strip_prefix("# ") {
            Some(comment) => describe(&mut family, comment, &mut names, &mut samples),
            None => {
                let sample = sample(line);
                assert!(family.owns(&sample.0), "{line:?} belongs to no family before it");
                family.samples.push(sample);
            }
        }
    }
    family.close(&mut names, &mut samples);
    Exposition { samples }
}

fn describe(
    family: &mut Family,
    comment: &str,
    names: &mut BTreeSet<String>,
    samples: &mut BTreeMap<(String, Labels), f64>,
) {
    let mut parts = comment.splitn(3, ' ');
    let (keyword, name, rest) =
        (parts.next().unwrap_or(""), parts.next().expect("a name"), parts.next().expect("a text"));
    if family.name != name {
        std::mem::take(family).close(names, samples);
        assert!(is_name(name, true), "{name:?} is no metric name");
        family.name = name.to_owned();
    }
    assert!(family.samples.is_empty(), "{name}: its description comes before its samples");
    let field = match keyword {
        "TYPE" => &mut family.kind,
        "UNIT" => &mut family.unit,
        "HELP" => &mut family.help,
        other => panic!("{other:?} is none of TYPE, UNIT and HELP"),
    };
    assert!(field.replace(rest.to_owned()).is_none(), "{name}: one {keyword} only");
}

impl Family {
    fn kind(&self) -> &str {
        self.kind.as_deref().expect("every family has a TYPE")
    }

    fn suffixes(&self) -> &'static [&'static str] {
        match self.kind() {
            "counter" => &["_total"],
            "gauge" => &[""],
            "info" => &["_info"],
            "histogram" => &["_bucket", "_sum", "_count"],
            other => panic!("{}: {other:?} is not a type in use here", self.name),
        }
    }

    fn owns(&self, sample: &str) -> bool {
        sample.strip_prefix(&self.name).is_some_and(|suffix| self.suffixes().contains(&suffix))
    }

    fn close(self, names: &mut BTreeSet<String>, samples: &mut BTreeMap<(String, Labels), f64>) {
        if self.name.is_empty() {
            return;
        }
        let name = &self.name;
        assert!(!self.samples.is_empty(), "{name} has no samples");
        assert!(self.help.as_ref().is_some_and(|help| !help.is_empty()), "{name} has no HELP");
        for suffix in [&[""], self.suffixes()].concat() {
            // The family's own name, and the names of its samples, collide with no other family's.
            assert!(names.insert(format!("{name}{suffix}")) || suffix.is_empty(), "{name}{suffix} twice");
        }
        for unit in ["seconds", "bytes", "ratio"] {
            let in_name = name.ends_with(&format!("_{unit}"));
            assert_eq!(in_name, self.unit.as_deref() == Some(unit), "{name}: name and UNIT disagree");
        }
        if self.kind() == "histogram" {
            self.check_histogram();
        }
        for (sample, labels, value) in self.samples {
            if sample.ends_with("_total") {
                assert!(value.is_finite() && value >= 0.0, "{sample}: a counter is a number from 0");
            }
            let key = (sample, labels);
            assert!(!samples.contains_key(&key), "{key:?} twice");
            samples.insert(key, value);
        }
    }

    fn check_histogram(&self) {
        let mut points: BTreeMap<Labels, (Vec<(f64, f64)>, Option<f64>, Option<f64>)> = BTreeMap::new();
        for (sample, labels, value) in &self.samples {
            let mut labels = labels.clone();
            let le = labels.remove("le");
            let point = points.entry(labels).or_default();
            match sample.strip_prefix(&self.name) {
                Some("_bucket") => point.0.push((number(&le.expect("a bucket has le")), *value)),
                Some("_sum") => point.1 = Some(*value),
                _ => point.2 = Some(*value),
            }
        }
        for (labels, (buckets, sum, count)) in points {
            let at = format!("{}{labels:?}", self.name);
            assert!(buckets.is_sorted_by(|a, b| a.0 < b.0), "{at}: bounds increase");
            assert!(buckets.is_sorted_by(|a, b| a.1 <= b.1), "{at}: buckets are cumulative");
            let last = buckets.last().expect("buckets");
            assert_eq!(last.0, f64::INFINITY, "{at}: the last bound is +Inf");
            assert_eq!(Some(last.1), count, "{at}: +Inf is the count");
            assert!(sum.is_some_and(|sum| sum >= 0.0), "{at}: a sum");
        }
    }
}

fn sample(line: &str) -> (String, Labels, f64) {
    let end = line.find(['{', ' ']).expect("a name and a value");
    let (name, mut rest) = line.split_at(end);
    assert!(is_name(name, true), "{name:?} is no metric name");
    let mut labels = Labels::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            let (key, quoted) = rest.split_once("=\"").expect("label=\"");
            assert!(is_name(key, false), "{key:?} is no label name");
            let (value, after) = unquote(quoted);
            assert!(!value.is_empty(), "{line}: an empty label is no label");
            assert!(labels.insert(key.to_owned(), value).is_none(), "{line}: {key} twice");
            rest = after;
            match rest.split_at(1) {
                (",", after) => rest = after,
                ("}", after) => break rest = after,
                _ => panic!("{line}: `,` or `}}` after a label"),
            }
        }
    }
    let value = rest.strip_prefix(' ').expect("a space before the value");
    (name.to_owned(), labels, number(value))
}

fn unquote(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &text[at + 1..]),
            '\\' => value.push(match chars.next() {
                Some((_, 'n')) => '\n',
                Some((_, c @ ('"' | '\\'))) => c,
                other => panic!("{text}: \\{other:?} is no escape"),
            }),
            c => value.push(c),
        }
    }
    panic!("{text}: the quote does not end")
}

fn number(text: &str) -> f64 {
    let plain = text.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b));
    assert!(plain || ["+Inf", "-Inf", "NaN"].contains(&text), "{text:?} is no number");
    text.parse().expect("a number")
}

fn is_name(name: &str, colon: bool) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || (colon && b == b':');
    !name.is_empty() && !name.as_bytes()[0].is_ascii_digit() && name.bytes().all(allowed)
}
