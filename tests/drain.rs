//! A sidecar that is told to stop costs no request: not of the callers that are in the mesh, not
//! of those outside, not of its own application, for as long as that is there. Beside a job it ends
//! when the job does.

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread::sleep;
use std::time::Duration;

use futures_util::FutureExt;
use http::Request;
use support::app::App;
use support::client::{get, request, send};
use support::dns::Dns;
use support::eventually;
use support::lab::{Lab, Pod};
use support::load::Load;
use support::shop::{NAME, PATIENCE, PORT, Shop, endpoints};
use support::sidecar::Sidecar;

/// In-flight requests outlast `drain.accept`, and end before `drain.timeout` does.
const DRAIN: &str = "drain: { accept: 2s, timeout: 60s }\n";
const SLOW: &str = "/wait/5000";

/// Longer than a sidecar takes to believe that an application has gone of which there is no sign.
const QUIET: Duration = Duration::from_secs(3);

/// A connection of a client that knows nothing of meshes and keeps it open.
struct KeepAlive(TcpStream);

impl KeepAlive {
    fn open(from: &Pod, to: SocketAddr) -> Self {
        let stream = from.enter(|| async { TcpStream::connect(to) }).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Self(stream)
    }

    /// Sends a request; gives the answer's head, in lower case.
    fn get(&mut self) -> String {
        self.0.write_all(b"GET / HTTP/1.1\r\nhost: one\r\n\r\n").expect("the connection is open");
        let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
        loop {
            let n = self.0.read(&mut buffer).expect("an answer");
            answer.extend_from_slice(&buffer[..n]);
            let text = String::from_utf8_lossy(&answer).to_lowercase();
            let Some((head, body)) = text.split_once("\r\n\r\n") else {
                assert!(n > 0, "closed within the head: {text}");
                continue;
            };
            let length: Option<usize> =
                head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            if body.len() == length.unwrap_or_else(|| panic!("no length: {head}")) {
                return head.to_owned();
            }
        }
    }

    fn ends_closed(mut self) -> bool {
        matches!(self.0.read(&mut [0]), Ok(0))
    }
}

/// What stops the endpoint `one`, and when DNS hears of it.
fn drained(stop: impl Fn(&mut Dns, &Shop, &Sidecar)) {
    let (shop, mut dns) = Shop::new(1);
    let (stranger, one) = (shop.lab.pod("stranger"), &shop.one);
    let apps = [one, &shop.two].map(|pod| pod.app(pod.addresses(PORT)[0]));
    let elsewhere = stranger.app(stranger.addresses(PORT)[0]);
    let mut draining = one.sidecar(&shop.orders(one, DRAIN));
    let _two = shop.two.sidecar(&shop.orders(&shop.two, ""));
    let _caller = shop.caller.sidecar(&shop.calls("", ""));

    let pause = Duration::from_millis(2);
    let gets = Load { pause, ..shop.load() }.start(&shop.caller);
    let posts = Load { method: "POST", body: "order".into(), pause, connections: 4, ..shop.load() };
    let posts = posts.start(&shop.caller);
    let mut plaintext = KeepAlive::open(&stranger, apps[0].address());
    assert!(!plaintext.get().contains("connection: close"));
    gets.more_from(one, 100);
    posts.more_from(one, 100);

    let slow = Load { path: SLOW.into(), connections: 8, requests: Some(8), ..shop.load() };
    let slow = slow.start(&shop.caller);
    eventually(PATIENCE, "slow requests at both", || apps.iter().all(|app| app.waiting() > 0).then_some(()));

    stop(&mut dns, &shop, &draining);
    eventually(PATIENCE, "/ready to say no", || (draining.probe("/ready").status == 503).then_some(()));
    assert!(draining.probe("/ready").text().contains("draining"));
    assert_eq!(draining.probe("/live").status, 200);
    // Endpoints have not heard yet: a new connection is served, and asked to be the last.
    let head = KeepAlive::open(&stranger, apps[0].address()).get();
    assert!(head.starts_with("http/1.1 200") && head.contains("connection: close"), "{head}");
    let head = plaintext.get();
    assert!(head.starts_with("http/1.1 200") && head.contains("connection: close"), "{head}");
    assert!(plaintext.ends_closed());

    let outbound = || one.enter(|| get(elsewhere.address(), "elsewhere", "/")).map(|answer| answer.status);
    assert_eq!(outbound().expect("its own requests go out"), 200);
    eventually(PATIENCE, "the inbound side to close", || {
        stranger.enter(|| get(apps[0].address(), "one", "/")).is_err().then_some(())
    });
    assert!(draining.process().ended().is_none(), "it left with requests in flight");
    assert_eq!(outbound().expect("its own requests go out to the last"), 200);

    let slow = slow.finish();
    slow.assert_all_ok();
    assert!(slow.pods[one.name()] > 0, "{slow:?}");
    sleep(QUIET);
    assert_eq!(outbound().expect("its own requests go out while it is there"), 200);
    let [app, _two] = apps;
    app.kill();
    let status = draining.wait(PATIENCE);
    assert!(status.success(), "{status}");
    assert!(draining.log().contains("nothing is in flight"), "it ran out of time");

    gets.more(200);
    let (gets, posts) = (gets.stop(), posts.stop());
    gets.assert_all_ok();
    posts.assert_all_ok();
    println!("{} GETs, {} POSTs, {} slow requests: no failure", gets.sent(), posts.sent(), slow.sent());
}

