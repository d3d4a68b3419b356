//! Puts the rules into this network namespace, and takes them out again, by the `iptables` that
//! the image has.
//!
//! It promises that each table changes in one step or not at all, that a second run leaves what
//! one run leaves, that a failed one leaves nothing of ours, and that an error says what to do.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use super::INBOUND_SOURCE;
use super::rules::{Family, RuleSet, TABLES};

/// Why the rules could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program is missing.
    #[error("`{0}` is not installed: add the package `{1}` to the image that runs `pannier init`")]
    Missing(&'static str, &'static str),
    /// The process may not change rules.
    #[error(
        "changing the pod's rules needs root with the capabilities NET_ADMIN and NET_RAW; in a pod, give them \
         to the init container: securityContext: {{ runAsUser: 0, capabilities: {{ add: [NET_ADMIN, NET_RAW] }} }}"
    )]
    NotPermitted,
    /// A program ran and failed.
    #[error("{family} rules: `{command}` failed: {output}{advice}")]
    Failed {
        /// The family concerned.
        family: &'static str,
        /// What was run.
        command: String,
        /// What it said.
        output: String,
        /// What may help.
        advice: &'static str,
    },
    /// A program could not be run.
    #[error("cannot run `{0}`: {1}")]
    Run(&'static str, #[source] io::Error),
}

/// The families that this namespace has. IPv6 counts when the kernel has it and the namespace
/// did not turn it off.
pub fn families() -> &'static [Family] {
    // `thread-self`: a namespace belongs to a thread, and `/proc/net` shows the process's first.
    let present = Path::new("/proc/thread-self/net/if_inet6").exists();
    let off =
        std::fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6").is_ok_and(|v| v.trim() == "1");
    if present && !off { &Family::ALL } else { &[Family::V4] }
}

/// Installs `rules` in place of any that an earlier run installed. Every family is tried before
/// the first is changed; where the kernel refuses all the same, everything of ours is taken away,
/// since half a redirection would look like a whole one.
pub fn install(rules: &RuleSet, families: &[Family]) -> Result<(), Error> {
    permitted()?;
    let mut texts = Vec::with_capacity(families.len());
    for &family in families {
        let installed = Installed::read(family)?;
        let text = rules.text_after(family, |table| installed.removed_jumps(table));
        restore(family, &text, &["--noflush", "--wait", "--test"])?;
        texts.push((family, text));
    }
    if families.contains(&Family::V6) {
        inbound_source("replace")?;
    }
    let applied =
        texts.iter().try_for_each(|(family, text)| restore(*family, text, &["--noflush", "--wait"]));
    if applied.is_err() {
        for &family in families {
            // The first failure is the one to report.
            let _ = take_away(family);
        }
    }
    applied
}

/// Takes away whatever an earlier run installed. Where there is nothing, nothing happens.
pub fn remove(families: &[Family]) -> Result<(), Error> {
    permitted()?;
    families.iter().try_for_each(|&family| take_away(family))
}

fn take_away(family: Family) -> Result<(), Error> {
    let text = Installed::read(family)?.removal();
    if !text.is_empty() {
        restore(family, &text, &["--noflush", "--wait"])?;
    }
    if family == Family::V6 && super::is_assigned(INBOUND_SOURCE.v6.into()) {
        inbound_source("delete")?;
    }
    Ok(())
}

/// What an earlier run left in a family's tables.
struct Installed {
    /// The tables as `iptables-save` prints them.
    saved: String,
}

impl Installed {
    fn read(family: Family) -> Result<Self, Error> {
        let mut saved = String::new();
        for (table, _) in TABLES {
            saved += &run(family, family.save_program(), &["-t", table], "")?;
        }
        Ok(Self { saved })
    }

    /// The lines of one table.
    fn table(&self, table: &str) -> impl Iterator<Item = &str> {
        let begin = format!("*{table}");
        self.saved.lines().skip_while(move |line| *line != begin).take_while(|line| *line != "COMMIT")
    }

    /// Lines that delete the jumps from the built-in chains of `table` to ours.
    fn removed_jumps(&self, table: &str) -> String {
        let mut text = String::new();
        for line in self.table(table) {
            if let Some(rule) = line.strip_prefix("-A ")
                && !rule.starts_with("PANNIER_")
                && chains(table).iter().any(|chain| rule.ends_with(&format!(" -j {chain}")))
            {
                let _ = writeln!(text, "-D {rule}");
            }
        }
        text
    }

    /// The text that takes everything of ours away; empty when there is nothing.
    fn removal(&self) -> String {
        let mut text = String::new();
        for (table, _) in TABLES {
            let declared =
                |chain: &&&str| self.table(table).any(|line| line.starts_with(&format!(":{chain} ")));
            let ours: Vec<_> = chains(table).iter().filter(declared).collect();
            if ours.is_empty() {
                continue;
            }
            let _ = write!(text, "*{table}\n{}", self.removed_jumps(table));
            // All are emptied before one is deleted: they refer to each other.
            for command in ["-F", "-X"] {
                for chain in &ours {
                    let _ = writeln!(text, "{command} {chain}");
                }
            }
            text.push_str("COMMIT\n");
        }
        text
    }
}

