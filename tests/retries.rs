//! Requests that failed and are sent again: where that is safe, where the route wants it, and as long as
//! the upstream's budget lasts.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use support::authority::Authority;
use support::client::{Answer, request, send};
use support::loopback::{HOST, Loopback};
use support::raw::{Raw, listen};
use tempfile::TempDir;

/// An application that does one and the same with each request, and counts them.
#[derive(Clone)]
struct App {
    address: SocketAddr,
    gets: Arc<AtomicUsize>,
    others: Arc<AtomicUsize>,
    /// Clients that left a request unanswered.
    left: Arc<AtomicUsize>,
}

impl App {
    /// Answers so; with nothing, not at all.
    async fn answers(answer: &'static str) -> Self {
        let count = Arc::<AtomicUsize>::default;
        let (gets, others, left) = (count(), count(), count());
        let counts = (gets.clone(), others.clone(), left.clone());
        let address = listen(move |mut raw: Raw| {
            let (gets, others, left) = counts.clone();
            async move {
                while let Some(head) = raw.next_or_gone().await {
                    let count = if head.starts_with("GET ") { &gets } else { &others };
                    count.fetch_add(1, Ordering::SeqCst);
                    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                    let body = raw.take(length.map_or(0, |n| n.parse().expect("a length"))).await;
                    assert!(body.iter().all(|b| *b == b'x'), "the body is not what was sent");
                    if answer.is_empty() {
                        raw.gone().await;
                        left.fetch_add(1, Ordering::SeqCst);
                        return;
                    }
                    raw.offer(answer).await;
                }
            }
        })
        .await;
        Self { address, gets, others, left }
    }

    async fn good() -> Self {
        Self::answers("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ngood").await
    }

    async fn unavailable() -> Self {
        Self::answers("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 3\r\n\r\nbad").await
    }

    fn gets(&self) -> usize {
        self.gets.load(Ordering::SeqCst)
    }

    fn others(&self) -> usize {
        self.others.load(Ordering::SeqCst)
    }
}

/// A sidecar with an upstream of these endpoints, and a route that says so.
/// Endpoints that fail go on to be asked.
const NEVER: &str = "ejection: { errors: 1000000, lost: 1000000, ratio: 100% }";

async fn caller(endpoints: &[SocketAddr], upstream: &str, route: &str) -> Loopback {
    let endpoints: Vec<_> = endpoints.iter().map(|endpoint| format!("\"{endpoint}\"")).collect();
    let yaml = format!(
        "upstreams: {{ orders: {{ address: \"{HOST}:80\", endpoints: [{}]{upstream}, {NEVER} }} }}
routes: [{{ host: {HOST}, upstream: orders, {route} }}]
",
        endpoints.join(", ")
    );
    Loopback::start("caller", &yaml).await
}

async fn ask(caller: &Loopback, method: &str, body: &str) -> Answer {
    let body = body.to_owned();
    send(caller.outbound(), request(method, HOST, "/", body)).await.expect("an answer")
}

#[tokio::test]
async fn a_listed_status_is_asked_for_elsewhere_if_that_is_safe() {
    let (good, bad) = (App::good().await, App::unavailable().await);
    let caller = caller(&[good.address, bad.address], "", "retries: { on: [503] }").await;
    for _ in 0..20 {
        let answer = ask(&caller, "GET", "").await;
        assert_eq!((answer.status.as_u16(), answer.text()), (200, "good"));
        // With its body, as it was.
        assert_eq!(ask(&caller, "PUT", "xxxxx").await.text(), "good");
    }
    assert!(bad.gets() > 0 && bad.others() > 0, "the failing one was never asked");
    assert_eq!(
        caller.metric("pannier_retries_total", &["outcome=\"sent\""]).await as usize,
        bad.gets() + bad.others()
    );

    let before = good.others() + bad.others();
    let mut failed = 0;
    for _ in 0..30 {
        let answer = ask(&caller, "POST", "x").await;
        failed += usize::from(answer.status == 503);
        assert!(answer.refused().is_none(), "the application's own answer: {answer:?}");
    }
    assert_eq!(good.others() + bad.others(), before + 30, "no POST is sent twice");
    assert!(failed > 0);
}

