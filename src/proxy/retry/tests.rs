use http::HeaderMap;

use super::*;
use crate::config::model::RetryBudget;
use crate::config::parse;
use crate::http::Body;

const MILLI: Duration = Duration::from_millis(1);

fn policy(retries: &str) -> Policy {
    let text =
        format!("upstreams: {{ a: {{ address: a:80 }} }}\nroutes: [ {{ upstream: a, retries: {retries} }} ]");
    Policy::new(&parse(&text, "t").expect("valid").routes[0].retries)
}

fn budget() -> Budget {
    Budget::new(RetryBudget::default(), 1)
}

/// A failure of a first try on a new connection.
fn of(reason: Reason, retry: Retry) -> Failure {
    Failure::of(&Error::new(reason, "").retry(retry), false)
}

fn answered(
    status: u16,
    fields: &[(&'static str, &'static str)],
    grpc: bool,
    sidecar: bool,
) -> Option<Failure> {
    let fields: HeaderMap = fields
        .iter()
        .map(|(name, value)| (name.parse().expect("a name"), value.parse().expect("a value")))
        .collect();
    let status = StatusCode::from_u16(status).expect("a status");
    let head = ResponseHead { fields: fields.into(), ..ResponseHead::new(status) };
    Failure::answered(&head, grpc, sidecar)
}

fn refused() -> Failure {
    of(Reason::UpstreamRefused, Retry::Unprocessed)
}

fn reset() -> Failure {
    of(Reason::UpstreamReset, Retry::Idempotent)
}

/// What is said of failures of one request, one after the other.
#[track_caller]
fn said(retries: &str, idempotent: bool, failures: &[Failure], expected: &[Result<(), Not>]) {
    let (policy, budget, mut none) = (policy(retries), budget(), Body::Empty);
    let (tries, body) = (Tries::new(&policy, &budget, idempotent, None), Replay::new(&mut none, 0));
    let said: Vec<_> = failures.iter().map(|failure| tries.again(*failure, false, &body).map(drop)).collect();
    assert_eq!(said, expected);
}

#[tokio::test(start_paused = true)]
async fn what_was_not_processed_goes_again_whatever_it_is() {
    let connect = of(Reason::PoolConnect, Retry::Unprocessed);
    said("2", false, &[refused(), connect, refused()], &[Ok(()), Ok(()), Err(Not::Left)]);
    said("0", true, &[connect], &[Err(Not::Left)]);
    said("{ on: [reset] }", true, &[connect], &[Err(Not::Wanted)]);
    said("{ on: [connect] }", true, &[refused()], &[Err(Not::Wanted)]);
    // A used connection that took nothing is not the endpoint's refusal, and costs nothing; once.
    let stale = Failure { reused: true, ..refused() };
    said("0", false, &[stale, stale], &[Ok(()), Err(Not::Left)]);
    // Nobody is asked again for what there is none of.
    said("2", true, &[of(Reason::PoolFull, Retry::Unprocessed)], &[Err(Not::Wanted)]);
}

#[tokio::test(start_paused = true)]
async fn what_may_have_been_goes_again_once_if_it_may_be_repeated() {
    said("5", false, &[reset()], &[Err(Not::Safe)]);
    let stale = Failure { reused: true, ..reset() };
    said("5", true, &[stale, reset(), reset()], &[Ok(()), Ok(()), Err(Not::Safe)]);
    said("5", true, &[of(Reason::UpstreamMalformed, Retry::Never)], &[Err(Not::Safe)]);
    said("5", true, &[Failure::TOO_SLOW], &[Err(Not::Wanted)]);
    let rules = "{ most: 2, on: [timeout], try_timeout: 1s }";
    said(rules, true, &[Failure::TOO_SLOW; 3], &[Ok(()), Ok(()), Err(Not::Left)]);
    said(rules, false, &[Failure::TOO_SLOW], &[Err(Not::Safe)]);
}

#[tokio::test(start_paused = true)]
async fn answers_go_again_where_the_route_lists_them() {
    let (unavailable, missing) =
        (answered(503, &[], false, false).unwrap(), answered(404, &[], false, false).unwrap());
    said("2", true, &[unavailable], &[Err(Not::Wanted)]);
    said("{ on: [503] }", true, &[missing, unavailable], &[Err(Not::Wanted), Ok(())]);
    said("{ on: [503] }", false, &[unavailable], &[Err(Not::Safe)]);
    said("{ on: [5xx, 404] }", true, &[missing, unavailable], &[Ok(()), Ok(())]);
    assert_eq!(answered(200, &[], false, false).map(|f| f.cause), None);
    for status in [400, 499, 500, 599] {
        let one = answered(status, &[], false, false).unwrap();
        said(&format!("{{ on: [{status}] }}"), true, &[one], &[Ok(())]);
        said("{ on: [501] }", true, &[one], &[Err(Not::Wanted)]);
    }
    // Of gRPC the status is another, and that of HTTP says nothing.
    let grpc = |code| answered(200, &[("grpc-status", code)], true, false);
    assert_eq!((grpc("0").map(|f| f.cause), grpc("14").map(|f| f.cause)), (None, Some(Cause::Grpc(14))));
    said(
        "{ on: [unavailable] }",
        true,
        &[grpc("14").unwrap(), grpc("13").unwrap()],
        &[Ok(()), Err(Not::Wanted)],
    );
    said("{ on: [unavailable] }", true, &[grpc("99").unwrap()], &[Err(Not::Wanted)]);
}

