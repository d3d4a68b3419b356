//! `pannier proxy`: runs the sidecar.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::proxy::{self, Fatal};
use crate::telemetry;

/// Arguments of `pannier proxy`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
SIGHUP reads the configuration anew, as every change of the file does. SIGTERM drains: see `drain`.
By default it listens on 15001 (outbound), 15006 (inbound), 15000 (admin), 15020 (probes and metrics)
and 15053 (DNS). PANNIER_LOG sets what is logged: error, warn, info, debug, or by module.")]
pub struct Args {
    /// The configuration; it is followed while the sidecar runs
    #[arg(
        long,
        short,
        value_name = "FILE",
        default_value = "/etc/pannier/pannier.yaml",
        env = "PANNIER_CONFIG"
    )]
    config: PathBuf,
}

/// Runs until SIGTERM or `POST /drain`, and then until all has drained.
pub fn run(args: &Args) -> ExitCode {
    telemetry::log::init();
    match proxy::run(&args.config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pannier: cannot start\n{error}");
            match error {
                Fatal::Missing(_) => ExitCode::from(2),
                _ => ExitCode::FAILURE,
            }
        }
    }
}
