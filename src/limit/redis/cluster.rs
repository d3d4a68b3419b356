//! A Redis Cluster: each command goes to the server of its slot, all at the same time, and follows
//! the slot where it has moved to.
//!
//! What one server does not answer delays nobody who asks another: who serves which slot is asked
//! for beside the commands, and only who knows no server for his slot waits for that.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, join_all};
use redis::{Cmd, ErrorKind, RedisError, RedisResult, ServerErrorKind, Value};
use tokio::time::{Instant, sleep};

use super::super::clock;
use super::access::Access;
use super::connection::{Address, failure};
use super::server::{Route, Server};
use super::slots::{self, Range, SLOTS};
use super::{Answers, Script};

/// How often a command is sent, at most: where its slot was thought to be, and where it was said
/// to be.
const SENT: usize = 5;
/// The pause before a command whose keys are on their way to another server is sent again.
const PAUSE: Duration = Duration::from_millis(5);
/// Who serves what is not asked for again for so long.
const REST: Duration = Duration::from_secs(1);

/// The servers of a cluster.
pub(super) struct Cluster {
    seeds: Vec<Address>,
    access: Arc<Access>,
    patience: Duration,
    state: Mutex<State>,
}

struct State {
    /// By slot, who serves it: a position in `servers`; none is known where there is none.
    owners: Box<[u16]>,
    servers: Vec<Arc<Server>>,
    learning: Option<Shared<BoxFuture<'static, RedisResult<()>>>>,
    learned: Option<Instant>,
}

/// A command that is not answered yet.
struct Open {
    /// Which of the commands.
    at: usize,
    slot: Option<u16>,
    /// Where it was said to be, and whether that server is only being given the slot.
    redirect: Option<(Arc<Server>, bool)>,
}

/// Commands for one server.
struct Group {
    server: Arc<Server>,
    asking: bool,
    members: Vec<Open>,
}

impl Cluster {
    /// Of `seeds` there is at least one.
    pub(super) fn new(seeds: Vec<Address>, access: Arc<Access>, patience: Duration) -> Self {
        let state = State {
            owners: vec![u16::MAX; usize::from(SLOTS)].into(),
            servers: Vec::new(),
            learning: None,
            learned: None,
        };
        Self { seeds, access, patience, state: Mutex::new(state) }
    }

    /// Sends each command to the server of its slot. An error only if none could be asked.
    pub(super) async fn run(self: &Arc<Self>, commands: &[Cmd], script: &Script) -> RedisResult<Answers> {
        let (sent, began) = (clock::now(), Instant::now());
        let mut open: Vec<Open> = (0..commands.len())
            .map(|at| Open { at, slot: slots::slot_of(&commands[at]), redirect: None })
            .collect();
        let lost = |open: &Open| self.owner(open.slot).is_none();
        let nobody = self.state().servers.is_empty();
        if nobody || (open.iter().any(lost) && !self.has_learned_lately()) {
            let learned = self.learn().await;
            if open.iter().all(lost) {
                learned?;
            }
        }
        let mut values: Vec<RedisResult<Value>> =
            commands.iter().map(|_| Err(failure("no server of the cluster has the slot"))).collect();
        let mut unheard = 0;
        for round in 0..SENT {
            if open.is_empty() || (round > 0 && began.elapsed() > self.patience) {
                break;
            }
            let groups = self.groups(std::mem::take(&mut open));
            let asked = groups.iter().map(|group| group.ask(commands, script));
            let answers = join_all(asked).await;
            let mut paused = false;
            for (group, answer) in groups.into_iter().zip(answers) {
                match answer {
                    Ok(answers) => {
                        for (member, value) in group.members.into_iter().zip(answers.values) {
                            let at = member.at;
                            if let Err(error) = &value
                                && let Some(next) = self.follow(&group.server, member, error)
                            {
                                paused |= next.redirect.is_none();
                                open.push(next);
                            }
                            values[at] = value;
                        }
                    }
                    Err(error) => {
                        // Its slots may be another's by now.
                        self.learn_soon();
                        unheard += group.members.len();
                        for member in group.members {
                            values[member.at] = Err(error.clone());
                        }
                    }
                }
            }
            if paused {
                sleep(PAUSE).await;
            }
        }
        match values.first() {
            Some(Err(error)) if unheard == values.len() => Err(error.clone()),
            _ => Ok(Answers { sent, values }),
        }
    }

    /// Where a command goes that was answered with this error; none if that is its answer.
    fn follow(self: &Arc<Self>, asked: &Server, open: Open, error: &RedisError) -> Option<Open> {
        let ErrorKind::Server(kind) = error.kind() else { return None };
        match kind {
            ServerErrorKind::TryAgain => Some(Open { redirect: None, ..open }),
            ServerErrorKind::Moved | ServerErrorKind::Ask => {
                let (to, slot) = error.redirect_node()?;
                let server = self.server(slots::redirect(to, asked.address()?)?);
                let asking = kind == ServerErrorKind::Ask;
                if !asking {
                    self.moved(slot, &server);
                }
                Some(Open { redirect: Some((server, asking)), ..open })
            }
            ServerErrorKind::ClusterDown => {
                self.learn_soon();
                None
            }
            _ => None,
        }
    }

