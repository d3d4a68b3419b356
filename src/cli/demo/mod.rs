//! `pannier demo`: brings a small mesh up, sends traffic through it, changes it meanwhile, and shows
//! that no request fails. All of it is real: the sidecars are this program, started as an operator
//! would start it.
//!
//! It leaves nothing behind, however it ends; what one that was killed has left, the next removes.

mod app;
mod config;
mod directory;
mod ended;
mod loopback;
mod mesh;
mod meter;
mod namespaces;
mod panes;
mod place;
mod process;
mod screen;
mod sidecar;
mod stage;
mod story;
mod summary;
mod traffic;
mod watch;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use crate::identity::ca::Authority;

use directory::Directory;
use ended::{Ended, Result, Stop, cannot};
use mesh::Mesh;
use stage::Stage;
use story::Tightened;
use summary::Summary;

/// Exit code of a demo that was stopped before its end, as by SIGINT.
const STOPPED: u8 = 130;

/// Arguments of `pannier demo`.
///
/// As root on Linux, with iproute2, iptables, dnsmasq and Redis, each pod is a network namespace and
/// its connections are redirected. Elsewhere the same mesh stands on loopback.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Stand on loopback, even where network namespaces could be made
    #[arg(long)]
    loopback: bool,
    /// Stay up after the story, and print commands to try; Ctrl-C ends it
    #[arg(long)]
    stay: bool,
}

/// Runs the demo. It fails with 1 if a request failed, or something was not as promised.
pub fn run(args: &Args) -> ExitCode {
    match show(args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(Ended::Stopped) => {
            eprintln!("pannier demo: stopped; everything is cleaned up");
            ExitCode::from(STOPPED)
        }
        Err(failed) => {
            eprintln!("pannier demo: {failed}");
            ExitCode::FAILURE
        }
    }
}

/// Says whether everything was as promised.
fn show(args: &Args) -> Result<bool> {
    let stop = Stop::default();
    let _signals = stop.on_signals()?;
    let mesh = bring_up(args, &stop)?;
    let mut stage = Stage::open(mesh, &stop)?;
    let told = story::tell(&mut stage);
    stage.close_screen();
    if let Err(failed @ Ended::Failed { .. }) = told {
        return Err(failed);
    }
    if let (Ok(tightened), true) = (&told, args.stay) {
        return stay(stage, *tightened, &stop);
    }
    // Stopped early, it tells what there was until then.
    let (acts, took) = stage.acts();
    let bound = |writes| told.as_ref().ok().map(|tightened| tightened.report(writes));
    let admitted = bound(stage.traffic.tally().writes);
    let Stage { mesh, traffic, .. } = stage;
    let (tally, latency) = traffic.finish()?;
    drop(mesh);
    let summary = Summary { acts: &acts, took, tally: &tally, latency: &latency, bound: admitted };
    say(&format!("\n{}", summary.text()))?;
    told.map(|_| summary.is_good())
}

/// Keeps the mesh and its traffic until somebody stops it.
fn stay(mut stage: Stage<'_>, tightened: Tightened, stop: &Stop) -> Result<bool> {
    let (acts, took) = stage.acts();
    let (tally, latency) = (stage.traffic.tally(), stage.traffic.latency());
    let bound = Some(tightened.report(tally.writes));
    let summary = Summary { acts: &acts, took, tally: &tally, latency: &latency, bound };
    say(&format!("\n{}\n{}", summary.text(), stage.mesh.commands()))?;
    let mut failed = tally.failed();
    // What fails from here on may be somebody's wish.
    while stop.sleep(Duration::from_secs(1)).is_ok() {
        let now = stage.traffic.tally();
        if now.failed() != failed {
            say(&format!("{} requests failed since: {:?}\n", now.failed() - tally.failed(), now.failures))?;
            failed = now.failed();
        }
    }
    Ok(summary.is_good())
}

/// Builds the mesh as well as this machine allows.
fn bring_up(args: &Args, stop: &Stop) -> Result<Mesh> {
    place::sweep();
    directory::sweep();
    let why = if args.loopback { Some("--loopback asks for it".into()) } else { namespaces::missing() };
    let node = match why {
        // Where the first may not be made, none may: that is no failure.
        None => namespaces::node().map_err(|error| error.to_string()),
        Some(why) => Err(why),
    };
    let step = "make the mesh's certificates";
    let authority = Authority::new(config::TRUST_DOMAIN).map_err(cannot(step))?;
    let directory = Directory::new()?;
    let program = sidecar::program(&directory)?;
    match node {
        Ok(node) => {
            say("Bringing up a mesh in network namespaces ...\n")?;
            namespaces::build(node, directory, &authority, program, stop).inspect_err(|error| {
                if matches!(error, Ended::Failed { .. }) {
                    eprintln!("pannier demo: `pannier demo --loopback` needs no network namespaces");
                }
            })
        }
        Err(why) => {
            say(&format!("Bringing up a mesh on loopback: {why} ...\n"))?;
            loopback::build(directory, &authority, program, stop)
        }
    }
}

impl Mesh {
    /// What can be tried while it is up.
    fn commands(&self) -> String {
        let mut commands = match self.registry {
            mesh::Registry::Node(_) => self.commands_in_namespaces(),
            mesh::Registry::Zone(_) => self.commands_on_loopback(),
        };
        let config = self.caller.sidecar.config().display().to_string();
        commands.push((format!("$EDITOR {config}"), "change the caller's sidecar while it runs"));
        commands.push((format!("ls {}", self.directory.path().display()), "logs and certificates"));
        let mut text = String::from("The mesh stays up, and traffic goes on, until Ctrl-C. To try:\n\n");
        for (command, about) in commands {
            text.push_str(&format!("  # {about}\n  {command}\n"));
        }
        text
    }
}

fn say(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(cannot("write to stdout"))
}
