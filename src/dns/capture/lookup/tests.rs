use std::path::PathBuf;

use hickory_resolver::proto::op::{Message, MessageType, OpCode, Query};
use hickory_resolver::proto::rr::{Name, RecordType};
use tokio::runtime::Handle;

use super::*;
use crate::dns::query::Files;

fn key(name: &str) -> Key {
    let mut query = Message::new(7, MessageType::Query, OpCode::Query);
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    Key::new(wire::question(&query.to_vec().unwrap()).unwrap(), false, false)
}

/// Asks a server that is not there.
fn lookup() -> Arc<Lookup> {
    let config = model::Dns { servers: vec![([127, 0, 0, 1], 9).into()], ..Default::default() };
    let none = PathBuf::from("/nonexistent/pannier");
    let files = Files { resolv_conf: none.clone(), hosts: none };
    Lookup::new(&config, Resolver::with_files(&config, files, Handle::current()).unwrap())
}

#[tokio::test(start_paused = true)]
async fn where_too_much_is_asked_at_once_the_rest_is_refused_and_what_is_known_serves() {
    let lookup = lookup();
    let known = key("known.example.");
    let reply = Arc::new(Reply::of_records(known.question(), 60, [vec![10, 0, 0, 1]].into_iter()));
    lookup.known().cache.keep(known.clone(), reply, 60, Instant::now());
    lookup.room.forget_permits(MAX_FORWARDED);
    assert!(matches!(lookup.look_up(key("other.example.")).await, Given::Failed(ResponseCode::ServFail)));
    assert_eq!(lookup.pass(&[0; 12], Transport::Udp).await, None);
    assert!(matches!(lookup.look_up(known.clone()).await, Given::Reply(_, Age::Seconds(0))));
    tokio::time::advance(Duration::from_secs(61)).await;
    assert!(matches!(lookup.look_up(known).await, Given::Reply(_, Age::Stale)));
    assert!(lookup.known().flights.is_empty());
    let counts = lookup.snapshot();
    assert_eq!((counts.failed, counts.hits, counts.stale, counts.forwarded), (2, 1, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_client_waits_so_long_for_better_than_stale_and_no_client_twice() {
    let lookup = lookup();
    let key = key("known.example.");
    let reply = Arc::new(Reply::of_records(key.question(), 60, [vec![10, 0, 0, 1]].into_iter()));
    let began = Instant::now();
    lookup.known().cache.keep(key.clone(), reply, 60, began - Duration::from_secs(90));
    // A server that says nothing.
    let (_land, landed) = oneshot::channel();
    lookup.known().flights.insert(key.clone(), Flight { began, landed: landed.shared() });
    assert!(matches!(lookup.look_up(key.clone()).await, Given::Reply(_, Age::Stale)));
    assert_eq!(began.elapsed(), Duration::from_millis(1800));
    assert!(matches!(lookup.look_up(key).await, Given::Reply(_, Age::Stale)));
    assert_eq!(began.elapsed(), Duration::from_millis(1800), "the flight is as old already");
}