#[tokio::test]
async fn no_status_is_asked_for_again_unless_listed() {
    let bad = App::unavailable().await;
    let caller = caller(&[bad.address], "", "retries: 5").await;
    assert_eq!(ask(&caller, "GET", "").await.text(), "bad");
    assert_eq!(bad.gets(), 1);
}

#[tokio::test]
async fn the_last_answer_is_given_as_it_is() {
    let bad = App::unavailable().await;
    let caller = caller(&[bad.address], "", "retries: { most: 2, on: [5xx], backoff: { first: 1ms } }").await;
    let answer = ask(&caller, "GET", "").await;
    assert_eq!((answer.status.as_u16(), answer.text(), answer.refused()), (503, "bad", None));
    assert_eq!(bad.gets(), 3);
}

#[tokio::test]
async fn who_asks_to_be_left_alone_for_longer_than_there_is_time_is() {
    let busy = App::answers("HTTP/1.1 503 Busy\r\nretry-after: 30\r\ncontent-length: 4\r\n\r\nbusy").await;
    let caller = caller(&[busy.address], "", "timeout: 10s, retries: { on: [503] }").await;
    assert_eq!(ask(&caller, "GET", "").await.text(), "busy");
    assert_eq!(busy.gets(), 1);
}

#[tokio::test]
async fn a_client_that_leaves_in_a_pause_is_not_asked_for_again() {
    let busy = App::answers("HTTP/1.1 503 Busy\r\nretry-after: 30\r\ncontent-length: 4\r\n\r\nbusy").await;
    let caller = caller(&[busy.address], "", "timeout: 60s, retries: { on: [503] }").await;
    let mut raw = Raw::connect(caller.outbound()).await;
    raw.send(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n")).await;
    caller.until_metric("pannier_retries_total", &["outcome=\"sent\""], 1.0).await;
    caller.until_metric("pannier_upstream_in_flight", &["upstream=\"orders\""], 0.0).await;
    raw.reset();
    caller.until_metric("pannier_refused_total", &["reason=\"http.downstream_gone\""], 1.0).await;
    assert_eq!(busy.gets(), 1);
}

#[tokio::test]
async fn a_whole_upstream_that_fails_is_not_asked_much_more_often() {
    const REQUESTS: usize = 500;
    let (one, two) = (App::unavailable().await, App::unavailable().await);
    let route = "retries: { most: 5, on: [503], backoff: { first: 1ms, most: 1ms } }";
    let caller = caller(&[one.address, two.address], "", route).await;
    let begun = Instant::now();
    let mut senders = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let to = caller.outbound();
        senders.spawn(async move {
            for _ in 0..REQUESTS / 10 {
                let answer = send(to, request("GET", HOST, "/", "")).await.expect("an answer");
                assert_eq!(answer.text(), "bad", "as it is");
            }
        });
    }
    senders.join_all().await;
    let took = begun.elapsed().as_secs() as usize + 1;
    let again = one.gets() + two.gets() - REQUESTS;
    // A fifth of the requests, and ten a second, of which ten seconds' worth is there at first.
    let most = REQUESTS / 5 + 100 + 10 * took;
    assert!((100..=most).contains(&again), "{again} of at most {most}");
    let count = async |outcome: &str| {
        caller
            .metric("pannier_retries_total", &["upstream=\"orders\"", &format!("outcome=\"{outcome}\"")])
            .await
    };
    assert_eq!(count("sent").await as usize, again);
    assert!(count("over_budget").await >= (REQUESTS - again) as f64 / 6.0);
    let upstreams = caller.get("/upstreams").await.expect("an answer").json();
    assert_eq!(upstreams["upstreams"][0]["retries"]["sent"], again);
}