#[test]
fn sigterm_before_dns_hears() {
    drained(|dns, shop, sidecar| {
        sidecar.terminate();
        endpoints(dns, &[&shop.two]);
    });
}

#[test]
fn the_drain_door_after_dns_has_heard() {
    drained(|dns, shop, sidecar| {
        endpoints(dns, &[&shop.two]);
        assert_eq!(sidecar.post("/drain").status, 202);
    });
}

/// A pod with rules, whose application listens on [`PORT`].
struct Called {
    one: Pod,
    stranger: Pod,
    address: SocketAddr,
    elsewhere: App,
    _lab: Lab,
}

impl Called {
    fn new() -> (Self, App) {
        let lab = Lab::new();
        let (one, stranger) = (lab.pod("one"), lab.pod("stranger"));
        one.init();
        let app = one.app(one.addresses(PORT)[0]);
        let elsewhere = stranger.app(stranger.addresses(PORT)[0]);
        (Self { one, stranger, address: app.address(), elsewhere, _lab: lab }, app)
    }

    /// Its sidecar, through which a stranger has called it.
    fn sidecar(&self, drain: &str) -> Sidecar<'_> {
        let sidecar = self.one.sidecar(drain);
        let answer = self.stranger.enter(|| get(self.address, "one", "/"));
        assert_eq!(answer.expect("an answer").status, 200);
        sidecar
    }

    /// A call of the application at `one`.
    fn calls_out(&self) -> bool {
        let answer = self.one.enter(|| get(self.elsewhere.address(), "elsewhere", "/"));
        answer.is_ok_and(|answer| answer.status == 200)
    }

    fn until_inbound_is_closed(&self) {
        eventually(PATIENCE, "the inbound side to close", || {
            self.stranger.enter(|| get(self.address, "one", "/")).is_err().then_some(())
        });
    }
}

#[test]
fn an_application_that_takes_its_time_makes_its_last_call() {
    let (called, app) = Called::new();
    let mut sidecar = called.sidecar("drain: { accept: 0s, timeout: 60s }\n");
    sidecar.terminate();
    called.until_inbound_is_closed();
    sleep(QUIET);
    assert!(sidecar.process().ended().is_none(), "it left before its application");
    assert!(called.calls_out(), "the last call failed");
    app.kill();
    assert!(sidecar.wait(PATIENCE).success());
    assert!(sidecar.log().contains("no sign of the application"), "{}", sidecar.log());
}

#[test]
fn an_application_that_only_calls_is_seen_by_its_connections() {
    let (called, _app) = Called::new();
    // Nobody has called it: that it listens means nothing.
    let mut sidecar = called.one.sidecar("drain: { accept: 0s, timeout: 60s }\n");
    let mut open = KeepAlive::open(&called.one, called.elsewhere.address());
    open.get();
    sidecar.terminate();
    sleep(QUIET);
    open.get();
    sleep(QUIET);
    assert!(sidecar.process().ended().is_none(), "it left before its application");
    drop(open);
    assert!(sidecar.wait(PATIENCE).success());
}

