//! `pannier init`: installs the rules that send a pod's TCP through its sidecar. It runs once
//! before the sidecar, in the pod's network namespace, with NET_ADMIN and NET_RAW.

use std::io::Write;
use std::process::ExitCode;

use crate::intercept::INBOUND_SOURCE;
use crate::intercept::install::{self, Error};
use crate::intercept::rules::{Family, RuleSet};

/// Redirect the pod's TCP traffic to its sidecar.
///
/// Installs iptables rules, for IPv4 and IPv6, in this network namespace. Running it again
/// replaces what it installed. UDP is not touched.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The user that the sidecar runs as. Its connections are not redirected to itself, so no
    /// application may run as the same user.
    #[arg(long, default_value_t = 1337)]
    pub uid: u32,
    /// A group whose processes count as the sidecar too.
    #[arg(long)]
    pub gid: Option<u32>,
    /// The port of the sidecar's outbound listener.
    #[arg(long, value_name = "PORT", default_value_t = 15001, value_parser = port)]
    pub outbound_port: u16,
    /// The port of the sidecar's inbound listener.
    #[arg(long, value_name = "PORT", default_value_t = 15006, value_parser = port)]
    pub inbound_port: u16,
    /// Ports of the pod that callers reach without the sidecar.
    #[arg(long, value_name = "PORT,...", value_delimiter = ',', value_parser = port)]
    pub exclude_inbound_ports: Vec<u16>,
    /// Ports elsewhere that the application reaches without the sidecar.
    #[arg(long, value_name = "PORT,...", value_delimiter = ',', value_parser = port)]
    pub exclude_outbound_ports: Vec<u16>,
    /// Print the rules and change nothing.
    #[arg(long, conflicts_with = "remove")]
    pub dry_run: bool,
    /// Take away what an earlier run installed.
    #[arg(long)]
    pub remove: bool,
}

/// Installs, removes or prints the rules, and says what was done. Fails with 1.
pub fn run(args: Args) -> ExitCode {
    let families = install::families();
    if !families.contains(&Family::V6) {
        eprintln!("pannier init: this namespace has no IPv6: IPv4 alone");
    }
    if args.dry_run {
        return match print(&args.rules(), families) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error),
        };
    }
    match change(&args, families) {
        Ok(done) => {
            eprintln!("pannier init: {done}");
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error),
    }
}

fn change(args: &Args, families: &[Family]) -> Result<String, Error> {
    let names = families.iter().map(|family| family.name()).collect::<Vec<_>>().join(" and ");
    if args.remove {
        install::remove(families)?;
        return Ok(format!("the {names} rules are removed"));
    }
    if args.uid == 0 {
        eprintln!(
            "pannier init: the sidecar's uid is 0: whatever else root runs in this pod bypasses the mesh"
        );
    }
    install::install(&args.rules(), families)?;
    Ok(format!(
        "{names} TCP is redirected: inbound to port {}, outbound to port {}, except that of uid {}",
        args.inbound_port, args.outbound_port, args.uid
    ))
}

fn print(rules: &RuleSet, families: &[Family]) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    for &family in families {
        if family == Family::V6 {
            writeln!(out, "# ip -6 address replace {}/128 dev lo", INBOUND_SOURCE.v6)?;
        }
        writeln!(out, "# {} --noflush --wait", family.restore_program())?;
        out.write_all(rules.text(family).as_bytes())?;
    }
    Ok(())
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("pannier init: {error}");
    ExitCode::FAILURE
}

/// A port that something can listen on.
fn port(text: &str) -> Result<u16, String> {
    match text.trim().parse() {
        Ok(port) if port != 0 => Ok(port),
        _ => Err("expected a port from 1 to 65535".into()),
    }
}

impl Args {
    fn rules(&self) -> RuleSet {
        RuleSet {
            uid: self.uid,
            gid: self.gid,
            outbound_port: self.outbound_port,
            inbound_port: self.inbound_port,
            exclude_inbound_ports: self.exclude_inbound_ports.clone(),
            exclude_outbound_ports: self.exclude_outbound_ports.clone(),
            ..RuleSet::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &[&str]) -> Result<Args, String> {
        Line::try_parse_from([&["init"], line].concat()).map(|line| line.args).map_err(|e| e.to_string())
    }

    #[test]
    fn no_arguments_mean_the_default_rules() {
        assert_eq!(parse(&[]).expect("valid").rules(), RuleSet::default());
    }

    #[test]
    fn lists_are_separated_by_commas() {
        let args = parse(&["--exclude-inbound-ports", "9090,9100", "--gid=1338"]).expect("valid");
        assert_eq!((args.exclude_inbound_ports, args.gid), (vec![9090, 9100], Some(1338)));
    }

    #[test]
    fn a_port_is_a_port() {
        for wrong in ["0", "65536", "http", ""] {
            let error = parse(&["--inbound-port", wrong]).expect_err(wrong);
            assert!(error.contains("expected a port from 1 to 65535"), "{error}");
        }
    }
}
