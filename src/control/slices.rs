//! Reads EndpointSlices (discovery.k8s.io/v1) from manifests: JSON or YAML, one object or many, alone
//! or in a List.
//!
//! What is read is sound: names are DNS labels, addresses are of the family that their slice says,
//! ports are ports. A manifest that is not so is refused as a whole, by an error that says where. Other
//! kinds of objects are passed over, and what is well-formed but of no use here is noted.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

const GROUP: &str = "discovery.k8s.io/";
const VERSION: &str = "discovery.k8s.io/v1";
const SERVICE: &str = "kubernetes.io/service-name";
const WEIGHT: &str = "pannier.dev/weight";

/// Where kubectl puts what names no namespace.
const DEFAULT_NAMESPACE: &str = "default";

/// The weight of a slice whose annotation says nothing else.
const DEFAULT_WEIGHT: u16 = 100;

/// What a manifest has to say.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Manifest {
    /// How many objects it has, of whatever kind, lists included.
    pub(super) objects: usize,
    pub(super) slices: Vec<Arc<Slice>>,
    /// What was left out or replaced, for the operator: a sentence each.
    pub(super) notes: Vec<String>,
}

/// Some of a service's endpoints.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Slice {
    pub(super) namespace: String,
    pub(super) service: String,
    pub(super) weight: u16,
    pub(super) ports: Vec<Port>,
    pub(super) endpoints: Vec<Endpoint>,
}

/// Where every endpoint of a slice listens.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Port {
    pub(super) name: Option<String>,
    pub(super) protocol: Protocol,
    pub(super) number: u16,
}

/// The protocols of SRV names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// One pod, or what stands for one.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Endpoint {
    pub(super) address: IpAddr,
    pub(super) ready: bool,
    pub(super) serving: bool,
    pub(super) terminating: bool,
    pub(super) hostname: Option<String>,
    /// The topology zone, as Kubernetes writes it.
    pub(super) zone: Option<String>,
    pub(super) node: Option<String>,
}

/// Reads a manifest, or says what is wrong with it, and where.
pub(super) fn read(text: &str, is_json: bool) -> Result<Manifest, String> {
    let mut manifest = Manifest::default();
    for (number, document) in documents(text, is_json)?.into_iter().enumerate() {
        manifest.take(document, None).map_err(|error| format!("document {}: {error}", number + 1))?;
    }
    Ok(manifest)
}

/// The objects of a text. JSON is YAML too, and is read as JSON where it is, which is far quicker.
fn documents(text: &str, is_json: bool) -> Result<Vec<Value>, String> {
    if is_json || text.trim_start().starts_with('{') {
        match serde_json::Deserializer::from_str(text).into_iter().collect() {
            Ok(documents) => return Ok(documents),
            Err(error) if is_json => return Err(format!("not valid JSON: {error}")),
            Err(_) => {}
        }
    }
    let options = serde_saphyr::options! {
        // A node named `no` is none: only `true` and `false` are booleans.
        strict_booleans: true,
        with_snippet: false,
        // What a file may hold is bounded by its size; aliases keep their bounds.
        budget: serde_saphyr::budget! {
            max_events: usize::MAX,
            max_nodes: usize::MAX,
            max_documents: usize::MAX,
            max_total_scalar_bytes: usize::MAX,
        },
    };
    serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
        let place = error.location().map(|at| format!("line {}, column {}: ", at.line(), at.column()));
        format!("{}not valid YAML: {}", place.unwrap_or_default(), error.without_snippet())
    })
}

impl Manifest {
    /// Takes one object; `kind` is what it is where it does not say so itself.
    fn take(&mut self, object: Value, kind: Option<&str>) -> Result<(), String> {
        let Value::Object(mut fields) = object else {
            return Err("expected a Kubernetes object: a block with `apiVersion` and `kind`".into());
        };
        let field = |name| fields.get(name).and_then(Value::as_str);
        let Some(written) = field("kind").or(kind).map(str::to_owned) else {
            return Err("`kind` is missing; expected a Kubernetes object, as `kind: EndpointSlice`".into());
        };
        let version = match field("apiVersion") {
            None if kind.is_some() => VERSION,
            version => version.unwrap_or_default(),
        };
        self.objects += 1;
        match written.as_str() {
            "List" | "EndpointSliceList" => {
                let within = (written == "EndpointSliceList").then_some("EndpointSlice");
                // Without items where a program wrote a list of none.
                let items = match fields.remove("items") {
                    None | Some(Value::Null) => return Ok(()),
                    Some(Value::Array(items)) => items,
                    Some(_) => return Err("`items` is no list".into()),
                };
                for (number, item) in items.into_iter().enumerate() {
                    self.take(item, within).map_err(|error| format!("items[{number}]: {error}"))?;
                }
            }
            "EndpointSlice" if version == VERSION => {
                self.take_slice(Value::Object(fields))?;
            }
            "EndpointSlice" if version.is_empty() || version.starts_with(GROUP) => {
                return Err(format!("an EndpointSlice of `{version}`; expected `apiVersion: {VERSION}`"));
            }
            other => tracing::debug!(kind = other, version, "not an EndpointSlice: passed over"),
        }
        Ok(())
    }