#[test]
fn a_refusal_that_a_sidecar_made_itself_proves_that_nothing_was_processed() {
    let refused = |reason, sidecar| answered(503, &[(REFUSED_FIELD, reason)], false, sidecar).unwrap().retry;
    assert_eq!(refused("drain.draining", true), Retry::Unprocessed);
    assert_eq!(refused("limit.exhausted", true), Retry::Unprocessed);
    assert_eq!(refused("upstream.reset", true), Retry::Idempotent);
    assert_eq!(refused("no.such", true), Retry::Idempotent);
    assert_eq!(refused("drain.draining", false), Retry::Idempotent, "anybody may say so");
}

#[tokio::test(start_paused = true)]
async fn pauses_are_doubled_by_chance_and_within_their_bounds() {
    let policy = policy("{ most: 9, on: [503, connect], backoff: { first: 10ms, most: 50ms } }");
    let (budget, mut none) = (budget(), Body::Empty);
    let body = Replay::new(&mut none, 0);
    let mut longest = [Duration::ZERO; 4];
    for _ in 0..20 {
        let tries = Tries::new(&policy, &budget, true, None);
        for longest in &mut longest {
            let failure = answered(503, &[], false, false).unwrap();
            let Ok(Pause::Always(pause)) = tries.again(failure, false, &body) else { panic!("a pause") };
            *longest = pause.max(*longest);
        }
        tokio::time::advance(Duration::from_secs(10)).await;
    }
    for (longest, bound) in longest.into_iter().zip([10, 20, 40, 50]) {
        assert!(longest > MILLI * bound / 2 && longest <= MILLI * bound, "{bound}: {longest:?}");
    }
    let tries = Tries::new(&policy, &budget, true, None);
    let again = tries.again(of(Reason::PoolConnect, Retry::Unprocessed), false, &body);
    assert!(matches!(again, Ok(Pause::IfTried(pause)) if pause <= MILLI * 10), "{again:?}");
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_asks_to_be_left_alone_is_if_there_is_time() {
    let policy = policy("{ on: [503] }");
    let (budget, mut none) = (budget(), Body::Empty);
    let body = Replay::new(&mut none, 0);
    let again = |after, within: Option<u64>| {
        let ends = within.map(|seconds| Instant::now() + Duration::from_secs(seconds));
        let failure = answered(503, &[("retry-after", after)], false, false).unwrap();
        Tries::new(&policy, &budget, true, ends).again(failure, false, &body)
    };
    assert_eq!(again("2", Some(3)), Ok(Pause::Always(Duration::from_secs(2))));
    assert_eq!(again("2", Some(2)), Err(Not::InTime));
    assert_eq!(again("2", None), Ok(Pause::Always(Duration::from_secs(2))));
    assert_eq!(again("60", None), Err(Not::InTime));
    assert_eq!(again("Fri, 31 Dec 1999 23:59:59 GMT", Some(3600)), Err(Not::InTime));
    assert!(again("0", Some(1)).is_ok());
    assert_eq!(budget.spent().refused, 0, "what has no time costs nothing");
}

#[tokio::test(start_paused = true)]
async fn a_budget_that_is_used_up_ends_it_and_says_so() {
    let policy = policy("{ most: 255 }");
    let (budget, mut none) = (budget(), Body::Empty);
    let body = Replay::new(&mut none, 0);
    let tries = Tries::new(&policy, &budget, true, None);
    let sent = (0..255).take_while(|_| tries.again(refused(), false, &body).is_ok()).count();
    assert_eq!(sent, 100);
    assert_eq!(tries.again(refused(), false, &body), Err(Not::Affordable));
    let error = Not::Affordable.told(Error::new(Reason::UpstreamRefused, "it was refused"));
    assert_eq!(error.detail, "it was refused; not sent again: the upstream's retry_budget is used up");
    for (idempotent, failure) in [(false, refused()), (true, reset())] {
        let first = Tries::new(&policy, &budget, idempotent, None);
        let stale = Failure { reused: true, ..failure };
        assert_eq!(
            first.again(stale, false, &body),
            Ok(Pause::None),
            "a used connection's end costs nothing"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn neither_an_answer_that_has_begun_nor_a_body_that_was_let_go() {
    let (policy, budget, mut none) = (policy("2"), budget(), Body::Empty);
    let body = Replay::new(&mut none, 0);
    let tries = Tries::new(&policy, &budget, true, None);
    assert_eq!(tries.again(refused(), true, &body), Err(Not::Begun));
    assert!(tries.is_first());
}
