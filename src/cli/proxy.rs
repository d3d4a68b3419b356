//! `pannier proxy`: runs the sidecar.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::proxy;
use crate::telemetry;

/// Arguments of `pannier proxy`.
#[derive(Debug, clap::Args)]
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
            ExitCode::FAILURE
        }
    }
}
