"""Redis as the bench runs it: one server, or one that Sentinels watch over, or a Cluster. All are on free ports
of loopback, keep nothing, and are ended with the bench."""

import collections
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from machine import Process, free_port, prefer

PATIENCE = 20
NOTHING_KEPT = ["--save", "", "--appendonly", "no"]
# For how long each step of a slot's move is left as it is, in seconds.
MOVING = 0.2


class Server:
    """One redis-server."""

    def __init__(self, *options, core=None):
        self.folder = tempfile.TemporaryDirectory(prefix="pannier-limit-")
        self.port = free_port()
        self.pinned = ["taskset", "-c", str(core)] if core is not None else []
        self.options = [str(option) for option in options]
        self.start()

    def command(self):
        return ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", self.folder.name,
                "--maxmemory-policy", "noeviction", *NOTHING_KEPT, *self.options]

    def start(self):
        """Starts it, empty."""
        log = open(Path(self.folder.name) / "log", "ab")
        with log:
            self.process = subprocess.Popen([*self.pinned, *self.command()], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                            start_new_session=True)
        prefer(self.process.pid)
        until(f"redis-server on port {self.port}", lambda: self.ask("PING") == "PONG")

    def ask(self, *words):
        return ask(self.port, *words)

    def calls(self):
        """How often each command was called, since `forget`; those of scripts included."""
        lines = self.ask("INFO", "commandstats").splitlines()
        pairs = (line.removeprefix("cmdstat_").split(":calls=") for line in lines if line.startswith("cmdstat_"))
        return collections.Counter({name: int(rest.split(",")[0]) for name, rest in pairs})

    def forget(self):
        """Counts commands anew."""
        self.ask("CONFIG", "RESETSTAT")

    def cpu_seconds(self):
        """User and system time since it was started."""
        return Process.cpu_seconds(self)

    def family(self):
        return [self.process.pid]

    def kill(self):
        """Ends it without notice; `start` brings it back."""
        self.process.kill()
        self.process.wait()

    def stop(self):
        self.kill()
        self.folder.cleanup()


class Alone:
    """One server that all sidecars ask."""

    def __init__(self):
        self.server = Server()
        self.servers = [self.server]
        self.configuration = {"url": f"redis://127.0.0.1:{self.server.port}"}

    def calls(self):
        """As of a server, of all that run."""
        total = collections.Counter()
        for server in self.running():
            total += server.calls()
        return total

    def forget(self):
        for server in self.running():
            server.forget()

    def cpu_seconds(self):
        return sum(server.cpu_seconds() for server in self.servers)

    def running(self):
        return [server for server in self.servers if server.process.poll() is None]

    def pause(self):
        self.server.process.send_signal(signal.SIGSTOP)

    def resume(self):
        self.server.process.send_signal(signal.SIGCONT)

    def kill(self):
        self.server.kill()

    def start(self):
        self.server.start()

    def flush(self):
        self.server.ask("FLUSHALL")

    def stop(self):
        for server in self.servers:
            server.stop()


class Sentinels(Alone):
    """A primary, its replica, and three Sentinels of which two must agree."""

    NAME = "limits"

    def __init__(self):
        self.server = Server()
        self.replica = Server("--replicaof", "127.0.0.1", self.server.port)
        self.watchers = [Sentinel(self.NAME, self.server.port) for _ in range(3)]
        # A Sentinel runs no script.
        self.servers = [self.server, self.replica]
        until("the replica", lambda: "master_link_status:up" in self.replica.ask("INFO", "replication"))
        until("the Sentinels", lambda: all(self.knows_all(watcher) for watcher in self.watchers))
        urls = [f"redis://127.0.0.1:{watcher.port}" for watcher in self.watchers]
        self.configuration = {"sentinel": {"master": self.NAME, "urls": urls}}

    def knows_all(self, watcher):
        """Of both its peers, and of the replica."""
        lines = watcher.ask("SENTINEL", "MASTER", self.NAME).splitlines()
        known = dict(zip(lines[::2], lines[1::2]))
        return known.get("num-other-sentinels") == "2" and known.get("num-slaves") == "1"

    def start(self):
        """Brings the old primary back, as the replica of the new one."""
        primary = self.watchers[0].ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.NAME).split()[1]
        if int(primary) != self.server.port:
            self.server.options = ["--replicaof", "127.0.0.1", primary]
        self.server.start()

    def failover(self):
        """Has the Sentinels let the other one take over."""
        self.watchers[0].ask("SENTINEL", "FAILOVER", self.NAME)

    def stop(self):
        for watcher in self.watchers:
            watcher.stop()
        super().stop()


class Sentinel(Server):
    """One Sentinel: it takes a primary that is silent for a second for dead."""

    def __init__(self, name, primary):
        self.lines = (f"sentinel monitor {name} 127.0.0.1 {primary} 2\nsentinel down-after-milliseconds {name} 1000\n"
                      f"sentinel failover-timeout {name} 5000\n")
        super().__init__()

    def command(self):
        path = Path(self.folder.name) / "sentinel.conf"
        path.write_text(f"port {self.port}\nbind 127.0.0.1\ndir {self.folder.name}\n{self.lines}")
        return ["redis-server", str(path), "--sentinel"]


class Cluster(Alone):
    """Three primaries."""

    def __init__(self):
        self.servers = [Server("--cluster-enabled", "yes", "--cluster-node-timeout", "2000") for _ in range(3)]
        self.server = self.servers[0]
        addresses = [f"127.0.0.1:{server.port}" for server in self.servers]
        tool("--cluster", "create", *addresses, "--cluster-yes")
        until("the cluster", lambda: all("cluster_state:ok" in server.ask("CLUSTER", "INFO") for server in self.servers))
        self.configuration = {"cluster": [f"redis://{address}" for address in addresses]}

    def reshard(self):
        """Moves each slot of the busiest server that has keys to the next one."""
        source = max(self.servers, key=lambda server: server.calls()["evalsha"])
        target = self.servers[(self.servers.index(source) + 1) % len(self.servers)]
        keys = source.ask("KEYS", "*").split()
        for slot in {int(source.ask("CLUSTER", "KEYSLOT", key)) for key in keys}:
            self.move(slot, source, target)

    def move(self, slot, source, target):
        """As `redis-cli --cluster reshard` does it, a little slower: sidecars are to meet it half done."""
        ids = {server: server.ask("CLUSTER", "MYID") for server in (source, target)}
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
        time.sleep(MOVING)
        while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 10).split():
            source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 1000 * PATIENCE, "KEYS", *keys)
            time.sleep(MOVING)
        for server in (target, source, *self.servers):
            server.ask("CLUSTER", "SETSLOT", slot, "NODE", ids[target])


def ask(port, *words):
    """The answer to one command, as redis-cli prints it; nothing if there is none."""
    done = subprocess.run(["redis-cli", "-p", str(port), *map(str, words)], capture_output=True, text=True, timeout=PATIENCE)
    return done.stdout.strip()


def tool(*arguments):
    done = subprocess.run(["redis-cli", *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(f"redis-cli {' '.join(arguments)}: {done.stdout[-1000:]}{done.stderr[-1000:]}")


def until(what, holds):
    """Waits for what must become true."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > deadline:
            raise SystemExit(f"{what}: not within {PATIENCE} s")
        time.sleep(0.05)