#[tokio::test]
async fn a_failure_says_that_the_budget_was_used_up() {
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = nobody.local_addr().expect("bound");
    drop(nobody);
    let budget = ", retry_budget: { share: 0%, least: 1/h }";
    let caller = caller(&[address], budget, "retries: 2").await;
    let answer = ask(&caller, "GET", "").await;
    assert_eq!(answer.refused(), Some("pool.connect"));
    assert!(
        answer.text().contains("not sent again: the upstream's retry_budget is used up"),
        "{}",
        answer.text()
    );
}

#[tokio::test]
async fn a_try_that_is_not_answered_in_time_is_given_up_for_another() {
    let (good, silent) = (App::good().await, App::answers("").await);
    let route = "timeout: 2s, retries: { on: [timeout], try_timeout: 100ms }";
    let caller = caller(&[good.address, silent.address], "", route).await;
    for _ in 0..10 {
        assert_eq!(ask(&caller, "GET", "").await.text(), "good");
        assert_eq!(ask(&caller, "PUT", "xxx").await.text(), "good");
    }
    let given_up = silent.gets() + silent.others();
    assert!(given_up > 0, "the silent one was never asked");
    until(|| silent.left.load(Ordering::SeqCst) == given_up).await;
    caller.until_metric("pannier_upstream_in_flight", &["upstream=\"orders\""], 0.0).await;

    // What must not be sent twice waits for its answer, for as long as the route says.
    let before = good.others() + silent.others();
    let answers = [ask(&caller, "POST", "x").await, ask(&caller, "POST", "x").await];
    let late = |answer: &&Answer| answer.refused() == Some("upstream.timeout");
    assert_eq!(
        answers.iter().filter(|answer| answer.status == 200).count() + answers.iter().filter(late).count(),
        2
    );
    assert_eq!(good.others() + silent.others(), before + 2);
}

#[tokio::test]
async fn the_last_try_has_what_time_is_left() {
    let slow = listen(async |mut raw: Raw| {
        while raw.next_or_gone().await.is_some() {
            tokio::time::sleep(Duration::from_millis(400)).await;
            raw.offer("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nslow").await;
        }
    })
    .await;
    let route = "retries: { most: 1, on: [timeout], try_timeout: 100ms }";
    let caller = caller(&[slow], "", route).await;
    assert_eq!(ask(&caller, "GET", "").await.text(), "slow");
    assert_eq!(caller.metric("pannier_retries_total", &["outcome=\"sent\""]).await, 1.0);
}

#[tokio::test]
async fn a_body_that_comes_slowly_is_no_slow_try() {
    let good = App::good().await;
    let caller = caller(&[good.address], "", "retries: { on: [timeout], try_timeout: 100ms }").await;
    let mut raw = Raw::connect(caller.outbound()).await;
    raw.send(format!("PUT / HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 4\r\n\r\n")).await;
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(80)).await;
        raw.send("x").await;
    }
    assert!(raw.head().await.starts_with("HTTP/1.1 200 "));
    assert_eq!(good.others(), 1);
}

/// Sidecars of orders, each with its application and whom it lets in; and a caller of both over mutual TLS.
async fn mesh(orders: [(&App, &str); 2], route: &str) -> (Loopback, [Loopback; 2], TempDir) {
    let files = tempfile::tempdir().expect("a temporary directory");
    let authority = Authority::new("cluster.local");
    let issue =
        |name: &str| authority.issue_into(&files.path().join(name), &format!("ns/shop/sa/{name}")).yaml();
    let start = async |(app, caller): (&App, &str)| {
        let allow = format!("allow: [{{ caller: \"spiffe://cluster.local/ns/shop/sa/{caller}\" }}]");
        let inbound = format!("application: {}\ninbound: {{ mtls: strict, {allow} }}\n", app.address);
        Loopback::start("orders", &(issue("orders") + &inbound)).await
    };
    let both = [start(orders[0]).await, start(orders[1]).await];
    let yaml = format!(
        "{}upstreams: {{ orders: {{ address: \"{HOST}:80\", endpoints: [\"{}\", \"{}\"] }} }}
routes: [{{ host: {HOST}, upstream: orders, {route} }}]
",
        issue("caller"),
        both[0].inbound(),
        both[1].inbound()
    );
    (Loopback::start("caller", &yaml).await, both, files)
}

