//! A real Redis in a pod of its own.

use std::net::SocketAddr;
use std::time::Duration;

use rustix::process::Signal;

use super::client::talk;
use super::lab::{Lab, Pod};
use super::namespace::require_program;
use super::process::Process;

const PORT: u16 = 6379;

/// The lab's Redis. It keeps nothing on disk.
pub(crate) struct Redis {
    pod: Pod,
    process: Process,
}

impl Lab {
    /// Starts a Redis.
    pub(crate) fn redis(&self) -> Redis {
        require_program("redis-server", "redis-server");
        let pod = self.pod("redis");
        let process = launch(&pod);
        let mut redis = Redis { pod, process };
        redis.await_pong();
        redis
    }
}

impl Redis {
    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::new(self.pod.v4(), PORT)
    }

    /// The pod it runs in.
    pub(crate) fn pod(&self) -> &Pod {
        &self.pod
    }

    /// Sends an inline command, and gives the first of the answer.
    pub(crate) fn command(&self, command: &str) -> String {
        let to = self.address();
        let got = self.pod.enter(|| talk(to, format!("{command}\r\n"), |got| got.ends_with(b"\r\n")));
        String::from_utf8_lossy(&got.unwrap_or_else(|e| panic!("redis: {command}: {e}"))).into_owned()
    }

    /// It accepts and never answers.
    pub(crate) fn pause(&self) {
        self.process.signal(Signal::STOP);
    }

    /// The end of a pause.
    pub(crate) fn resume(&self) {
        self.process.signal(Signal::CONT);
    }

    /// Kills it, and all it knew.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again, empty.
    pub(crate) fn restart(&mut self) {
        self.process.kill();
        self.process = launch(&self.pod);
        self.await_pong();
    }

    fn await_pong(&mut self) {
        let (pod, to) = (&self.pod, self.address());
        self.process.until(Duration::from_secs(10), "PONG", |_| {
            let got = pod.enter(|| talk(to, b"PING\r\n", |got| got.ends_with(b"\r\n")));
            got.ok().filter(|got| got.starts_with(b"+PONG"))
        });
    }
}

fn launch(pod: &Pod) -> Process {
    let (address, dir) = (pod.v4().to_string(), pod.dir().display().to_string());
    let port = PORT.to_string();
    let args = ["--bind", &address, "--port", &port, "--save", "", "--appendonly", "no", "--dir", &dir];
    pod.spawn("redis-server", &[&args[..], &["--protected-mode", "no"]].concat(), 0)
}