fn chains(table: &str) -> &'static [&'static str] {
    TABLES.iter().find(|(name, _)| *name == table).map_or(&[], |(_, chains)| chains)
}

fn restore(family: Family, text: &str, options: &[&str]) -> Result<(), Error> {
    run(family, family.restore_program(), options, text).map(drop)
}

/// Adds or deletes the inbound proxy's IPv6 source on `lo`. Its IPv4 source is there by nature.
fn inbound_source(action: &str) -> Result<(), Error> {
    let address = format!("{}/128", INBOUND_SOURCE.v6);
    run(Family::V6, "ip", &["-6", "address", action, &address, "dev", "lo"], "").map(drop)
}

/// Runs a program with `input`, and gives what it printed.
fn run(family: Family, program: &'static str, args: &[&str], input: &str) -> Result<String, Error> {
    let spawned = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = spawned.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound if program == "ip" => Error::Missing(program, "iproute2"),
        io::ErrorKind::NotFound => Error::Missing(program, "iptables"),
        _ => Error::Run(program, error),
    })?;
    // A program that ends early closes its input; its own words say more than a broken pipe. The
    // rules are smaller than a pipe's buffer, so this cannot block on a program that is writing.
    let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
    let output = child.wait_with_output().map_err(|error| Error::Run(program, error))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let advice = match family {
        Family::V4 => "",
        Family::V6 => {
            "\nIPv6 is on here, so that without its rules it would bypass the mesh. Give the node's kernel \
             ip6tables (modules ip6table_nat, ip6table_filter, nf_conntrack), or turn IPv6 off in the pod: \
             sysctl net.ipv6.conf.all.disable_ipv6=1"
        }
    };
    Err(Error::Failed {
        family: family.name(),
        command: format!("{program} {}", args.join(" ")),
        output: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        advice,
    })
}

/// Fails early, and in plain words, where the kernel would refuse.
fn permitted() -> Result<(), Error> {
    const NET_ADMIN: u64 = 1 << 12;
    const NET_RAW: u64 = 1 << 13;
    let effective = std::fs::read_to_string("/proc/thread-self/status").ok().and_then(|status| {
        let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
        u64::from_str_radix(line.trim(), 16).ok()
    });
    match effective {
        Some(effective) if effective & (NET_ADMIN | NET_RAW) != NET_ADMIN | NET_RAW => {
            Err(Error::NotPermitted)
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = "\
*filter
:INPUT ACCEPT [0:0]
:PANNIER_GUARD - [0:0]
-A INPUT ! -i lo -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j PANNIER_GUARD
-A PANNIER_GUARD -p tcp -j REJECT
COMMIT
*nat
:OUTPUT ACCEPT [0:0]
:PANNIER_INBOUND - [0:0]
:PANNIER_OUTBOUND - [0:0]
-A OUTPUT -p tcp -j PANNIER_OUTBOUND
-A OUTPUT -p tcp -j KUBE_SERVICES
-A PANNIER_OUTBOUND -o lo -p tcp -j PANNIER_INBOUND
COMMIT
";

    #[test]
    fn an_earlier_runs_jumps_are_found_and_nobody_elses() {
        let installed = Installed { saved: SAVED.into() };
        assert_eq!(installed.removed_jumps("nat"), "-D OUTPUT -p tcp -j PANNIER_OUTBOUND\n");
        assert_eq!(
            installed.removed_jumps("filter"),
            "-D INPUT ! -i lo -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j PANNIER_GUARD\n"
        );
    }

    #[test]
    fn a_failure_says_what_to_do() {
        let missing = run(Family::V4, "pannier-no-such-program", &[], "").expect_err("missing");
        assert!(missing.to_string().contains("add the package `iptables`"), "{missing}");
        let failed = run(Family::V6, "sh", &["-c", "echo no table >&2; exit 3"], "").expect_err("failed");
        let said = failed.to_string();
        assert!(said.contains("IPv6 rules: `sh -c") && said.contains("failed: no table"), "{said}");
        assert!(said.contains("net.ipv6.conf.all.disable_ipv6=1"), "{said}");
    }

    #[test]
    fn removal_takes_jumps_rules_and_chains() {
        let text = Installed { saved: SAVED.into() }.removal();
        assert!(text.contains(
            "*nat\n-D OUTPUT -p tcp -j PANNIER_OUTBOUND\n-F PANNIER_INBOUND\n-F PANNIER_OUTBOUND\n\
             -X PANNIER_INBOUND\n-X PANNIER_OUTBOUND\nCOMMIT\n"
        ));
        assert!(!text.contains("KUBE"));
        assert_eq!(Installed { saved: "*nat\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n".into() }.removal(), "");
    }
}