#[tokio::test]
async fn what_a_peers_sidecar_refused_goes_elsewhere_whatever_it_is() {
    let (closed, open) = (App::good().await, App::good().await);
    let (caller, _orders, _files) =
        mesh([(&closed, "nobody"), (&open, "caller")], "retries: { on: [403] }").await;
    for _ in 0..20 {
        assert_eq!(ask(&caller, "POST", "x").await.text(), "good");
    }
    assert_eq!((closed.others(), open.others()), (0, 20));
    let sent = caller.metric("pannier_retries_total", &["outcome=\"sent\""]).await;
    assert!(sent > 0.0, "the closed one was never asked");
}

#[tokio::test]
async fn an_application_that_says_it_was_a_sidecar_is_not_believed() {
    let answer = "HTTP/1.1 403 No\r\nx-pannier-refused: auth.denied\r\ncontent-length: 2\r\n\r\nno";
    let app = App::answers(answer).await;
    let caller = caller(&[app.address], "", "retries: { on: [403] }").await;
    assert_eq!(ask(&caller, "POST", "x").await.text(), "no");
    assert_eq!(app.others(), 1);
}

/// What is sent to a slow endpoint is answered by the other, and the slow one is let go.
async fn is_hedged(caller: &Loopback, silent: &App) {
    for _ in 0..10 {
        assert_eq!(ask(caller, "GET", "").await.text(), "good");
        assert_eq!(ask(caller, "PUT", "xxx").await.text(), "good");
    }
    let asked = silent.gets() + silent.others();
    assert!(asked > 0, "the silent one was never asked");
    until(|| silent.left.load(Ordering::SeqCst) == asked).await;
    caller.until_metric("pannier_upstream_in_flight", &["upstream=\"orders\""], 0.0).await;
    // A good one that took so long by itself has had the silent one beside it, and won all the same.
    let sent = caller.metric("pannier_hedges_total", &["outcome=\"sent\""]).await as usize;
    let won = caller.metric("pannier_hedges_total", &["outcome=\"won\""]).await as usize;
    assert!(sent >= asked && (1..=sent).contains(&won), "{sent} sent, {won} won, {asked} to the silent one");
}

#[tokio::test]
async fn a_slow_request_is_hedged_and_the_slower_try_cancelled() {
    let (good, silent) = (App::good().await, App::answers("").await);
    let caller = caller(&[good.address, silent.address], "", "retries: 0, hedge: { after: 50ms }").await;
    is_hedged(&caller, &silent).await;
}

#[tokio::test]
async fn a_slow_peer_is_hedged_and_its_application_let_go() {
    let (good, silent) = (App::good().await, App::answers("").await);
    let (caller, _orders, _files) =
        mesh([(&good, "caller"), (&silent, "caller")], "hedge: { after: 50ms }").await;
    is_hedged(&caller, &silent).await;
}