#[test]
fn an_application_that_never_stops_is_waited_for_no_longer_than_the_timeout() {
    let (called, _app) = Called::new();
    let mut sidecar = called.sidecar("drain: { accept: 0s, timeout: 2s }\n");
    sidecar.terminate();
    assert!(sidecar.wait(PATIENCE).success());
    let still = format!("the application is still there: it listens on {}", called.address);
    assert!(sidecar.log().contains(&still), "{}", sidecar.log());
}

/// What has this much time is never waited for.
const PATIENT: &str = "drain: { accept: 10m, timeout: 10m }\n";

fn quits_after(words: &[&str]) {
    let (called, app) = Called::new();
    let mut sidecar = called.sidecar(PATIENT);
    let slow = Load { path: SLOW.into(), requests: Some(4), ..Load::new(called.address, "one") };
    let slow = slow.start(&called.stranger);
    eventually(PATIENCE, "slow requests", || (app.waiting() == 4).then_some(()));
    assert_eq!(sidecar.post_probe("/quit").status, 404);
    assert_eq!(sidecar.probe("/ready").status, 200);
    for word in words {
        assert_eq!(sidecar.post(word).status, 202);
    }
    slow.finish().assert_all_ok();
    assert!(sidecar.wait(PATIENCE).success());
    assert!(sidecar.log().contains("nothing is in flight, and the application is not waited for"));
}

#[test]
fn quit_finishes_what_is_in_flight_and_waits_for_nobody() {
    quits_after(&["/quit"]);
}

#[test]
fn quit_shortens_a_drain() {
    quits_after(&["/drain", "/quit"]);
}

#[test]
fn a_long_stream_is_told_early_and_finishes() {
    let (called, app) = Called::new();
    let h2 = called.one.h2_app(called.one.addresses(PORT + 1)[0]);
    let to = h2.address();
    let mut sidecar = called.sidecar("drain: { accept: 0s, timeout: 60s }\n");
    let status = called.stranger.start(move || async move {
        let stream = tokio::net::TcpStream::connect(to).await.expect("connected");
        let (mut sender, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
        let connection = tokio::spawn(connection);
        let long = Request::get(format!("http://one{SLOW}")).body(()).expect("valid");
        let (mut answer, _) = sender.send_request(long, true).expect("an open connection");
        let told = loop {
            match sender.clone().ready().await {
                Ok(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(error) => break error,
            }
        };
        assert!(told.is_go_away() && told.reason() == Some(h2::Reason::NO_ERROR), "{told:?}");
        assert!((&mut answer).now_or_never().is_none(), "it was told with its answer, not before");
        let status = answer.await.expect("an answer").status();
        connection.await.expect("it does not panic").expect("an end without an error");
        status
    });
    eventually(PATIENCE, "the long stream", || (h2.waiting() == 1).then_some(()));
    sidecar.terminate();
    assert_eq!(status.join(), 200);
    drop((app, h2));
    assert!(sidecar.wait(PATIENCE).success());
}

#[test]
fn what_is_left_at_the_timeout_sees_an_end() {
    const FOREVER: &str = "/wait/600000";
    let (shop, _dns) = Shop::new(60);
    let one = &shop.one;
    let stranger = shop.lab.pod("stranger");
    let [http1, http2, opaque] = [PORT, PORT + 1, PORT + 2].map(|port| one.addresses(port)[0]);
    let (app, h2_app) = (one.app(http1), one.h2_app(http2));
    let _greeting = one.greeting_app(opaque, b"hello");
    let mut sidecar = one.sidecar(&shop.orders(one, "drain: { accept: 0s, timeout: 3s }\n"));
    let _caller = shop.caller.sidecar(&shop.calls("", ""));

    // Which may not be repeated.
    let post = |host: &'static str| request("POST", host, FOREVER, "");
    let plain = stranger.start(move || send(http1, post("one")));
    let h2 = stranger.start(move || {
        let mut request = post("http://one");
        *request.uri_mut() = format!("http://one{FOREVER}").parse().expect("valid");
        *request.version_mut() = http::Version::HTTP_2;
        request.headers_mut().remove("host");
        send(http2, request)
    });
    let mesh = shop.caller.start(move || send(Shop::vip(), post(NAME)));
    let tunnel = stranger.start(move || async move {
        let mut stream = tokio::net::TcpStream::connect(opaque).await.expect("connected");
        let mut said = Vec::new();
        let end = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut said).await;
        (said, end.is_ok())
    });
    eventually(PATIENCE, "all to be open", || {
        let open = sidecar.metric("pannier_tcp_open", &[r#"upstream="application""#]);
        (app.waiting() == 2 && h2_app.waiting() == 1 && open == 1.0).then_some(())
    });
    sidecar.terminate();
    assert!(sidecar.wait(PATIENCE).success());
    assert!(sidecar.log().contains("drain.timeout ran out with requests in flight"), "{}", sidecar.log());

    for (what, ended) in [("HTTP/1", plain.join()), ("HTTP/2", h2.join())] {
        let error = ended.expect_err(what);
        assert_ne!(error.kind(), std::io::ErrorKind::TimedOut, "{what}: silence");
    }
    let refused = mesh.join().expect("the caller's sidecar answers");
    assert_eq!((refused.status.as_u16(), refused.refused()), (502, Some("upstream.reset")));
    assert_eq!(tunnel.join(), (b"hello".to_vec(), true));
}

/// What calls `elsewhere` through the sidecar's own address, as a shell can.
const CALL: &str = r"call() {
    exec 3<>/dev/tcp/127.0.0.1/15001 &&
    printf 'GET %s HTTP/1.1\r\nhost: elsewhere.test\r\nconnection: close\r\n\r\n' $1 >&3 &&
    head -1 <&3 | grep -q '^HTTP/1.1 200'
}
";

/// A pod whose sidecar knows the application of another.
struct Job {
    pod: Pod,
    elsewhere: App,
    _other: Pod,
    _lab: Lab,
}

impl Job {
    fn new() -> Self {
        let lab = Lab::new();
        let (pod, other) = (lab.pod("job"), lab.pod("other"));
        let elsewhere = other.app(other.addresses(PORT)[0]);
        Self { pod, elsewhere, _other: other, _lab: lab }
    }

    fn config(&self) -> String {
        let elsewhere = self.elsewhere.address();
        format!(
            "upstreams: {{ elsewhere: {{ address: \"elsewhere.test:80\", endpoints: [\"{elsewhere}\"] }} }}
{PATIENT}"
        )
    }

    fn starts(&self, program: &[&str]) -> Sidecar<'_> {
        self.pod.sidecar_with(&self.config(), program)
    }

    fn starts_script(&self, script: &str) -> Sidecar<'_> {
        self.starts(&["bash", "-c", &format!("{CALL}{script}")])
    }
}

