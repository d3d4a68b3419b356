//! The commands, one file each: arguments to one typed call.

pub mod check;
pub mod controller;
pub mod demo;
pub mod init;
pub mod proxy;
pub mod run;
pub mod schema;

use std::process::ExitCode;

use clap::Parser;

/// A service-mesh sidecar: pooled mTLS, least-saturated endpoints, mesh-wide limits.
///
/// It runs beside an application that knows nothing of it. `pannier init` redirects the pod's
/// traffic, `pannier proxy` carries it, and `pannier check` says what a configuration means.
#[derive(Debug, Parser)]
#[command(name = "pannier", version, arg_required_else_help = true)]
#[command(
    after_help = "Exit codes: 0 it worked; 1 it failed, or the configuration is wrong; 2 the command line is wrong, or a file cannot be read. `run` ends with its command's."
)]
enum Command {
    /// Run the sidecar
    Proxy(proxy::Args),
    /// Run the sidecar and the application, and end with the application
    Run(run::Args),
    /// Redirect this pod's traffic to the sidecar (needs NET_ADMIN)
    Init(init::Args),
    /// Say what a configuration means, or where it is wrong
    Check {
        /// The configuration
        #[arg(value_name = "FILE")]
        file: std::path::PathBuf,
    },
    /// Print the JSON schema of the configuration
    Schema,
    /// Serve the mesh's endpoints as a DNS zone, from EndpointSlices
    Controller(Box<controller::Args>),
    /// Bring a small mesh up, send traffic, change things, show that nothing fails
    Demo(demo::Args),
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    match Command::parse() {
        Command::Proxy(args) => proxy::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Init(args) => init::run(args),
        Command::Check { file } => check::run(&file),
        Command::Schema => schema::run(),
        Command::Controller(args) => controller::run(*args),
        Command::Demo(args) => demo::run(&args),
    }
}
