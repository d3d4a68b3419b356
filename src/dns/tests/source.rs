use super::*;
use crate::config::units::EndpointName;
use crate::dns::{EndpointSource, Resolution, State};

fn source(endpoints: &[&str]) -> EndpointSource {
    let endpoints: Vec<EndpointName> = endpoints.iter().map(|text| text.parse().expect("a name")).collect();
    EndpointSource::new(&endpoints)
}

fn endpoints(resolution: &Resolution) -> Vec<String> {
    resolution.endpoints.iter().map(|target| target.address.to_string()).collect()
}

async fn until(
    resolution: &mut watch::Receiver<Resolution>,
    such: impl FnMut(&Resolution) -> bool,
) -> Resolution {
    tokio::time::timeout(PATIENCE, resolution.wait_for(such)).await.expect("in time").expect("open").clone()
}

#[tokio::test]
async fn a_list_is_there_at_once_and_in_order() {
    let source = source(&["10.0.0.2:80", "[fd00::1]:8080", "10.0.0.1:80", "10.0.0.2:80"]);
    assert!(matches!(source, EndpointSource::Static(_)));
    let receiver = source.subscribe(&resolver(&[]));
    tokio::task::yield_now().await;
    assert!(receiver.has_changed().is_ok(), "the channel stays open");
    let resolution = receiver.borrow().clone();
    assert_eq!(endpoints(&resolution), ["10.0.0.2:80", "[fd00::1]:8080", "10.0.0.1:80"]);
    assert_eq!((resolution.state, resolution.expires), (State::Fresh, None));
}

#[tokio::test]
async fn a_name_is_followed_with_its_port() {
    let zone = crate::dns::Zone::new();
    let second = Duration::from_secs(1);
    zone.set("orders.mesh", second, [ip("10.0.0.1")]);
    let server = crate::dns::Responder::start(([127, 0, 0, 1], 0).into(), zone.clone(), &Handle::current())
        .expect("a responder");
    let resolver = resolver(&[server.address()]);
    let mut receiver = source(&["orders.mesh:8080"]).subscribe(&resolver);
    assert_eq!(receiver.borrow().state, State::Pending);
    let first = until(&mut receiver, |resolution| !resolution.endpoints.is_empty()).await;
    assert_eq!(endpoints(&first), ["10.0.0.1:8080"]);
    assert_eq!(first.state, State::Fresh);

    zone.set("orders.mesh", second, [ip("10.0.0.1"), ip("10.0.0.2")]);
    let second = until(&mut receiver, |resolution| resolution.endpoints.len() == 2).await;
    assert_eq!(endpoints(&second), ["10.0.0.1:8080", "10.0.0.2:8080"]);

    drop(receiver);
    let forgotten = async {
        while !resolver.snapshot().names.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, forgotten).await.expect("forgotten");
}

#[tokio::test]
async fn renewal_moves_the_expiry_without_a_signal() {
    let server = Scripted::start(|query, _| with(query, 1, &["10.0.0.1"]));
    let resolver = resolver(&[server.address]);
    let mut receiver = source(&["orders.mesh:80"]).subscribe(&resolver);
    let first = until(&mut receiver, |resolution| resolution.state == State::Fresh).await;
    let later = async {
        loop {
            let now = receiver.borrow().clone();
            if now.expires > first.expires {
                return now;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let later = tokio::time::timeout(PATIENCE, later).await.expect("in time");
    assert!(Arc::ptr_eq(&first.endpoints, &later.endpoints));
    assert!(!receiver.has_changed().expect("open"));
}

#[tokio::test]
async fn a_name_that_fails_takes_nothing_from_its_neighbours() {
    let server = Scripted::start(|query, _| match name(query).as_str() {
        "blue.mesh." => with(query, 300, &["10.0.0.1"]),
        _ => code(query, ResponseCode::NXDomain),
    });
    let resolver = resolver(&[server.address]);
    let mut receiver = source(&["green.mesh:80", "blue.mesh:81", "10.0.0.9:82"]).subscribe(&resolver);
    let both = until(&mut receiver, |resolution| resolution.endpoints.len() == 2).await;
    assert_eq!(endpoints(&both), ["10.0.0.1:81", "10.0.0.9:82"]);
    assert_eq!(both.state, State::Fresh);

    let mut receiver = source(&["green.mesh:80", "red.mesh:80"]).subscribe(&resolver);
    let none = until(&mut receiver, |resolution| resolution.state != State::Pending).await;
    assert!(matches!(none.state, State::Failed { .. }), "{none:?}");
}