    /// Sorts commands by the server that they go to. Those for which there is none are left out.
    fn groups(&self, open: Vec<Open>) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        for mut open in open {
            let to = open.redirect.take().or_else(|| Some((self.owner(open.slot)?, false)));
            let Some((server, asking)) = to else { continue };
            match groups
                .iter_mut()
                .find(|group| Arc::ptr_eq(&group.server, &server) && group.asking == asking)
            {
                Some(group) => group.members.push(open),
                None => groups.push(Group { server, asking, members: vec![open] }),
            }
        }
        groups
    }

    /// Who serves a slot; for no slot, anyone.
    fn owner(&self, slot: Option<u16>) -> Option<Arc<Server>> {
        let state = self.state();
        match slot {
            Some(slot) => state.servers.get(usize::from(state.owners[usize::from(slot % SLOTS)])).cloned(),
            None => state
                .servers
                .iter()
                .find(|server| server.is_connected())
                .or_else(|| fastrand::choice(&state.servers))
                .cloned(),
        }
    }

    /// The server at an address.
    fn server(&self, address: Address) -> Arc<Server> {
        let mut state = self.state();
        let at = state.position(address, |address| self.unknown(address));
        state.servers[usize::from(at)].clone()
    }

    fn unknown(&self, address: Address) -> Arc<Server> {
        Arc::new(Server::new(Route::At(address), self.access.clone(), self.patience))
    }

    /// A slot is another server's: others may be too.
    fn moved(self: &Arc<Self>, slot: u16, to: &Arc<Server>) {
        let mut state = self.state();
        let at = state.servers.iter().position(|server| Arc::ptr_eq(server, to));
        if let Some(at) = at.and_then(|at| u16::try_from(at).ok()) {
            state.owners[usize::from(slot % SLOTS)] = at;
        }
        drop(state);
        self.learn_soon();
    }

    fn has_learned_lately(&self) -> bool {
        self.state().learned.is_some_and(|learned| learned.elapsed() < REST)
    }

    /// Asks who serves what, beside everything else; not if that was done just now.
    fn learn_soon(self: &Arc<Self>) {
        if !self.has_learned_lately() {
            tokio::spawn(self.learn());
        }
    }

    /// Asks who serves what, once for all who want to know at the same time.
    fn learn(self: &Arc<Self>) -> Shared<BoxFuture<'static, RedisResult<()>>> {
        let mut state = self.state();
        match &state.learning {
            Some(learning) if learning.peek().is_none() => learning.clone(),
            _ => {
                let cluster = self.clone();
                let learning = async move { cluster.ask_around().await }.boxed().shared();
                state.learning = Some(learning.clone());
                learning
            }
        }
    }

    /// Asks servers in turn, those that were heard of late first, until one answers.
    async fn ask_around(&self) -> RedisResult<()> {
        let mut servers = self.state().servers.clone();
        fastrand::shuffle(&mut servers);
        servers.sort_by_key(|server| !server.is_connected());
        for seed in &self.seeds {
            if !servers.iter().any(|server| server.address() == Some(seed)) {
                servers.push(self.unknown(seed.clone()));
            }
        }
        let mut whys = Vec::new();
        for server in servers {
            let Some(address) = server.address() else { continue };
            let mut command = redis::cmd("CLUSTER");
            command.arg("SLOTS");
            match server.query(command).await {
                Ok(answer) => match slots::ranges(&answer, address) {
                    Some(ranges) if !ranges.is_empty() => {
                        self.adopt(ranges, &server);
                        return Ok(());
                    }
                    Some(_) => whys.push(format!("{address}: it knows of no server with slots")),
                    None => whys.push(format!("{address}: its answer to CLUSTER SLOTS is none")),
                },
                Err(error) => whys.push(error.to_string()),
            }
        }
        self.state().learned = Some(Instant::now());
        Err(failure(format_args!("no server of the cluster says who serves what: {}", whys.join("; "))))
    }

    /// Takes over who serves what. Connections to those who still serve are kept, `asked`'s among
    /// them; others end with who is asking on them.
    fn adopt(&self, ranges: Vec<Range>, asked: &Arc<Server>) {
        let mut state = self.state();
        let mut known = std::mem::take(&mut state.servers);
        known.push(asked.clone());
        state.owners.fill(u16::MAX);
        for Range { first, last, server } in ranges {
            let at = state.position(server, |address| {
                let same = known.iter().find(|server| server.address() == Some(&address));
                same.cloned().unwrap_or_else(|| self.unknown(address))
            });
            state.owners[usize::from(first)..=usize::from(last.max(first))].fill(at);
        }
        state.learned = Some(Instant::now());
    }

    /// The state is whole whenever the lock is free.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Where in `servers` the one at this address is; `make` makes it.
    fn position(&mut self, address: Address, make: impl FnOnce(Address) -> Arc<Server>) -> u16 {
        let known = self.servers.iter().position(|server| server.address() == Some(&address));
        let at = known.unwrap_or_else(|| {
            self.servers.push(make(address));
            self.servers.len() - 1
        });
        // A cluster has a thousand servers at most.
        u16::try_from(at).unwrap_or(u16::MAX)
    }
}

impl Group {
    async fn ask(&self, commands: &[Cmd], script: &Script) -> RedisResult<Answers> {
        let commands: Vec<&Cmd> = self.members.iter().map(|member| &commands[member.at]).collect();
        self.server.run(&commands, self.asking, script).await
    }
}
