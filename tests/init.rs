//! `pannier init` as a pod's init container runs it: what it prints, and how it ends.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;

use support::lab::{Lab, Pod};

/// Runs `pannier init` in a pod, finding programs in `first` before all others.
fn init(pod: &Pod, args: &[&str], first: Option<&Path>) -> Output {
    let mut command = pod.namespace().command(env!("CARGO_BIN_EXE_pannier"), 0);
    command.arg("init").args(args);
    if let Some(first) = first {
        let rest = std::env::var_os("PATH").unwrap_or_default();
        let path = std::iter::once(first.to_owned()).chain(std::env::split_paths(&rest));
        command.env("PATH", std::env::join_paths(path).expect("a PATH"));
    }
    command.output().expect("it runs")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn all_rules(pod: &Pod) -> String {
    ["iptables-save", "ip6tables-save"].map(|program| pod.namespace().run(program, &[], "")).concat()
}

#[test]
fn it_installs_and_removes_and_says_so() {
    let lab = Lab::new();
    let pod = lab.pod("pod");
    let done = init(&pod, &["--uid", "1500"], None);
    assert!(done.status.success(), "{}", said(&done));
    assert!(said(&done).contains("IPv4 and IPv6 TCP is redirected"), "{}", said(&done));
    assert_eq!(all_rules(&pod).matches("-m owner --uid-owner 1500 -j RETURN").count(), 2);
    let done = init(&pod, &["--remove"], None);
    assert!(done.status.success(), "{}", said(&done));
    assert!(!all_rules(&pod).contains("PANNIER"));
}

#[test]
fn a_dry_run_prints_the_published_rules_and_changes_nothing() {
    let lab = Lab::new();
    let pod = lab.pod("pod");
    let printed = init(&pod, &["--dry-run"], None);
    let published =
        [include_str!("../iptables/pannier.v4.rules"), include_str!("../iptables/pannier.v6.rules")];
    assert_eq!(String::from_utf8_lossy(&printed.stdout), published.concat());
    assert!(!all_rules(&pod).contains("PANNIER"));
}

#[test]
fn the_absence_of_ipv6_is_said_aloud() {
    let lab = Lab::new();
    let pod = lab.pod("pod");
    pod.namespace().sysctl(&[("net.ipv6.conf.all.disable_ipv6", "1")]);
    let done = init(&pod, &[], None);
    assert!(done.status.success(), "{}", said(&done));
    assert!(said(&done).contains("this namespace has no IPv6: IPv4 alone"), "{}", said(&done));
}

#[test]
fn a_family_that_fails_leaves_no_half_of_a_redirection() {
    let lab = Lab::new();
    let pod = lab.pod("pod");
    // An ip6tables-restore that tries well and then fails, as the kernel may.
    let bin = pod.dir().join("bin");
    fs::create_dir(&bin).expect("the pod's directory");
    let script = bin.join("ip6tables-restore");
    let text = "#!/bin/sh\ncase \"$*\" in *--test*) exit 0;; esac\necho the kernel says no >&2\nexit 1\n";
    fs::write(&script, text).expect("the pod's directory");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("our own file");

    let failed = init(&pod, &[], Some(&bin));
    assert_eq!(failed.status.code(), Some(1));
    let said = said(&failed);
    assert!(said.contains("IPv6 rules") && said.contains("the kernel says no"), "{said}");
    assert!(said.contains("net.ipv6.conf.all.disable_ipv6=1"), "{said}");
    assert!(!all_rules(&pod).contains("PANNIER"), "half of it is left");
}
