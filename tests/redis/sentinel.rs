//! A master that fails over to its replica.

use crate::support::client::Answer;
use crate::support::eventually;
use crate::support::lab::{Lab, Pod};
use crate::support::process::Process;
use crate::{PASSWORD, PATIENCE, PORT, caller, documented_acl, get, is_granted, make_user, scripts, secret};

const REDIS: u16 = 6379;
const SENTINELS: [u16; 3] = [26379, 26380, 26381];

/// What the servers say of each other, to which the ACL user is no part.
fn sentinels(pod: &Pod, master: &Pod) -> Vec<Process> {
    let configuration = format!(
        "requirepass hush-s\nsentinel sentinel-pass hush-s\nsentinel monitor limits {} {REDIS} 2\n\
         sentinel down-after-milliseconds limits 500\nsentinel failover-timeout limits 2000\n",
        master.v4()
    );
    SENTINELS.map(|port| pod.sentinel(port, &configuration)).into()
}

#[test]
fn the_limit_goes_on_after_a_failover() {
    let lab = Lab::new();
    let (first, second, watch) = (lab.pod("first"), lab.pod("second"), lab.pod("watch"));
    let mut master = first.redis_server(REDIS, &[""; 0]);
    let replica_of = format!("{} {REDIS}", first.v4());
    let _replica = second.redis_server(REDIS, &["--replicaof", &replica_of]);
    for pod in [&first, &second] {
        make_user(pod, REDIS, &[], &documented_acl()[..1]);
    }
    let _sentinels = sentinels(&watch, &first);
    let knows = |what: &str| {
        let all = SENTINELS.iter().all(|port| {
            let said = watch.redis_cli(*port, &["-a", "hush-s", "SENTINEL", "MASTER", "limits"]);
            said.contains(what)
        });
        all.then_some(())
    };
    eventually(PATIENCE, "sentinels to know each other", || knows("num-other-sentinels\n2"));
    eventually(PATIENCE, "sentinels to know the replica", || knows("num-slaves\n1"));

    let orders = lab.pod("orders");
    let app = orders.app(orders.addresses(PORT)[0]);
    let pods = ["one", "two"].map(|name| lab.pod(name));
    let (ours, theirs) = (lab.dir().join("ours"), lab.dir().join("theirs"));
    secret(&ours, PASSWORD);
    secret(&theirs, "hush-s");
    let urls = SENTINELS.map(|port| format!("\"redis://{}:{port}\"", watch.v4())).join(", ");
    // The first takes a new state for a full one, so that there is something to lose.
    let yaml = ["full", "empty"].map(|new_state| {
        format!(
            "redis:
  sentinel: {{ master: limits, urls: [{urls}], password_file: {} }}
  user: pannier
  password_file: {}
  budget: 500ms
  on_new_state: {new_state}
limits:
  - {{ name: few, path: /few, rate: 1/h, burst: 8, without_redis: closed }}
  - {{ name: many, path: /many, rate: 1000/s, without_redis: closed }}
",
            theirs.display(),
            ours.display()
        )
    });
    let sidecars = [0, 1].map(|i| caller(&pods[i], &yaml[i]));
    for (sidecar, pod) in sidecars.iter().zip(&pods) {
        is_granted(sidecar, pod, app.address(), "/many", "many");
    }
    assert!(scripts(&first, REDIS, &[]) > 0, "the master was not asked");
    let ask_for_few = |pod: &Pod| {
        let answers = (0..20).map(|_| -> Answer { get(pod, app.address(), "/few", "a") });
        answers.filter(|answer| answer.status == 200).count()
    };
    let before = ask_for_few(&pods[0]);
    assert!((1..=4).contains(&before), "{before} were granted, of a bucket that holds 4");

    // What the replica does not have yet is lost with the master.
    let state = |pod: &Pod| pod.redis_cli(REDIS, &["--scan", "--pattern", "pannier:*"]).lines().count();
    eventually(PATIENCE, "the replica to follow", || (state(&second) >= state(&first)).then_some(()));
    master.kill();
    eventually(PATIENCE, "a failover", || {
        let ask = ["-a", "hush-s", "SENTINEL", "GET-MASTER-ADDR-BY-NAME", "limits"];
        let named = watch.redis_cli(SENTINELS[0], &ask);
        named.starts_with(&second.v4().to_string()).then_some(())
    });
    for (sidecar, pod) in sidecars.iter().zip(&pods) {
        is_granted(sidecar, pod, app.address(), "/many", "many");
    }
    assert!(scripts(&second, REDIS, &[]) > 0, "the new master was not asked");
    let after = ask_for_few(&pods[1]);
    assert_eq!(after, 0, "what the new master may have lost is gone, for who takes it for empty");

    // The old master comes back, and is made a replica: it is not asked.
    master = first.redis_server(REDIS, &[""; 0]);
    make_user(&first, REDIS, &[], &documented_acl()[..1]);
    eventually(PATIENCE, "the old master to be a replica", || {
        first.redis_command(REDIS, "ROLE").is_ok_and(|role| role.contains("slave")).then_some(())
    });
    for (sidecar, pod) in sidecars.iter().zip(&pods) {
        is_granted(sidecar, pod, app.address(), "/many", "many");
        assert!(!sidecar.log().contains("hush"), "{}", sidecar.log());
    }
    drop(master);
}

/// A master that is demoted without a word says READONLY; who hears it asks the sentinels again, and does not
/// believe one alone.
#[test]
fn a_master_that_was_demoted_is_left() {
    let lab = Lab::new();
    let (first, second, watch) = (lab.pod("first"), lab.pod("second"), lab.pod("watch"));
    let _servers = [&first, &second].map(|pod| pod.redis_server(REDIS, &[""; 0]));
    let watched = |pod: &Pod| {
        format!(
            "sentinel monitor limits {} {REDIS} 1\nsentinel down-after-milliseconds limits 60000\n",
            pod.v4()
        )
    };
    let named = [&first, &second, &first];
    let _sentinels: Vec<_> =
        SENTINELS.iter().zip(named).map(|(port, master)| watch.sentinel(*port, &watched(master))).collect();
    let (orders, pod) = (lab.pod("orders"), lab.pod("caller"));
    let app = orders.app(orders.addresses(PORT)[0]);
    let urls = SENTINELS.map(|port| format!("\"redis://{}:{port}\"", watch.v4()));
    let yaml = format!(
        "redis: {{ budget: 500ms, on_new_state: full, sentinel: {{ master: limits, urls: [{}] }} }}
limits: [{{ name: many, rate: 1000/s, without_redis: closed }}]
",
        urls.join(", ")
    );
    let sidecar = caller(&pod, &yaml);
    is_granted(&sidecar, &pod, app.address(), "/", "many");
    let asked = |pod: &Pod| scripts(pod, REDIS, &[]);
    assert!(asked(&first) > 0 && asked(&second) == 0, "two of three name the first");
    // A sentinel would close its connections; here it stays, and refuses what writes.
    first.redis_cli(REDIS, &["REPLICAOF", &second.v4().to_string(), &REDIS.to_string()]);
    watch.redis_cli(SENTINELS[2], &["SENTINEL", "REMOVE", "limits"]);
    let master = [&second.v4().to_string(), &REDIS.to_string(), "1"];
    watch.redis_cli(SENTINELS[2], &[&["SENTINEL", "MONITOR", "limits"][..], &master].concat());
    eventually(PATIENCE, "the other to be asked", || {
        get(&pod, app.address(), "/", "a");
        (asked(&second) > 0).then_some(())
    });
    is_granted(&sidecar, &pod, app.address(), "/", "many");
}
