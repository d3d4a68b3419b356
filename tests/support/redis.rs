//! Real Redis servers in pods: one alone, sentinels, the nodes of a cluster.

use std::io;
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
    options: Vec<String>,
    process: Process,
}

impl Lab {
    /// Starts a Redis.
    pub(crate) fn redis(&self) -> Redis {
        self.redis_with("redis", &[])
    }

    /// Starts a Redis in a pod of this name, with more options than it needs.
    pub(crate) fn redis_with(&self, name: &str, options: &[&str]) -> Redis {
        let pod = self.pod(name);
        let options: Vec<String> = options.iter().map(|option| option.to_string()).collect();
        let process = pod.redis_server(PORT, &options);
        Redis { pod, options, process }
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
        self.pod.redis_command(PORT, command).unwrap_or_else(|e| panic!("redis: {command}: {e}"))
    }

    /// What redis-cli prints.
    pub(crate) fn cli(&self, arguments: &[&str]) -> String {
        self.pod.redis_cli(PORT, arguments)
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
        self.process = self.pod.redis_server(PORT, &self.options);
    }
}

impl Pod {
    /// Starts a Redis at a port of the pod, with more options than it needs, and waits until it
    /// answers. It keeps nothing on disk.
    pub(crate) fn redis_server(&self, port: u16, options: &[impl AsRef<str>]) -> Process {
        require_program("redis-server", "redis-server");
        let dir = self.dir().join(port.to_string());
        std::fs::create_dir_all(&dir).expect("the pod's directory");
        let (address, port_text, dir) = (self.v4().to_string(), port.to_string(), dir.display().to_string());
        let mut arguments = vec!["--bind", &address, "--port", &port_text, "--dir", &dir, "--save", ""];
        arguments.extend(["--appendonly", "no", "--protected-mode", "no"]);
        arguments.extend(options.iter().map(AsRef::as_ref));
        self.await_redis(self.spawn("redis-server", &arguments, 0), port)
    }

    /// Starts a sentinel at a port of the pod, with this configuration.
    pub(crate) fn sentinel(&self, port: u16, configuration: &str) -> Process {
        require_program("redis-server", "redis-server");
        let dir = self.dir().join(port.to_string());
        std::fs::create_dir_all(&dir).expect("the pod's directory");
        // It writes down there what it learns.
        let file = dir.join("sentinel.conf");
        let own = format!("bind {}\nport {port}\ndir {}\nprotected-mode no\n", self.v4(), dir.display());
        std::fs::write(&file, own + configuration).expect("the pod's directory");
        let file = file.display().to_string();
        self.await_redis(self.spawn("redis-server", &[&file, "--sentinel"], 0), port)
    }

    /// Sends an inline command to the server at a port of the pod, and gives the first of the answer.
    pub(crate) fn redis_command(&self, port: u16, command: &str) -> io::Result<String> {
        let to = SocketAddr::new(self.v4(), port);
        let got = self.enter(|| talk(to, format!("{command}\r\n"), |got| got.ends_with(b"\r\n")));
        got.map(|got| String::from_utf8_lossy(&got).into_owned())
    }

    /// What redis-cli prints, of the server at a port of the pod.
    pub(crate) fn redis_cli(&self, port: u16, arguments: &[&str]) -> String {
        require_program("redis-cli", "redis-tools");
        let (address, port) = (self.v4().to_string(), port.to_string());
        let to = ["-h", &address, "-p", &port, "--no-auth-warning"];
        self.namespace().run("redis-cli", &[&to[..], arguments].concat(), "")
    }

    /// Until it answers, be it that it wants a password.
    fn await_redis(&self, mut process: Process, port: u16) -> Process {
        process.until(Duration::from_secs(10), "an answer", |_| {
            let got = self.redis_command(port, "PING");
            got.ok().filter(|got| got.starts_with("+PONG") || got.starts_with("-NOAUTH"))
        });
        process
    }
}