#[test]
fn a_job_ends_with_its_own_code() {
    let job = Job::new();
    // One after the other in the same pod: nothing of the last is left that would be in the way.
    for (script, code) in [("call / && exit 3", 3), ("call /", 0), ("call / && kill -KILL $$", 137)] {
        let mut run = job.starts_script(script);
        assert_eq!(run.wait(PATIENCE).code(), Some(code), "{script}: {}", run.log());
    }
    assert_eq!(job.elsewhere.requests().len(), 3);
}

#[test]
fn a_job_that_is_told_to_stop_makes_its_last_call() {
    let job = Job::new();
    let script =
        "trap 'sleep 3; call /last && exit 7; exit 1' TERM; echo it is up; while :; do sleep 0.1; done";
    let mut run = job.starts_script(script);
    run.process()
        .until(PATIENCE, "the application to be up", |run| run.log().contains("it is up").then_some(()));
    assert_eq!(run.probe("/ready").status, 200);
    run.terminate();
    eventually(PATIENCE, "/ready to say no", || (run.probe("/ready").status == 503).then_some(()));
    assert_eq!(run.wait(PATIENCE).code(), Some(7), "{}", run.log());
    assert_eq!(job.elsewhere.requests().len(), 1);
}

#[test]
fn what_cannot_be_started_is_said_as_shells_do() {
    let job = Job::new();
    for (program, code) in [("/no/such/program", 127), ("/etc/passwd", 126)] {
        let mut run = job.starts(&[program]);
        assert_eq!(run.wait(PATIENCE).code(), Some(code), "{}", run.log());
        assert!(run.log().contains(&format!("cannot start {program}: ")), "{}", run.log());
    }
}

#[test]
fn without_a_sidecar_no_application_is_started() {
    let job = Job::new();
    let mut run = job.pod.sidecar_with("workers: none\n", &["echo", "it has started"]);
    assert_eq!(run.wait(PATIENCE).code(), Some(1));
    assert!(run.log().contains("workers") && !run.log().contains("it has started"), "{}", run.log());
}
