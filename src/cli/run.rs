//! `pannier run`: starts the application beside the sidecar, and ends with it.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::process::{self, Command, ExitCode};

use super::proxy;
use crate::proxy::{Fatal, run_application};
use crate::telemetry;

/// Exit codes of a command that cannot be started, as shells have them.
const NO_SUCH_PROGRAM: u8 = 127;
const NOT_RUN: u8 = 126;

/// Arguments of `pannier run`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The application starts once the sidecar serves, with the same environment, standard streams and user.
SIGTERM and SIGINT begin the drain and are passed on to it; it is never killed. Until it has ended,
what it sends is served. Then the sidecar finishes what is in flight and exits with the application's
code, or 128 and the signal that killed it; 127 or 126 if it cannot be started; 1 or 2 if the sidecar
cannot, as `pannier proxy` does.

Where `pannier init` redirects the pod's traffic, that of the sidecar's own user passes by: let the
application change its user (`pannier run -- setpriv --reuid 1000 ... CMD`), or send to the sidecar's
own address.")]
pub struct Args {
    #[command(flatten)]
    file: proxy::File,
    /// The application, with its arguments
    #[arg(value_name = "CMD", required = true, last = true)]
    command: Vec<OsString>,
}

/// Runs until the application has ended.
pub fn run(args: &Args) -> ExitCode {
    telemetry::log::init();
    let mut command = Command::new(&args.command[0]);
    command.args(&args.command[1..]);
    match run_application(&args.file.config, command) {
        Ok(status) => code(status),
        Err(Fatal::Application(error)) => {
            eprintln!("pannier run: {error}");
            ExitCode::from(if error.is_missing() { NO_SUCH_PROGRAM } else { NOT_RUN })
        }
        Err(error) => proxy::fail(&error),
    }
}

/// A process that ended has one of the two.
fn code(status: process::ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| Some(128 + status.signal()?)).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_passed_on_and_a_signal_is_told_as_shells_do() {
        for (wait_status, expected) in [(0, 0), (3 << 8, 3), (255 << 8, 255), (15, 143), (9, 137)] {
            let status = process::ExitStatus::from_raw(wait_status);
            assert_eq!(format!("{:?}", code(status)), format!("{:?}", ExitCode::from(expected)));
        }
    }
}