/// Two endpoints that answer nothing: whoever leaves is worked for at neither of them.
async fn both_tries_end_with_the_client(caller: &Loopback, silent: [&App; 2]) {
    for n in 1..=6 {
        let mut client = Raw::connect(caller.outbound()).await;
        client.send(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n")).await;
        until(|| silent.iter().all(|app| app.gets() == n)).await;
        if n % 2 == 0 {
            client.reset();
        } else {
            drop(client);
        }
        until(|| silent.iter().all(|app| app.left.load(Ordering::SeqCst) == n)).await;
        caller.until_metric("pannier_upstream_in_flight", &["upstream=\"orders\""], 0.0).await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_request_and_the_hedge() {
    let (one, other) = (App::answers("").await, App::answers("").await);
    let caller = caller(&[one.address, other.address], "", "retries: 0, hedge: { after: 20ms }").await;
    both_tries_end_with_the_client(&caller, [&one, &other]).await;
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_request_and_the_hedge_at_their_sidecars() {
    let (one, other) = (App::answers("").await, App::answers("").await);
    let (caller, _orders, _files) =
        mesh([(&one, "caller"), (&other, "caller")], "hedge: { after: 20ms }").await;
    both_tries_end_with_the_client(&caller, [&one, &other]).await;
}

#[tokio::test]
async fn what_must_not_run_twice_is_not_hedged() {
    let (good, silent) = (App::good().await, App::answers("").await);
    let route = "timeout: 400ms, hedge: { after: 20ms }";
    let caller = caller(&[good.address, silent.address], "", route).await;
    // Which of two that are alike is chosen is chance.
    let (mut asked, mut late) = (0, 0);
    while late == 0 && asked < 60 {
        asked += 1;
        late += usize::from(ask(&caller, "POST", "x").await.refused() == Some("upstream.timeout"));
    }
    assert_eq!((good.others() + silent.others(), silent.others()), (asked, late));
    assert!(late > 0, "the silent one was never asked");
    assert_eq!(caller.metric("pannier_hedges_total", &[]).await, 0.0);
}

#[tokio::test]
async fn no_budget_no_hedge() {
    let silent = [App::answers("").await, App::answers("").await];
    let budget = ", retry_budget: { share: 0%, least: 1/h }";
    let route = "timeout: 300ms, hedge: { after: 20ms }";
    let caller = caller(&[silent[0].address, silent[1].address], budget, route).await;
    assert_eq!(ask(&caller, "GET", "").await.refused(), Some("upstream.timeout"));
    assert_eq!(silent[0].gets() + silent[1].gets(), 1);
    assert_eq!(caller.metric("pannier_retries_total", &["outcome=\"over_budget\""]).await, 1.0);
}

#[tokio::test]
async fn an_interim_answer_is_none_of_who_may_lose() {
    let early = App::answers("HTTP/1.1 103 Early Hints\r\nlink: </slow>\r\n\r\n").await;
    let good = App::good().await;
    let caller = caller(&[good.address, early.address], "", "hedge: { after: 100ms }").await;
    for _ in 0..10 {
        let mut raw = Raw::connect(caller.outbound()).await;
        raw.send(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n")).await;
        let head = raw.head().await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    }
    assert!(early.gets() > 0, "the early one was never asked");
}

#[tokio::test]
async fn what_is_slow_is_learned() {
    let stuck = Arc::<AtomicUsize>::default();
    let now = stuck.clone();
    let app = listen(move |mut raw: Raw| {
        let stuck = stuck.clone();
        async move {
            while raw.next_or_gone().await.is_some() {
                if stuck.load(Ordering::SeqCst) > 0 {
                    stuck.fetch_add(1, Ordering::SeqCst);
                    return raw.gone().await;
                }
                raw.offer("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfast").await;
            }
        }
    })
    .await;
    let good = App::good().await;
    let caller = caller(&[good.address, app], "", "timeout: 9s, hedge: { after: p99 }").await;
    let begun = Instant::now();
    // For more than a second, after which what was usual is looked at again.
    while begun.elapsed() < Duration::from_millis(2500) {
        ask(&caller, "GET", "").await;
    }
    now.store(1, Ordering::SeqCst);
    for _ in 0..20 {
        assert_eq!(ask(&caller, "GET", "").await.status, 200);
    }
    assert!(now.load(Ordering::SeqCst) > 1, "the one that is stuck was never asked");
}

async fn until(done: impl Fn() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(10), "waited in vain");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
