//! The rules that redirect a pod's TCP to its sidecar, as text for `iptables-restore` and
//! `ip6tables-restore`.
//!
//! One description gives both families, so they cannot drift. Everything lives in three chains
//! of our own; the built-in chains hold one jump to each. `iptables/README.md` gives the reasons
//! rule by rule, and the files beside it are this module's output.

use std::fmt::Write;
use std::net::SocketAddr;

use super::INBOUND_SOURCE;
use crate::config::model::Listen;
use crate::config::units::Addresses;

const INBOUND: &str = "PANNIER_INBOUND";
const OUTBOUND: &str = "PANNIER_OUTBOUND";
const GUARD: &str = "PANNIER_GUARD";

/// The tables that we use, each with its chains. `filter` comes first: it closes the sidecar's
/// own ports before `nat` sends anything there.
pub(super) const TABLES: [(&str, &[&str]); 2] = [("filter", &[GUARD]), ("nat", &[INBOUND, OUTBOUND])];

/// What to redirect, and what to leave alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleSet {
    /// The user that the sidecar runs as. Its own connections are not redirected to itself.
    pub uid: u32,
    /// A group whose processes count as the sidecar too.
    pub gid: Option<u32>,
    /// The sidecar's outbound listener.
    pub outbound_port: u16,
    /// The sidecar's inbound listener.
    pub inbound_port: u16,
    /// The sidecar's probes, which stay reachable from outside.
    pub probes_port: u16,
    /// The sidecar's other ports, which nobody outside may dial.
    pub private_ports: Vec<u16>,
    /// Ports of the pod that callers reach directly.
    pub exclude_inbound_ports: Vec<u16>,
    /// Ports elsewhere that the pod dials directly.
    pub exclude_outbound_ports: Vec<u16>,
}

/// A family of addresses, each with its own tables in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Default for RuleSet {
    /// The rules for a sidecar with the default listeners, run by uid 1337.
    fn default() -> Self {
        let listen = Listen::default();
        let port = |addresses: &Addresses| addresses.as_slice().first().map_or(0, SocketAddr::port);
        Self {
            uid: 1337,
            gid: None,
            outbound_port: port(&listen.outbound),
            inbound_port: port(&listen.inbound),
            probes_port: port(&listen.probes),
            private_ports: vec![port(&listen.admin), port(&listen.dns)],
            exclude_inbound_ports: Vec::new(),
            exclude_outbound_ports: Vec::new(),
        }
    }
}

impl Family {
    /// Both families.
    pub const ALL: [Family; 2] = [Family::V4, Family::V6];

    /// The name an operator knows it by.
    pub const fn name(self) -> &'static str {
        match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        }
    }

    /// The program that applies the rules.
    pub const fn restore_program(self) -> &'static str {
        match self {
            Family::V4 => "iptables-restore",
            Family::V6 => "ip6tables-restore",
        }
    }

    /// The program that prints the rules in force.
    pub(super) const fn save_program(self) -> &'static str {
        match self {
            Family::V4 => "iptables-save",
            Family::V6 => "ip6tables-save",
        }
    }

    const fn loopback(self) -> &'static str {
        match self {
            Family::V4 => "127.0.0.0/8",
            Family::V6 => "::1/128",
        }
    }

    fn inbound_source(self) -> String {
        match self {
            Family::V4 => format!("{}/32", INBOUND_SOURCE.v4),
            Family::V6 => format!("{}/128", INBOUND_SOURCE.v6),
        }
    }
}

impl RuleSet {
    /// The whole rule set of one family, for a namespace that has none of it yet.
    pub fn text(&self, family: Family) -> String {
        self.text_after(family, |_| String::new())
    }

    /// As [`text`](Self::text), with lines of the caller's between a table's chains and its
    /// rules: those that take an earlier run's jumps away, in the same transaction.
    pub(super) fn text_after(&self, family: Family, first: impl Fn(&str) -> String) -> String {
        let mut text = String::new();
        for (table, chains) in TABLES {
            // Naming a chain creates it, or empties it where an earlier run left one.
            let _ = writeln!(text, "*{table}");
            for chain in chains {
                let _ = writeln!(text, ":{chain} - [0:0]");
            }
            text.push_str(&first(table));
            match table {
                "nat" => self.nat(&mut text, family),
                _ => self.filter(&mut text),
            }
            text.push_str("COMMIT\n");
        }
        text
    }

    fn filter(&self, text: &mut String) {
        text.push_str("# Connections from outside to the sidecar's own ports are refused. What the client\n");
        text.push_str("# dialled counts, since everything has the inbound listener's port by now.\n");
        let _ = writeln!(text, "-I INPUT 1 ! -i lo -p tcp --syn -j {GUARD}");
        for port in [self.outbound_port, self.inbound_port].iter().chain(&self.private_ports) {
            let _ = writeln!(
                text,
                "-A {GUARD} -p tcp -m conntrack --ctorigdstport {port} -j REJECT --reject-with tcp-reset"
            );
        }
    }

