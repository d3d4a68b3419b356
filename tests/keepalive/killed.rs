//! An upstream that is killed (SIGKILL) under a request: what each kind of request gets, by when that
//! happened. The table of docs/killed-upstreams.md is held against this.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;

use tempfile::TempDir;

use crate::PATIENCE;
use crate::support::loopback::{HOST, Loopback};
use crate::support::process::Process;
use crate::support::raw::Raw;

/// An application that kills itself once for each path.
const APPLICATION: &str = include_str!("killed.py");

/// What the table says.
const DOCUMENT: &str = include_str!("../../docs/killed-upstreams.md");

/// Two endpoints. Of each request one of them dies.
struct Endpoints {
    _processes: Vec<Process>,
    addresses: Vec<SocketAddr>,
    folder: TempDir,
}

impl Endpoints {
    fn start() -> Self {
        let folder = TempDir::with_prefix("pannier-killed-").expect("a temporary directory");
        let (mut processes, mut addresses) = (Vec::new(), Vec::new());
        for n in 0..2 {
            let mut command = Command::new("python3");
            command.args(["-c", APPLICATION]).arg(folder.path());
            let log = folder.path().join(format!("log-{n}"));
            let mut process = Process::start(command, "the application (python3)", &log);
            let port = process.until(PATIENCE, "listening", |p| p.log().lines().next()?.parse().ok());
            addresses.push(SocketAddr::from(([127, 0, 0, 1], port)));
            processes.push(process);
        }
        Self { _processes: processes, addresses, folder }
    }

    /// How often `path` was executed.
    fn executed(&self, path: &str) -> usize {
        let noted = fs::read_to_string(self.folder.path().join("executed")).unwrap_or_default();
        noted.lines().filter(|line| *line == path).count()
    }

    fn has_died(&self, path: &str) -> bool {
        self.folder.path().join(format!("dead-{}", path.trim_start_matches('/'))).exists()
    }
}

/// When the upstream dies, as the table calls it, and what GET, PUT with a body, and POST get.
const FATES: [(&str, &str, [&str; 3]); 6] = [
    ("/reading", "while it reads the request", ["200, executed 1×", "200, executed 1×", "502, executed 0×"]),
    ("/before", "before it acts", ["200, executed 1×", "200, executed 1×", "502, executed 0×"]),
    ("/acted", "after it has acted", ["200, executed 2×", "200, executed 2×", "502, executed 1×"]),
    ("/head", "within the answer's head", ["200, executed 2×", "200, executed 2×", "502, executed 1×"]),
    ("/between", "between head and body", ["200, executed 2×", "200, executed 2×", "502, executed 1×"]),
    ("/body", "within the answer's body", ["cut, executed 1×", "cut, executed 1×", "cut, executed 1×"]),
];

/// What a client gets.
async fn sent(sidecar: &Loopback, method: &str, path: &str) -> String {
    let body = if method == "GET" { "\r\n" } else { "content-length: 4\r\n\r\nbody" };
    let mut raw = Raw::connect(sidecar.outbound()).await;
    raw.send(format!("{method} {path} HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n{body}")).await;
    let answer = raw.rest().await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    let status = head.split(' ').nth(1).expect("a status");
    match (status, body) {
        ("200", "0123456789") => "200".into(),
        // Half an answer, and a reset.
        ("200", "01234") => "cut".into(),
        ("502", _) => {
            assert!(head.contains("\r\nx-pannier-refused: upstream.reset"), "{head}");
            "502".into()
        }
        other => panic!("{method} {path}: {other:?}"),
    }
}

/// The fate of a request whose connection is new, or has been used.
async fn fate(method: &str, path: &str, reused: bool) -> String {
    let endpoints = Endpoints::start();
    let list: Vec<_> = endpoints.addresses.iter().map(|address| format!("\"{address}\"")).collect();
    let yaml = format!(
        "upstreams: {{ orders: {{ address: \"{HOST}:80\", endpoints: [{}], keep_alive: {{ timeout: 60s, requests: 1000 }} }} }}\n",
        list.join(", ")
    );
    let sidecar = Loopback::start("caller", &yaml).await;
    if reused {
        // So many that each endpoint has had one.
        for _ in 0..20 {
            assert_eq!(sent(&sidecar, "POST", "/warm").await, "200");
        }
        assert_eq!(sidecar.metric("pannier_upstream_connections", &["upstream=\"orders\""]).await, 2.0);
    }
    let got = sent(&sidecar, method, path).await;
    assert!(endpoints.has_died(path), "nobody died of {path}");
    format!("{got}, executed {}×", endpoints.executed(path))
}

#[tokio::test]
async fn what_each_kind_of_request_gets_is_in_the_table() {
    let mut wrong = Vec::new();
    for (path, when, fates) in FATES {
        let row = format!("| {when} | {} |", fates.join(" | "));
        assert!(DOCUMENT.contains(&row), "docs/killed-upstreams.md has no row {row:?}");
        for (method, expected) in ["GET", "PUT", "POST"].into_iter().zip(fates) {
            for reused in [false, true] {
                let fate = fate(method, path, reused).await;
                if fate != expected {
                    wrong.push(format!("{method}, {when}, reused {reused}: {fate}, not {expected}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
