//! The mesh's controller: the endpoint zone, a DNS zone with every service's endpoints, out of
//! EndpointSlices. Sidecars need DNS alone.
//!
//! - [`slices`] reads EndpointSlices, [`files`] keeps what the files last said, [`zone`] and
//!   [`service`] compile that into records, and [`crate::dns::authority`] answers by the rules.
//! - Whoever asks sees one whole zone: a change makes a new one, which takes the other's place.
//! - What cannot be read changes nothing, and is logged, counted and said at `/ready`. Until everything
//!   has been read once it is not ready, and a name that it does not know is SERVFAIL, not NXDOMAIN:
//!   nobody's endpoints are denied because a file was late.

mod files;
mod service;
mod slices;
mod state;
mod zone;

use std::collections::HashSet;
use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::config::watch::{Events, directory_of};
use crate::{admin, dns, listen};
use files::Files;
use state::State;
use zone::Zone;

/// What to serve, and where.
#[derive(Debug, Clone)]
pub struct Options {
    /// The file or the directory of EndpointSlice manifests.
    pub slices: PathBuf,
    /// Where to answer, over UDP and TCP.
    pub listen: Vec<SocketAddr>,
    /// The zone.
    pub domain: Domain,
    /// Where health and metrics are.
    pub probes: Vec<SocketAddr>,
    /// How long to answer on after having been told to end.
    pub drain: Duration,
}

/// The name of a zone.
#[derive(Debug, Clone)]
pub struct Domain(zone::Domain);

impl FromStr for Domain {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Domain)
    }
}

/// Why the controller cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// What is to be served cannot be read.
    #[error("--slices {path}: {error}; expected a file or a directory of EndpointSlice manifests")]
    Unreadable {
        /// The path, as it was given.
        path: String,
        /// What the system said.
        error: io::Error,
    },
    /// An address cannot be listened on.
    #[error("--{option}: cannot listen on {address}: {error}")]
    Listen {
        /// Which option names it.
        option: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
    /// The system refused something.
    #[error("{what}: {error}")]
    System {
        /// What was asked of it.
        what: &'static str,
        /// What it said.
        error: io::Error,
    },
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> Fatal {
    move |error| Fatal::System { what, error }
}

/// Serves until SIGTERM, and then for `drain` more. Blocks.
pub fn run(options: &Options) -> Result<(), Fatal> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(system("the runtime"))?;
    let ended = runtime.block_on(serve(options));
    // Not waiting for a file system that hangs.
    runtime.shutdown_background();
    ended
}

async fn serve(options: &Options) -> Result<(), Fatal> {
    let told = |kind| signal(kind).map_err(system("signals"));
    let (mut terminate, mut interrupt) = (told(SignalKind::terminate())?, told(SignalKind::interrupt())?);
    let hangup = told(SignalKind::hangup())?;
    let unreadable = |error| Fatal::Unreadable { path: options.slices.display().to_string(), error };
    readable(&options.slices).map_err(unreadable)?;
    // Before the first read, so that no change is missed.
    let events = watch(&options.slices).map_err(unreadable)?;

    // An address that stands for all of them leads nobody here.
    let servers = options.listen.iter().map(SocketAddr::ip).filter(|ip| !ip.is_unspecified()).collect();
    let state = Arc::new(State::new(Zone::unread(options.domain.0.clone(), servers)));
    let (_dns, _doors) = open(options, &state)?;
    tracing::info!(domain = %options.domain.0.name(), slices = %options.slices.display(), "serving the endpoint zone");
    let reader = Reader { files: Files::new(&options.slices), complete: None };
    let following = tokio::spawn(follow(reader, events, hangup, state.clone()));

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        // It never ends by itself. Serving on what grows old, unnoticed, would be worse than not serving.
        Err(error) = following => std::panic::resume_unwind(error.into_panic()),
    }
    state.drain();
    tracing::info!(
        seconds = options.drain.as_secs_f64(),
        "told to end: answering until others have learnt of it"
    );
    tokio::select! {
        () = tokio::time::sleep(options.drain) => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("ended");
    Ok(())
}

