//! The process: reads the configuration, binds the listeners, starts the workers, and then, on the
//! control thread, follows changes, signals and the operator until the end.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use tokio::runtime::{Handle, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use super::application::Served;
use super::child::{Child, NotStarted, Relay};
use super::drain::{self, Drain};
use super::listen::{self, Listeners, Unbound};
use super::mesh::{Ground, Mesh};
use super::view::View;
use super::worker::{self, Assignment, Line, Shared};
use crate::auth::token::{self, Tokens};
use crate::config::model::Direction;
use crate::config::watch::Watcher;
use crate::config::{self, Model, Problems};
use crate::dns::{self, Capture, Resolver};
use crate::identity::{self, Identity};
use crate::telemetry::Metrics;
use crate::tls::{self, Tls};
use crate::{admin, limit};

/// Why the sidecar cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// The configuration is wrong.
    #[error("{0}")]
    Config(#[from] Problems),
    /// The certificates are.
    #[error("{0}")]
    Identity(#[from] identity::Error),
    /// The keys of an issuer of tokens are.
    #[error("{0}")]
    Tokens(#[from] token::Error),
    /// DNS cannot be asked.
    #[error("dns: {0}")]
    Dns(#[from] dns::ConfigError),
    /// Redis cannot be asked.
    #[error("{0}")]
    Redis(String),
    /// A file that says nothing where another ran: more likely half written than meant.
    #[error("the file is empty; to run without any configuration, start anew with it")]
    Empty,
    /// The file is not there.
    #[error("there is no configuration at {0}; give one with --config")]
    Missing(PathBuf),
    /// An address cannot be listened on.
    #[error("{0}")]
    Listen(#[from] Unbound),
    /// The application cannot be started.
    #[error("{0}")]
    Application(#[from] NotStarted),
    /// The system refused something.
    #[error("{what}: {error}")]
    System {
        /// What was asked of it.
        what: &'static str,
        /// What it said.
        error: io::Error,
    },
}

impl Fatal {
    fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Fatal::System { what, error }
    }
}

/// Runs a sidecar with the configuration at `path` until it has been told to stop and has drained.
/// Blocks; this thread becomes the control thread.
pub fn run(path: &Path) -> Result<(), Fatal> {
    control_runtime()?.block_on(async {
        Sidecar::start(path)?.follow(None).await;
        Ok(())
    })
}

/// As [`run`], with the application that `command` starts once the sidecar serves. It is told to stop
/// when the sidecar is; the sidecar ends when it has ended, however it did, and this returns how.
pub fn run_application(path: &Path, command: Command) -> Result<ExitStatus, Fatal> {
    control_runtime()?.block_on(async {
        let relay = Relay::new().map_err(Fatal::system("signals"))?;
        let sidecar = Sidecar::start(path)?;
        let application = match Child::start(command, relay) {
            Ok(application) => application,
            Err(error) => {
                sidecar.end();
                return Err(error.into());
            }
        };
        let (shared, ended) = (sidecar.shared.clone(), CancellationToken::new());
        let waited = async {
            let status = application.wait().await;
            ended.cancel();
            shared.drain.quit();
            status
        };
        let ((), status) = tokio::join!(sidecar.follow(Some(&ended)), waited);
        Ok(status)
    })
}

fn control_runtime() -> Result<Runtime, Fatal> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build().map_err(Fatal::system("the control runtime"))
}

/// A running sidecar, held by the control thread.
pub struct Sidecar {
    path: PathBuf,
    watcher: Watcher,
    /// Of the files with keys of tokens' issuers.
    keys: Option<Watcher>,
    shared: Arc<Shared>,
    view: Arc<View>,
    capture: Arc<Capture>,
    rotation: Option<AbortHandle>,
    workers: Vec<thread::JoinHandle<io::Result<()>>>,
    end: CancellationToken,
    signals: Signals,
    _doors: admin::Doors,
    _dns: dns::Server,
}

/// What the process is told.
struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }
}

impl Sidecar {
    /// Starts everything. To be called on the control runtime.
    pub fn start(path: &Path) -> Result<Self, Fatal> {
        if !path.exists() {
            return Err(Fatal::Missing(path.to_owned()));
        }
        let signals = Signals::new().map_err(Fatal::system("signals"))?;
        // Before the first read, so that no change is missed.
        let watcher =
            Watcher::new(&[path.to_owned()]).map_err(Fatal::system("watching the configuration"))?;
        let written = written(path);
        let model = config::load(path)?;
        let keys = key_watcher(&model)?;
        let tokens = Tokens::compile(model.jwt.as_ref(), None)?;
        let identity = model.identity.as_ref().map(Identity::load).transpose()?;
        let tls = identity.as_ref().map(Tls::new);
        let workers = workers(&model);
        let metrics = Metrics::new(workers);
        metrics.identity(identity.as_ref().map(Identity::not_after));
        let ground = Ground {
            resolver: Resolver::new(&model.dns, Handle::current())?,
            limits: ArcSwap::from(limits(&model, None)?),
            metrics: metrics.clone(),
        };
        let Listeners { workers: own, admin, probes, dns_udp, dns_tcp, bound } =
            listen::bind(&model.listen, workers)?;
        let capture = Capture::new(&model.dns, ground.resolver.clone());
        ground.limits.load().written(written);
        let mesh = Mesh::compile(model, tokens, tls.as_deref(), &ground, None);
        capture.replace_names(names(&mesh).iter().map(String::as_str));
        let dns = capture.serve(dns_udp, dns_tcp).map_err(Fatal::system("listen.dns"))?;
        for (name, address) in &bound {
            tracing::info!(%address, "listening: {name}");
        }
        let mut ports: Vec<u16> = bound.iter().map(|(_, address)| address.port()).collect();
        ports.sort_unstable();
        ports.dedup();
        let listeners = bound.iter().filter_map(|(name, address)| {
            let direction = [Direction::Outbound, Direction::Inbound]
                .into_iter()
                .find(|direction| direction.name() == *name)?;
            Some((direction, *address))
        });
        let listeners = listeners.collect();
        let shared = Arc::new(Shared {
            mesh: ArcSwap::from_pointee(mesh),
            tls: tls::Current::new(tls),
            drain: Drain::default(),
            served: Served::default(),
            ground,
            ports,
            listeners,
            mismatches: AtomicU64::new(0),
            busy: own.iter().map(|_| Line::default()).collect(),
            alarms: own.iter().map(|_| Arc::default()).collect(),
        });
        let view = View::new(shared.clone(), capture.clone(), bound);
        view.collect();
        let doors =
            admin::serve(admin, probes, view.clone(), metrics).map_err(Fatal::system("listen.admin"))?;
        let end = CancellationToken::new();
        let workers = start_workers(&shared, own, &end)?;
        let rotation = rotation(&shared, identity);
        say_what_is_open(&shared);
        Ok(Self {
            path: path.to_owned(),
            watcher,
            keys,
            shared,
            view,
            capture,
            rotation,
            workers,
            end,
            signals,
            _doors: doors,
            _dns: dns,
        })
    }

    /// Follows changes and signals until the end. `ended` is cancelled when the application that we
    /// started has ended; none: it is not ours.
    pub async fn follow(mut self, ended: Option<&CancellationToken>) {
        loop {
            tokio::select! {
                () = self.watcher.changed() => self.reload(),
                () = changed(&mut self.keys) => self.reload(),
                _ = self.signals.hangup.recv() => self.reload(),
                _ = self.signals.terminate.recv() => self.shared.drain.begin(),
                _ = self.signals.interrupt.recv() => self.shared.drain.begin(),
                () = self.shared.drain.begun() => break,
            }
        }
        let config = self.shared.mesh.load().model.drain.clone();
        tokio::select! {
            () = drain::drain(&self.shared, &config, ended) => {}
            // A second word means now; to an application of ours, which decides what it means.
            _ = self.signals.interrupt.recv(), if ended.is_none() => {
                tracing::warn!("interrupted while draining");
            }
        }
        self.end();
    }

    /// Ends the workers, and with them whatever connections are left.
    fn end(self) {
        self.end.cancel();
        for worker in self.workers {
            let _ = worker.join();
        }
    }

    /// Takes the configuration as it is now, or keeps the running one and says what is wrong.
    fn reload(&mut self) {
        match self.compile() {
            Ok(()) => {
                self.shared.ground.metrics.reload(true);
                self.view.refused(None);
                let generation = self.shared.ground.metrics.generation();
                tracing::info!(generation, "configuration applied");
                say_what_is_open(&self.shared);
            }
            Err(error) => {
                self.shared.ground.metrics.reload(false);
                tracing::error!(%error, "configuration refused; the running one is kept");
                self.view.refused(Some(error.to_string()));
            }
        }
    }

    /// Compiles and swaps; what fails before the swap has changed nothing.
    fn compile(&mut self) -> Result<(), Fatal> {
        let written = written(&self.path);
        let model = config::load(&self.path)?;
        let shared = &self.shared;
        let before = shared.mesh.load_full();
        if model == Model::default() && before.model != model {
            return Err(Fatal::Empty);
        }
        let moved = model.identity != before.model.identity;
        let identity = match (&model.identity, moved) {
            (Some(files), true) => Some(Identity::load(files)?),
            _ => None,
        };
        let tls = if moved { identity.as_ref().map(Tls::new) } else { shared.tls.load() };
        // What can fail comes first. The files with keys are watched before they are read.
        let keys = (model.jwt != before.model.jwt).then(|| key_watcher(&model)).transpose()?;
        let tokens = Tokens::compile(model.jwt.as_ref(), Some(&before.tokens))?;
        let limits = (model.redis != before.model.redis)
            .then(|| limits(&model, Some(&shared.ground.limits.load())))
            .transpose()?;
        if model.dns != before.model.dns {
            shared.ground.resolver.reconfigure(&model.dns)?;
            self.capture.reconfigure(&model.dns);
        }
        if let Some(limits) = limits {
            shared.ground.limits.store(limits);
        }
        if let Some(keys) = keys {
            self.keys = keys;
        }
        self.view.fixed(&before.model, &model);
        shared.ground.limits.load().written(written);
        let mesh = Mesh::compile(model, tokens, tls.as_deref(), &shared.ground, Some(&before));
        self.capture.replace_names(names(&mesh).iter().map(String::as_str));
        if moved {
            // First what new connections prove, then what they are asked to.
            shared.ground.metrics.identity(identity.as_ref().map(Identity::not_after));
            shared.tls.store(tls);
        }
        let mesh = Arc::new(mesh);
        shared.mesh.store(mesh.clone());
        before.retire(&mesh);
        if moved {
            if let Some(rotation) = self.rotation.take() {
                rotation.abort();
            }
            self.rotation = rotation(shared, identity);
        }
        Ok(())
    }
}

/// When the configuration was written: asked before it is read, so that what is read is no older.
fn written(path: &Path) -> SystemTime {
    std::fs::metadata(path).and_then(|file| file.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn limits(model: &Model, before: Option<&limit::State>) -> Result<Arc<limit::State>, Fatal> {
    limit::State::after(before, model.redis.as_ref(), &Handle::current()).map_err(Fatal::Redis)
}

/// Watches the files with keys of tokens' issuers, if there are any.
fn key_watcher(model: &Model) -> Result<Option<Watcher>, Fatal> {
    let Some(jwt) = &model.jwt else { return Ok(None) };
    let files: Vec<_> = jwt.issuers.iter().map(|issuer| issuer.jwks.clone()).collect();
    Watcher::new(&files).map(Some).map_err(Fatal::system("watching the keys of tokens"))
}

/// Waits for a change of what is watched; where nothing is, for ever.
async fn changed(watcher: &mut Option<Watcher>) {
    match watcher {
        Some(watcher) => watcher.changed().await,
        None => std::future::pending().await,
    }
}

/// Worker threads: as configured, or as many as the container may use.
fn workers(model: &Model) -> usize {
    // The standard library honours the cgroup's CPU quota and the affinity mask; a quota of less
    // than a core is one worker.
    let default = || thread::available_parallelism().map_or(1, |n| n.get());
    model.workers.map_or_else(default, |n| n.get())
}

fn start_workers(
    shared: &Arc<Shared>,
    listeners: Vec<Vec<(Direction, std::net::TcpListener)>>,
    end: &CancellationToken,
) -> Result<Vec<thread::JoinHandle<io::Result<()>>>, Fatal> {
    let (ways, handed): (Vec<_>, Vec<_>) = listeners.iter().map(|_| mpsc::unbounded_channel()).unzip();
    let mut threads = Vec::with_capacity(listeners.len());
    for (index, (listeners, handed)) in listeners.into_iter().zip(handed).enumerate() {
        let assignment = Assignment { index, listeners, handed, workers: ways.clone() };
        let (shared, end) = (shared.clone(), end.clone());
        let thread = thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || {
                worker::run(shared, assignment, end).inspect_err(|error| {
                    tracing::error!(%error, worker = index, "a worker could not run");
                })
            })
            .map_err(Fatal::system("starting a worker"))?;
        threads.push(thread);
    }
    Ok(threads)
}

/// Follows the identity's files, and has new connections use what they hold.
fn rotation(shared: &Arc<Shared>, current: Option<Identity>) -> Option<AbortHandle> {
    let files = shared.mesh.load().model.identity.clone()?;
    let mut watcher = match Watcher::new(&[
        files.certificate.clone(),
        files.key.clone(),
        files.bundle.clone(),
    ]) {
        Ok(watcher) => watcher,
        Err(error) => {
            tracing::error!(%error, "the identity's files cannot be watched; SIGHUP does not read them either");
            return None;
        }
    };
    let shared = shared.clone();
    let publish = move |renewed: Result<&Identity, &identity::Error>| {
        let metrics = &shared.ground.metrics;
        metrics.identity_renewed(renewed.is_ok());
        if let Ok(identity) = renewed {
            metrics.identity(Some(identity.not_after()));
            shared.tls.store(Some(Tls::new(identity)));
        }
    };
    let changes = async move || watcher.changed().await;
    Some(tokio::spawn(identity::rotate(files, current, changes, publish)).abort_handle())
}

/// The names that the cache answers the pod's queries for: what applications dial.
fn names(mesh: &Mesh) -> Vec<String> {
    mesh.upstreams.iter().map(|route| route.upstream.spec.address.host.to_string()).collect()
}

/// Says aloud what is not protected, and what is probably not meant.
fn say_what_is_open(shared: &Shared) {
    let mesh = shared.mesh.load();
    for warning in config::warnings(&mesh.model) {
        tracing::warn!("configuration: {warning}");
    }
    match shared.tls.load() {
        None => tracing::warn!("no identity is configured: traffic is plaintext, in both directions"),
        Some(tls) => tracing::info!(id = %tls.id(), inbound = ?mesh.inbound_mtls, "mTLS"),
    }
}

impl Shared {
    /// Requests whose host had a route, but whose address was not that upstream's.
    pub(super) fn mismatches(&self) -> u64 {
        self.mismatches.load(Ordering::Relaxed)
    }
}
