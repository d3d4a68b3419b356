//! One reading of all metrics, gathered first and encoded then (OpenMetrics 1.0 text).
//!
//! Whatever is gathered, what comes out is well formed: each family appears once, with every
//! sample that anyone gave it, and no series twice.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabel, EncodeLabelSet, LabelSetEncoder, MetricEncoder, NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::{Registry, Unit};

use super::Latency;

/// Units by the ending of a metric's name, as OpenMetrics wants both to agree.
const UNITS: [(&str, &str); 3] = [("_seconds", "seconds"), ("_bytes", "bytes"), ("_ratio", "ratio")];

/// What a scrape has gathered so far.
#[derive(Debug, Default)]
pub struct Scrape {
    families: BTreeMap<&'static str, Family>,
}

#[derive(Debug)]
struct Family {
    help: &'static str,
    kind: Kind,
    samples: BTreeMap<Labels, Value>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
    Info,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Labels(Vec<(&'static str, Box<str>)>);

#[derive(Debug)]
enum Value {
    Number(Number),
    Latency(Latency),
}

/// A sample's value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Number {
    /// A count.
    Whole(u64),
    /// A measure.
    Real(f64),
}

impl From<u64> for Number {
    fn from(n: u64) -> Self {
        Number::Whole(n)
    }
}

impl From<u32> for Number {
    fn from(n: u32) -> Self {
        Number::Whole(n.into())
    }
}

impl From<usize> for Number {
    fn from(n: usize) -> Self {
        Number::Whole(n as u64)
    }
}

impl From<bool> for Number {
    fn from(yes: bool) -> Self {
        Number::Whole(yes.into())
    }
}

impl From<f64> for Number {
    fn from(n: f64) -> Self {
        Number::Real(n)
    }
}

/// The samples of one family.
#[derive(Debug)]
pub struct Samples<'a>(&'a mut BTreeMap<Labels, Value>);

impl Samples<'_> {
    /// Sets the sample with these labels; a later value replaces an earlier one. Label values
    /// must come from the configuration or a closed list, never from a peer's bytes.
    pub fn set(&mut self, labels: &[(&'static str, &str)], value: impl Into<Number>) -> &mut Self {
        self.put(labels, Value::Number(value.into()));
        self
    }

    fn put(&mut self, labels: &[(&'static str, &str)], value: Value) {
        let labels = labels.iter().map(|&(name, value)| (name, value.into())).collect();
        self.0.insert(Labels(labels), value);
    }
}

impl Scrape {
    /// A value that goes up and down. The name is written in full; one that ends in `_seconds`,
    /// `_bytes` or `_ratio` has that unit.
    pub fn gauge(&mut self, name: &'static str, help: &'static str) -> Samples<'_> {
        self.family(name, help, Kind::Gauge)
    }

    /// A value that only grows. The name is written in full, with its `_total`.
    pub fn counter(&mut self, name: &'static str, help: &'static str) -> Samples<'_> {
        debug_assert!(name.ends_with("_total"), "{name}: a counter's name ends in _total");
        self.family(name.trim_end_matches("_total"), help, Kind::Counter)
    }

    /// A fact about the process, in labels. The name is written in full, with its `_info`.
    pub(super) fn info(&mut self, name: &'static str, help: &'static str, labels: &[(&'static str, &str)]) {
        self.family(name.trim_end_matches("_info"), help, Kind::Info).set(labels, 1u64);
    }

    /// Latencies in seconds.
    pub(super) fn latency(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
        latency: Latency,
    ) {
        self.family(name, help, Kind::Histogram).put(labels, Value::Latency(latency));
    }

    fn family(&mut self, name: &'static str, help: &'static str, kind: Kind) -> Samples<'_> {
        let family =
            self.families.entry(name).or_insert_with(|| Family { help, kind, samples: BTreeMap::new() });
        debug_assert_eq!(family.kind, kind, "{name} has one kind");
        Samples(&mut family.samples)
    }

    /// The exposition, `# EOF` included.
    pub(super) fn encode(self) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        text::encode(&mut text, &registry).expect("a String takes every write");
        text
    }
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        for (&name, family) in self.families.iter().filter(|(_, family)| !family.samples.is_empty()) {
            let (stem, unit) = split_unit(name);
            let mut metric =
                encoder.encode_descriptor(stem, family.help, unit.as_ref(), family.kind.into())?;
            for (labels, value) in &family.samples {
                family.kind.encode(&mut metric, labels, value)?;
            }
        }
        Ok(())
    }
}

fn split_unit(name: &str) -> (&str, Option<Unit>) {
    UNITS
        .iter()
        .find_map(|(ending, unit)| Some((name.strip_suffix(ending)?, Some(Unit::Other((*unit).into())))))
        .unwrap_or((name, None))
}

impl Kind {
    fn encode(self, metric: &mut MetricEncoder, labels: &Labels, value: &Value) -> fmt::Result {
        match (self, value) {
            (Kind::Info, _) => metric.encode_info(labels),
            (Kind::Counter, Value::Number(Number::Whole(n))) => {
                metric.encode_family(labels)?.encode_counter(n, NO_EXEMPLAR)
            }
            (Kind::Counter, Value::Number(Number::Real(n))) => {
                metric.encode_family(labels)?.encode_counter(n, NO_EXEMPLAR)
            }
            (_, Value::Number(Number::Whole(n))) => metric.encode_family(labels)?.encode_gauge(n),
            (_, Value::Number(Number::Real(n))) => metric.encode_family(labels)?.encode_gauge(n),
            (_, Value::Latency(latency)) => metric.encode_family(labels)?.encode_histogram::<NoLabelSet>(
                latency.sum_seconds(),
                latency.count(),
                &latency.exported(),
                None,
            ),
        }
    }
}

const NO_EXEMPLAR: Option<&Exemplar<NoLabelSet, f64>> = None;

impl From<Kind> for MetricType {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Counter => MetricType::Counter,
            Kind::Gauge => MetricType::Gauge,
            Kind::Histogram => MetricType::Histogram,
            Kind::Info => MetricType::Info,
        }
    }
}

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder) -> fmt::Result {
        self.0.iter().try_for_each(|(name, value)| (*name, &**value).encode(encoder.encode_label()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::openmetrics;
    use super::*;

    #[test]
    fn a_family_that_two_gather_appears_once() {
        let mut scrape = Scrape::default();
        scrape.gauge("pannier_in_flight", "In flight.").set(&[("upstream", "a")], 1u64);
        scrape.gauge("pannier_other_seconds", "Another.").set(&[], 0.5);
        scrape.gauge("pannier_in_flight", "In flight.").set(&[("upstream", "b")], 2u32);
        scrape.gauge("pannier_in_flight", "In flight.").set(&[("upstream", "a")], 3usize);
        assert_eq!(
            scrape.encode(),
            "# HELP pannier_in_flight In flight.\n\
             # TYPE pannier_in_flight gauge\n\
             pannier_in_flight{upstream=\"a\"} 3\n\
             pannier_in_flight{upstream=\"b\"} 2\n\
             # HELP pannier_other_seconds Another.\n\
             # TYPE pannier_other_seconds gauge\n\
             # UNIT pannier_other_seconds seconds\n\
             pannier_other_seconds 0.5\n\
             # EOF\n"
        );
    }

    #[test]
    fn any_label_value_comes_back() {
        let value = "back\\slash, \"quotes\", {braces}\nand a line: é";
        let mut scrape = Scrape::default();
        scrape.counter("pannier_x_bytes_total", "X.").set(&[("route", value)], 7u64);
        let exposition = openmetrics::parse(&scrape.encode());
        assert_eq!(exposition.value("pannier_x_bytes_total", &[("route", value)]), Some(7.0));
    }

    #[test]
    fn a_family_without_samples_is_not_shown() {
        let mut scrape = Scrape::default();
        scrape.gauge("pannier_in_flight", "In flight.");
        assert_eq!(scrape.encode(), "# EOF\n");
    }
}
