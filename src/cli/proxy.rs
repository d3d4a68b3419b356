//! `pannier proxy`: runs the sidecar.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::proxy::{self, Fatal};
use crate::telemetry;

/// Arguments of `pannier proxy`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
SIGHUP reads the configuration anew, as every change of the file does. SIGTERM and POST /drain on the
admin port drain (see `drain`): what is in flight is finished, and what the application sends is served
until it has gone. POST /quit does not wait for it.
By default it listens on 15001 (outbound), 15006 (inbound), 15000 (admin), 15020 (probes and metrics)
and 15053 (DNS). PANNIER_LOG sets what is logged: error, warn, info, debug, or by module.")]
pub struct Args {
    #[command(flatten)]
    file: File,
}

/// Where the configuration is.
#[derive(Debug, clap::Args)]
pub(super) struct File {
    /// The configuration; it is followed while the sidecar runs
    #[arg(
        long,
        short,
        value_name = "FILE",
        default_value = "/etc/pannier/pannier.yaml",
        env = "PANNIER_CONFIG"
    )]
    pub(super) config: PathBuf,
}

/// Runs until SIGTERM, `POST /drain` or `POST /quit`, and then until all has drained.
pub fn run(args: &Args) -> ExitCode {
    telemetry::log::init();
    match proxy::run(&args.file.config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// Says why the sidecar cannot start.
pub(super) fn fail(error: &Fatal) -> ExitCode {
    eprintln!("pannier: cannot start\n{error}");
    match error {
        Fatal::Missing(_) => ExitCode::from(2),
        _ => ExitCode::FAILURE,
    }
}