    fn take_slice(&mut self, object: Value) -> Result<(), String> {
        let who = format!("EndpointSlice {}", called(&object));
        let slice: RawSlice = serde_json::from_value(object).map_err(|error| format!("{who}: {error}"))?;
        let namespace = slice.metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
        let wrong = |error: String| format!("{who}: {error}");
        let mut note = |what: String| self.notes.push(format!("{who}: {what}"));

        let labels = slice.metadata.labels.unwrap_or_default();
        let Some(service) = labels.get(SERVICE).filter(|service| !service.is_empty()) else {
            note(format!("left out: without the label {SERVICE} it is no service's"));
            return Ok(());
        };
        let service = label("the service's name", service).map_err(wrong)?;
        let namespace = label("metadata.namespace", namespace).map_err(wrong)?;
        let ipv4 = match slice.address_type.as_str() {
            "IPv4" => true,
            "IPv6" => false,
            "FQDN" => {
                note("left out: its addresses are names (FQDN), and only IPv4 and IPv6 are served".into());
                return Ok(());
            }
            other => {
                return Err(wrong(format!("addressType: `{other}`; expected `IPv4`, `IPv6` or `FQDN`")));
            }
        };
        let annotations = slice.metadata.annotations.unwrap_or_default();
        let weight = match annotations.get(WEIGHT).map(|text| (text, text.parse::<u16>())) {
            None => DEFAULT_WEIGHT,
            Some((_, Ok(weight))) if weight > 0 => weight,
            Some((text, _)) => {
                note(format!(
                    "{WEIGHT} is `{text}`; expected a whole number from 1 to 65535, so it counts as \
                     {DEFAULT_WEIGHT}"
                ));
                DEFAULT_WEIGHT
            }
        };
        let ports = each("ports", slice.ports, port).map_err(wrong)?.into_iter().flatten().collect();
        let endpoints = each("endpoints", slice.endpoints, |raw| endpoint(raw, ipv4)).map_err(wrong)?;
        self.slices.push(Arc::new(Slice { namespace, service, weight, ports, endpoints }));
        Ok(())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawSlice {
    #[serde(default)]
    metadata: RawMetadata,
    address_type: String,
    endpoints: Option<Vec<Value>>,
    ports: Option<Vec<Value>>,
}

#[derive(Default, Deserialize)]
struct RawMetadata {
    namespace: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct RawPort {
    name: Option<String>,
    protocol: Option<String>,
    port: Option<u16>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawEndpoint {
    addresses: Vec<String>,
    conditions: Option<RawConditions>,
    hostname: Option<String>,
    zone: Option<String>,
    node_name: Option<String>,
}

#[derive(Default, Deserialize)]
struct RawConditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

/// `None` for one without a number: all ports, of which SRV can name none.
fn port(raw: RawPort) -> Result<Option<Port>, String> {
    let protocol = match raw.protocol.as_deref() {
        None | Some("TCP") => Protocol::Tcp,
        Some("UDP") => Protocol::Udp,
        Some("SCTP") => Protocol::Sctp,
        Some(other) => return Err(format!("protocol: `{other}`; expected `TCP`, `UDP` or `SCTP`")),
    };
    let name = raw.name.filter(|name| !name.is_empty());
    let name = name.map(|name| label("name", &name)).transpose()?;
    match raw.port {
        None => Ok(None),
        Some(0) => Err("port: 0; expected a number from 1 to 65535".into()),
        Some(number) => Ok(Some(Port { name, protocol, number })),
    }
}

fn endpoint(raw: RawEndpoint, ipv4: bool) -> Result<Endpoint, String> {
    // Kubernetes says that they all lead to the same: the first is as good as any.
    let first = raw.addresses.first().ok_or("addresses: there is none; expected one at least")?;
    let family = if ipv4 { "IPv4" } else { "IPv6" };
    let address = match first.parse::<IpAddr>() {
        Ok(address) if address.is_ipv4() == ipv4 => address,
        _ => return Err(format!("addresses: `{first}` is no {family} address")),
    };
    // Unset conditions count as kube-proxy counts them.
    let conditions = raw.conditions.unwrap_or_default();
    let hostname = raw.hostname.filter(|hostname| !hostname.is_empty());
    Ok(Endpoint {
        address,
        ready: conditions.ready.unwrap_or(true),
        serving: conditions.serving.unwrap_or(true),
        terminating: conditions.terminating.unwrap_or(false),
        hostname: hostname.map(|hostname| label("hostname", &hostname)).transpose()?,
        zone: raw.zone.filter(|zone| !zone.is_empty()),
        node: raw.node_name.filter(|node| !node.is_empty()),
    })
}

/// Reads the elements of a list, each with its place in an error.
fn each<Raw: DeserializeOwned, T>(
    list: &str,
    values: Option<Vec<Value>>,
    read: impl Fn(Raw) -> Result<T, String>,
) -> Result<Vec<T>, String> {
    let values = values.unwrap_or_default().into_iter().enumerate();
    let one = |(number, value)| {
        let raw = serde_json::from_value(value).map_err(|error| error.to_string());
        raw.and_then(&read).map_err(|error| format!("{list}[{number}]: {error}"))
    };
    values.map(one).collect()
}

/// How an object is called in messages: `namespace/name`.
fn called(object: &Value) -> String {
    let field = |name| object["metadata"][name].as_str();
    format!(
        "{}/{}",
        field("namespace").unwrap_or(DEFAULT_NAMESPACE),
        field("name").unwrap_or("(without a name)")
    )
}

/// A DNS label as Kubernetes has them (RFC 1123).
fn label(what: &str, text: &str) -> Result<String, String> {
    let ok = (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-');
    if ok {
        return Ok(text.to_owned());
    }
    Err(format!("{what}: `{text}` is no DNS label; expected 1 to 63 of lower-case letters, digits and `-`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: orders-a, namespace: shop, labels: { kubernetes.io/service-name: orders } }
";

    fn yaml(text: &str) -> Result<Manifest, String> {
        read(text, false)
    }

    fn one(rest: &str) -> Arc<Slice> {
        let manifest = yaml(&format!("{HEAD}{rest}")).unwrap();
        assert_eq!(manifest.notes, [""; 0]);
        manifest.slices.into_iter().next().unwrap()
    }

    #[test]
    fn a_slice_as_kubectl_prints_it() {
        let slice = one("addressType: IPv4
endpoints:
- addresses: [10.1.2.3, 10.1.2.4]
  conditions: { ready: false, serving: true, terminating: true }
  hostname: orders-0
  nodeName: node-1
  targetRef: { kind: Pod, name: orders-0, namespace: shop }
  zone: eu-central-1a
- addresses: [\"10.1.2.5\"]
ports:
- { name: http, port: 8080, protocol: TCP }
- { name: \"\", port: 53, protocol: UDP, appProtocol: dns }
- { name: all, port: null }
");
        assert_eq!((slice.namespace.as_str(), slice.service.as_str(), slice.weight), ("shop", "orders", 100));
        let port =
            |name: Option<&str>, protocol, number| Port { name: name.map(Into::into), protocol, number };
        assert_eq!(slice.ports, [port(Some("http"), Protocol::Tcp, 8080), port(None, Protocol::Udp, 53)]);
        assert_eq!(
            slice.endpoints,
            [
                Endpoint {
                    address: [10, 1, 2, 3].into(),
                    ready: false,
                    serving: true,
                    terminating: true,
                    hostname: Some("orders-0".into()),
                    zone: Some("eu-central-1a".into()),
                    node: Some("node-1".into()),
                },
                Endpoint {
                    address: [10, 1, 2, 5].into(),
                    ready: true,
                    serving: true,
                    terminating: false,
                    hostname: None,
                    zone: None,
                    node: None,
                },
            ]
        );
    }

    #[test]
    fn every_form_of_manifest() {
        let json = r#"{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","addressType":"IPv6",
            "metadata":{"namespace":"shop","labels":{"kubernetes.io/service-name":"orders"}},
            "endpoints":[{"addresses":["fd00::1"],"conditions":{}}],"ports":null}"#;
        let bare = json.replace(r#""apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","#, "");
        for (text, is_json, slices, objects) in [
            (json.to_owned(), true, 1, 1),
            (json.to_owned(), false, 1, 1),
            (format!("{json}\n{json}"), true, 2, 2),
            (format!("{json}\n---\n{json}"), false, 2, 2),
            (format!(r#"{{"kind":"List","apiVersion":"v1","items":[{json},{json}]}}"#), true, 2, 3),
            (
                format!(
                    r#"{{"kind":"EndpointSliceList","apiVersion":"discovery.k8s.io/v1","items":[{bare}]}}"#
                ),
                true,
                1,
                2,
            ),
            (format!("---\n# nothing\n---\n{HEAD}addressType: IPv4\n---\n"), false, 1, 1),
            (format!("kind: Service\napiVersion: v1\nports: 7\n---\n{json}"), false, 1, 2),
            ("kind: List\napiVersion: v1\nitems: []\n".into(), false, 0, 1),
            (String::new(), false, 0, 0),
        ] {
            let manifest = read(&text, is_json).unwrap_or_else(|error| panic!("{error}: {text}"));
            assert_eq!((manifest.slices.len(), manifest.objects), (slices, objects), "{text}");
            assert_eq!(manifest.notes, [""; 0], "{text}");
        }
    }

    #[test]
    fn what_is_of_no_use_is_noted() {
        let manifest = yaml(&format!(
            "{HEAD}addressType: FQDN\nendpoints: [{{ addresses: [x.example] }}]\n---\n{}addressType: IPv4",
            HEAD.replace("kubernetes.io/service-name: orders", "app: orders")
        ))
        .unwrap();
        assert!(manifest.slices.is_empty());
        assert!(manifest.notes[0].contains("EndpointSlice shop/orders-a: left out: its addresses are names"));
        assert!(manifest.notes[1].contains("without the label kubernetes.io/service-name"));
    }

    #[test]
    fn weights() {
        let weighted = |weight: &str| {
            let head =
                HEAD.replace("name: orders-a", &format!("name: a, annotations: {{ {WEIGHT}: {weight} }}"));
            let manifest = yaml(&format!("{head}addressType: IPv4")).unwrap();
            (manifest.slices[0].weight, manifest.notes.len())
        };
        assert_eq!(weighted("\"1\""), (1, 0));
        assert_eq!(weighted("\"65535\""), (65535, 0));
        for wrong in ["\"0\"", "\"65536\"", "\"-1\"", "\"ten\"", "\"\"", "\" 5\""] {
            assert_eq!(weighted(wrong), (100, 1), "{wrong}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (text, why) in [
            ("a: [", "not valid YAML"),
            ("a: b: c", "line 1, column "),
            ("- x", "document 1: expected a Kubernetes object"),
            ("kind: [x]", "`kind` is missing"),
            ("kind: List\nitems: 5", "`items` is no list"),
            ("kind: List\nitems: [{ kind: X }, 7]", "document 1: items[1]: expected a Kubernetes object"),
            (
                "kind: EndpointSlice\napiVersion: discovery.k8s.io/v1beta1",
                "`discovery.k8s.io/v1beta1`; expected",
            ),
            ("kind: EndpointSlice", "expected `apiVersion: discovery.k8s.io/v1`"),
        ] {
            let error = yaml(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        for (rest, why) in [
            ("", "missing field `addressType`"),
            ("addressType: IPX", "shop/orders-a: addressType: `IPX`; expected `IPv4`"),
            ("addressType: IPv4\nendpoints: 5", "invalid type"),
            (
                "addressType: IPv4\nendpoints: [{ addresses: [10.0.0.1] }, { addresses: [] }]",
                "endpoints[1]: addresses: there is none",
            ),
            ("addressType: IPv4\nendpoints: [{ addresses: [fd00::1] }]", "`fd00::1` is no IPv4 address"),
            ("addressType: IPv6\nendpoints: [{ addresses: [10.0.0.1] }]", "`10.0.0.1` is no IPv6 address"),
            ("addressType: IPv4\nendpoints: [{ addresses: [x] }]", "endpoints[0]: addresses: `x` is no IPv4"),
            (
                "addressType: IPv4\nendpoints: [{ addresses: [10.0.0.1], conditions: { ready: \"yes\" } }]",
                "endpoints[0]: invalid type",
            ),
            (
                "addressType: IPv4\nendpoints: [{ addresses: [10.0.0.1], hostname: A.b }]",
                "hostname: `A.b` is no DNS label",
            ),
            ("addressType: IPv4\nports: [{ port: 0 }]", "ports[0]: port: 0"),
            ("addressType: IPv4\nports: [{ port: 65536 }]", "ports[0]: invalid value"),
            ("addressType: IPv4\nports: [{ port: 80, protocol: tcp }]", "protocol: `tcp`; expected `TCP`"),
            ("addressType: IPv4\nports: [{ port: 80, name: _x }]", "name: `_x` is no DNS label"),
        ] {
            let error = yaml(&format!("{HEAD}{rest}")).unwrap_err();
            assert!(error.contains(why), "{rest}: {error}");
        }
        assert!(read("{\"a\": 1", true).unwrap_err().contains("not valid JSON: EOF while parsing"));
    }
}
