//! What an operator sees from outside: pages and the command line.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use crate::support::client::{get, request, send};
use crate::support::loopback::{HOST, Loopback, run, upstream};
use crate::support::raw::Witness;

#[tokio::test]
async fn the_operators_pages_show_everything_but_secrets() {
    let (_witness, app) = Witness::listen().await;
    let yaml = upstream(app, "")
        + "limits: [{ name: all, rate: 1000/s, scope: pod }]
redis: { url: \"redis://someone:hunter2@127.0.0.1:9\" }
";
    let sidecar = Loopback::start("caller", &yaml).await;
    get(sidecar.outbound(), HOST, "/").await.expect("an answer");
    let page = async |path: &str| sidecar.get(path).await.expect("a page");

    assert_eq!(page("/live").await.text(), "live\n");
    assert!(page("/ready").await.text().starts_with("ready\n"));
    let metrics = page("/metrics").await;
    assert!(metrics.field("content-type").expect("a type").starts_with("application/openmetrics-text"));
    assert!(metrics.text().ends_with("# EOF\n"));
    for series in ["pannier_requests_total{", "pannier_limit_admitted_total{limit=\"all\"} 1"] {
        assert!(metrics.text().contains(series), "no {series}");
    }
    let config = page("/config").await.json();
    assert_eq!((&config["generation"], &config["identity"]), (&1.into(), &serde_json::Value::Null));
    assert_eq!(config["bound"].as_array().expect("a list").len(), 5, "{config}");
    assert_eq!(config["config"]["upstreams"]["orders"]["address"], "orders.test:80");
    // The answer may be there before its request has been taken out of the count.
    sidecar.until_metric("pannier_upstream_in_flight", &[r#"upstream="orders""#], 0.0).await;
    let upstreams = page("/upstreams").await.json();
    let endpoint = &upstreams["upstreams"][0]["endpoints"][0];
    assert_eq!((&endpoint["address"], &endpoint["in_flight"]), (&app.to_string().into(), &0.into()));
    let limits = page("/limits").await.json();
    assert_eq!((&limits["limits"][0]["name"], &limits["limits"][0]["admitted"]), (&"all".into(), &1.into()));

    for path in ["/config", "/limits", "/upstreams", "/metrics", "/ready"] {
        assert!(!page(path).await.text().contains("hunter2"), "{path} shows a password");
    }
    assert!(!sidecar.log().contains("hunter2"), "the log shows a password");
    assert_eq!(page("/nowhere").await.status, 404);
    let posted = send(sidecar.at("admin"), request("POST", "localhost", "/config", "")).await;
    assert_eq!(posted.expect("an answer").status, 405);
    let probes = sidecar.at("probes");
    for (path, status) in [
        ("/live", 200),
        ("/ready", 200),
        ("/metrics", 200),
        ("/config", 404),
        ("/drain", 404),
        ("/quit", 404),
    ] {
        assert_eq!(get(probes, "localhost", path).await.expect("an answer").status, status, "{path}");
    }
}

fn file(dir: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::write(&path, text).expect("our own directory");
    path
}

/// Runs a command: its exit code, and what it said on stdout and stderr.
fn ran(args: &[&str]) -> (i32, String, String) {
    let output = run(args);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
    (output.status.code().expect("it exits"), text(&output.stdout), text(&output.stderr))
}

#[test]
fn check_explains_a_file_or_says_where_it_is_wrong() {
    let dir = TempDir::new().expect("a temporary directory");
    let check = |path: &Path| ran(&["check", path.to_str().expect("text")]);
    let good = "upstreams: { orders: { address: \"orders.test:80\" } }
limits: [{ name: all, rate: 10/s }]
";
    let (code, said, errors) = check(&file(&dir, "good.yaml", good));
    assert_eq!((code, errors.as_str()), (0, ""));
    for word in ["orders.test:80", "10/s", "valid"] {
        assert!(said.contains(word), "{said}");
    }
    assert_eq!(check(&file(&dir, "empty.yaml", "")).0, 0);

    let bad = "upstreams:
  orders: { adress: \"orders.test:80\" }
routes:
  - { host: a, upstream: ordres }
limits: [{ name: all, rate: fast }]
";
    let (code, said, errors) = check(&file(&dir, "bad.yaml", bad));
    assert_eq!((code, said.as_str()), (1, ""));
    for place in ["bad.yaml:2:", "bad.yaml:4:", "bad.yaml:5:"] {
        assert!(errors.contains(place), "all faults at once: {errors}");
    }
    assert!(errors.contains("adress") && errors.contains("ordres"), "{errors}");

    let (code, _, errors) = check(&dir.path().join("missing.yaml"));
    assert_eq!(code, 2);
    assert!(errors.contains("missing.yaml"), "{errors}");
}

#[test]
fn the_command_line_helps_and_its_exit_codes_tell() {
    let (code, said, _) = ran(&["--help"]);
    assert_eq!(code, 0);
    for word in ["proxy", "run", "init", "check", "schema", "Exit codes"] {
        assert!(said.contains(word), "{said}");
    }
    for command in ["proxy", "run", "init", "check", "schema"] {
        assert_eq!(ran(&[command, "--help"]).0, 0, "{command}");
    }
    assert!(ran(&["--version"]).1.contains(env!("CARGO_PKG_VERSION")));
    for wrong in [&[][..], &["prxy"], &["check"], &["proxy", "--confg", "x"], &["run"], &["run", "true"]] {
        assert_eq!(ran(wrong).0, 2, "{wrong:?}");
    }
    let (code, said, _) = ran(&["schema"]);
    assert_eq!(code, 0);
    let schema: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    assert!(schema["properties"]["upstreams"].is_object(), "{schema}");

    let dir = TempDir::new().expect("a temporary directory");
    let bad = file(&dir, "bad.yaml", "listen: { outbund: 1 }\n");
    let (code, _, errors) = ran(&["proxy", "--config", bad.to_str().expect("text")]);
    assert_eq!(code, 1);
    assert!(errors.contains("bad.yaml:1:") && errors.contains("outbund"), "{errors}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("bound");
    let taken = file(&dir, "taken.yaml", &format!("listen: {{ outbound: \"{address}\" }}\n"));
    let (code, _, errors) = ran(&["proxy", "--config", taken.to_str().expect("text")]);
    assert_eq!(code, 1);
    assert!(errors.contains("listen.outbound") && errors.contains(&address.to_string()), "{errors}");
}

#[tokio::test]
async fn a_file_that_is_being_written_removes_nothing_that_runs() {
    let (_witness, app) = Witness::listen().await;
    let caller = Loopback::start("caller", &upstream(app, "")).await;
    caller.configure_slowly(&upstream(app, ", capacity: 7")).await;
    let begin = tokio::time::Instant::now();
    loop {
        let upstreams = caller.get("/upstreams").await.expect("the admin door").json();
        let endpoints =
            upstreams["upstreams"][0]["endpoints"].as_array().expect("never without its upstream");
        if endpoints.first().is_some_and(|endpoint| endpoint["capacity"] == 7) {
            break;
        }
        assert!(begin.elapsed() < Duration::from_secs(10), "not applied: {}", caller.log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    caller.empty_configuration();
    while !caller.log().contains("the file is empty") {
        assert!(begin.elapsed() < Duration::from_secs(20), "not refused: {}", caller.log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let upstreams = caller.get("/upstreams").await.expect("the admin door").json();
    assert_eq!(upstreams["upstreams"].as_array().map(Vec::len), Some(1), "an empty file was applied");
}