/// Whether there is something that can be read at all. A file that is wrong is no reason not to start:
/// it can be mended while we run.
fn readable(path: &Path) -> io::Result<()> {
    if path.is_dir() { std::fs::read_dir(path).map(drop) } else { std::fs::File::open(path).map(drop) }
}

/// Says when to look at the files.
fn watch(path: &Path) -> io::Result<Events> {
    if path.is_dir() {
        return Events::new([path.to_owned()], |_| true);
    }
    let name = path.file_name().map(OsString::from);
    Events::new([directory_of(path)], move |changed| name.as_deref() == Some(changed))
}

/// Opens what is listened on.
fn open(options: &Options, state: &Arc<State>) -> Result<(dns::Server, admin::Doors), Fatal> {
    let (mut udp, mut tcp, mut probes) = (Vec::new(), Vec::new(), Vec::new());
    for &address in &options.listen {
        let failed = |error| Fatal::Listen { option: "listen", address, error };
        let (datagrams, listener) = dns::authority::bind(address).map_err(failed)?;
        tracing::info!(address = %listener.local_addr().map_err(failed)?, "listening: dns");
        udp.push(datagrams);
        tcp.push(listener);
    }
    for &address in &options.probes {
        let failed = |error| Fatal::Listen { option: "probes", address, error };
        let listener = listen::tcp(address, false).map_err(failed)?;
        tracing::info!(address = %listener.local_addr().map_err(failed)?, "listening: probes");
        probes.push(listener);
    }
    let doors = admin::serve_probes(probes, state.clone()).map_err(system("--probes"))?;
    let server = dns::authority::serve(state.clone(), udp, tcp, &Handle::current());
    Ok((server.map_err(system("--listen"))?, doors))
}

/// Reads the files, now and whenever they have changed, and takes what they say into service.
async fn follow(mut reader: Reader, mut events: Events, mut hangup: Signal, state: Arc<State>) {
    let mut said = HashSet::new();
    loop {
        // Off this thread: answers must not wait for parsing, nor for a file system that hangs.
        let zone = state.zone();
        let reading = tokio::task::spawn_blocking(move || {
            let read = reader.read(&zone);
            (reader, read)
        });
        let Reading { zone, notes, problems, failures, complete } = match reading.await {
            Ok((back, reading)) => {
                reader = back;
                reading
            }
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // The runtime is shutting down.
            Err(_) => return,
        };
        events.looked();
        for note in notes.iter().filter(|note| !said.contains(*note)) {
            tracing::warn!("{note}");
        }
        said = notes.into_iter().collect();
        state.looked(failures, problems);
        if let Some(zone) = zone {
            let before = state.publish(zone);
            // A large one takes a while to take down.
            tokio::task::spawn_blocking(move || drop(before));
        }
        if complete {
            state.loaded();
        }
        tokio::select! {
            _ = events.next() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// Makes zones of what the files say.
struct Reader {
    files: Files,
    /// Whether the last zone knew everything; none before the first.
    complete: Option<bool>,
}

/// What one reading has found.
struct Reading {
    /// The new zone, where there is one.
    zone: Option<Zone>,
    /// What the operator should know, although it is served.
    notes: Vec<String>,
    /// What is wrong with the files.
    problems: Vec<String>,
    /// How much of that is new.
    failures: u64,
    complete: bool,
}

impl Reader {
    /// Reads what has changed since this zone was made. Blocks.
    fn read(&mut self, before: &Zone) -> Reading {
        let look = self.files.look();
        let complete = self.files.complete();
        let changed = look.changed || self.complete != Some(complete);
        self.complete = Some(complete);
        let zone = changed.then(|| {
            // A process after us, too, has a greater one.
            let serial = (state::unix_seconds() as u32).max(before.serial.wrapping_add(1));
            before.next(self.files.slices(), serial, complete)
        });
        let unserved = zone.as_ref().unwrap_or(before).notes();
        let notes = self.files.notes().into_iter().chain(unserved).collect();
        Reading { zone, notes, problems: self.files.problems(), failures: look.failures, complete }
    }
}