    fn nat(&self, text: &mut String, family: Family) {
        // First in the built-in chains: another's DNAT would hide the address that was dialled.
        let _ = writeln!(text, "-I PREROUTING 1 -p tcp -j {INBOUND}");
        let _ = writeln!(text, "-I OUTPUT 1 -p tcp -j {OUTBOUND}");
        self.inbound(text);
        self.outbound(text, family);
    }

    fn inbound(&self, text: &mut String) {
        text.push_str(
            "# What is sent to the pod goes to the inbound listener, but for probes and exclusions.\n",
        );
        for port in std::iter::once(&self.probes_port).chain(&self.exclude_inbound_ports) {
            let _ = writeln!(text, "-A {INBOUND} -p tcp --dport {port} -j RETURN");
        }
        let _ = writeln!(text, "-A {INBOUND} -p tcp -j REDIRECT --to-ports {}", self.inbound_port);
    }

    fn outbound(&self, text: &mut String, family: Family) {
        let (loopback, source) = (family.loopback(), family.inbound_source());
        text.push_str("# The inbound listener's own connection to the application.\n");
        let _ = writeln!(text, "-A {OUTBOUND} -s {source} -o lo -j RETURN");
        if !self.exclude_outbound_ports.is_empty() {
            text.push_str("# Exclusions.\n");
        }
        for port in &self.exclude_outbound_ports {
            let _ = writeln!(text, "-A {OUTBOUND} -p tcp --dport {port} -j RETURN");
        }
        text.push_str(
            "# The sidecar to its own pod: the application called itself through its Service, and\n",
        );
        text.push_str(
            "# arrives as any other caller. The sidecar to anywhere else: passes, or it would loop.\n",
        );
        let uid = format!("--uid-owner {}", self.uid);
        let gid = self.gid.map(|gid| format!("--gid-owner {gid}"));
        for owner in std::iter::once(uid).chain(gid) {
            let _ =
                writeln!(text, "-A {OUTBOUND} ! -d {loopback} -o lo -p tcp -m owner {owner} -j {INBOUND}");
            let _ = writeln!(text, "-A {OUTBOUND} -m owner {owner} -j RETURN");
        }
        text.push_str("# The application to its own pod, localhost first of all.\n");
        let _ = writeln!(text, "-A {OUTBOUND} -o lo -j RETURN");
        text.push_str("# The application to anywhere else.\n");
        let _ = writeln!(text, "-A {OUTBOUND} -p tcp -j REDIRECT --to-ports {}", self.outbound_port);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published files are what `pannier init --dry-run` prints.
    #[test]
    fn the_published_files_are_the_default_rules() {
        let published = [
            (Family::V4, include_str!("../../iptables/pannier.v4.rules")),
            (Family::V6, include_str!("../../iptables/pannier.v6.rules")),
        ];
        for (family, file) in published {
            let rules: String = file.split_inclusive('\n').skip_while(|line| line.starts_with('#')).collect();
            assert_eq!(rules, RuleSet::default().text(family), "iptables/ is not what the code generates");
        }
    }

    #[test]
    fn the_families_differ_in_addresses_alone() {
        let rules = RuleSet {
            gid: Some(1338),
            exclude_inbound_ports: vec![9090],
            exclude_outbound_ports: vec![5432, 3306],
            ..RuleSet::default()
        };
        let v4 = rules.text(Family::V4).replace("127.0.0.0/8", "::1/128").replace("127.0.0.6/32", "::6/128");
        assert_eq!(v4, rules.text(Family::V6));
    }

    #[test]
    fn every_choice_has_its_rule() {
        let rules = RuleSet {
            uid: 7,
            gid: Some(8),
            outbound_port: 1,
            inbound_port: 2,
            probes_port: 3,
            private_ports: vec![4],
            exclude_inbound_ports: vec![5],
            exclude_outbound_ports: vec![6],
        };
        let text = rules.text(Family::V4);
        for rule in [
            "-A PANNIER_OUTBOUND -m owner --uid-owner 7 -j RETURN\n",
            "-A PANNIER_OUTBOUND -m owner --gid-owner 8 -j RETURN\n",
            "-A PANNIER_OUTBOUND -p tcp -j REDIRECT --to-ports 1\n",
            "-A PANNIER_INBOUND -p tcp -j REDIRECT --to-ports 2\n",
            "-A PANNIER_INBOUND -p tcp --dport 3 -j RETURN\n",
            "-A PANNIER_INBOUND -p tcp --dport 5 -j RETURN\n",
            "-A PANNIER_OUTBOUND -p tcp --dport 6 -j RETURN\n",
        ] {
            assert!(text.contains(rule), "{rule} is missing from\n{text}");
        }
        for port in [1, 2, 4] {
            assert!(text.contains(&format!("--ctorigdstport {port} -j REJECT")), "{port} is open in\n{text}");
        }
    }
}
