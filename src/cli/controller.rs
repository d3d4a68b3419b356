//! `pannier controller`: serves the endpoint zone.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::config::units::Time;
use crate::control::{self, Domain, Fatal, Options};
use crate::telemetry;

/// Arguments of `pannier controller`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Below the domain there are SERVICE.NAMESPACE (A, AAAA), _PORT._PROTOCOL.SERVICE.NAMESPACE (SRV, with
the addresses beside it) and HOSTNAME.SERVICE.NAMESPACE. `docs/endpoint-zone.md` says how a cluster's
DNS forwards to it, and how sidecars ask for it.
Changes of the files are followed; SIGHUP looks at once. A file that is wrong changes nothing: the log,
/ready and the metrics say so. PANNIER_LOG sets what is logged: error, warn, info, debug, or by module.")]
pub struct Args {
    /// EndpointSlice manifests (YAML or JSON): a file, or a directory of .yaml, .yml and .json
    #[arg(long, value_name = "PATH")]
    slices: PathBuf,
    /// Where to answer, over UDP and TCP; may be repeated, as for [::]:5353
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:5353")]
    listen: Vec<SocketAddr>,
    /// The zone that is served
    #[arg(long, value_name = "NAME", default_value = "endpoints.mesh")]
    domain: Domain,
    /// Where /live, /ready and /metrics are; may be repeated
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:15021")]
    probes: Vec<SocketAddr>,
    /// How long to answer on after SIGTERM, while those who ask learn of it
    #[arg(long, value_name = "TIME", default_value = "5s")]
    drain: Time,
}

/// Runs until SIGTERM, and then for as long as `--drain` says. A second signal ends it at once.
pub fn run(args: Args) -> ExitCode {
    telemetry::log::init();
    let Args { slices, listen, domain, probes, drain } = args;
    match control::run(&Options { slices, listen, domain, probes, drain: drain.0 }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pannier: cannot start\n{error}");
            match error {
                Fatal::Unreadable { .. } => ExitCode::from(2),
                _ => ExitCode::FAILURE,
            }
        }
    }
}
