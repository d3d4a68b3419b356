"""What the bench knows of the machine: cores, processes and what they cost, free ports."""

import contextlib
import ctypes
import os
import random
import resource
import signal
import socket
import subprocess
import time
import urllib.request


def two_cores():
    """The core for what is measured, and the core for load and upstream."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("the peers bench needs two cores: one for the proxy, one for the load")
    return cores[0], cores[1]


FILES_NEEDED = 18_000


def raise_file_limit():
    """Lets this process and its children hold the connections of the idle cases."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < FILES_NEEDED:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (FILES_NEEDED, max(hard, FILES_NEEDED)))
        except ValueError:
            raise SystemExit(f"the peers bench needs {FILES_NEEDED} open files; `ulimit -Hn` allows {hard}") from None


def free_port():
    """A loopback port below the ephemeral range, so that no client's own port can take it."""
    for _ in range(200):
        port = random.randrange(20000, 32000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise SystemExit("no free port on loopback between 20000 and 32000")


def machine():
    """What rows of one machine have in common, and those of another have not."""
    return f"{cpu_model()}, {len(os.sched_getaffinity(0))} cores, Linux {os.uname().release}"


def cpu_model():
    """The processor's name."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as info:
        for line in info:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return os.uname().machine


CLONE_NEWNET = 0x4000_0000


def own_network():
    """Puts this process, and what it starts from now on, into a network namespace of its own: no
    rule of the machine is in the way, and none that a case makes outlives it. False where that is
    not permitted."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        return False
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    return True


def redirect(port, to):
    """Has the kernel take connections to a loopback port elsewhere, as in a pod. Only after
    `own_network`."""
    rule = ["-t", "nat", "-A", "OUTPUT", "-d", "127.0.0.1", "-p", "tcp", "--dport", str(port)]
    subprocess.run(["iptables", *rule, "-j", "REDIRECT", "--to-ports", str(to)], check=True)


def metrics(port):
    """A sidecar's metrics: each series as written, with its value."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return {series: float(value) for series, _, value in
            (line.rpartition(" ") for line in lines if not line.startswith("#"))}


class Process:
    """A program pinned to a core, or to several as `taskset` writes them, in a process group of its
    own."""

    def __init__(self, command, core, log):
        self.log = log
        self.command = [str(part) for part in command]
        with open(log, "wb") as out:
            self.child = subprocess.Popen(
                ["taskset", "-c", str(core), *self.command],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
        prefer(self.child.pid)

    def wait_for(self, port, seconds=15):
        """Until it accepts on the port; a program that ends first, or never listens, is an error."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.child.poll() is not None:
                break
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 0.5).close()
                return self
            time.sleep(0.05)
        said = open(self.log, errors="replace").read()[-2000:]
        raise SystemExit(f"{' '.join(self.command)}: does not listen on port {port}. It said:\n{said}")

    def family(self):
        """Its process id and those of all its descendants."""
        found, unseen = [], [self.child.pid]
        while unseen:
            pid = unseen.pop()
            found.append(pid)
            for task in listing(f"/proc/{pid}/task"):
                with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{task}/children") as children:
                    unseen += [int(child) for child in children.read().split()]
        return found

    def cpu_seconds(self):
        """User and system time of every living thread, to the nanosecond."""
        spent = 0
        for pid in self.family():
            for task in listing(f"/proc/{pid}/task"):
                with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{task}/schedstat") as stat:
                    spent += int(stat.read().split()[0])
        return spent / 1e9

    def thread_seconds(self, beginning):
        """As `cpu_seconds`, of each thread whose name begins so, by name."""
        spent = {}
        for task in listing(f"/proc/{self.child.pid}/task"):
            with contextlib.suppress(OSError):
                name = open(f"/proc/{self.child.pid}/task/{task}/comm").read().strip()
                if name.startswith(beginning):
                    spent[name] = int(open(f"/proc/{self.child.pid}/task/{task}/schedstat").read().split()[0]) / 1e9
        return spent

    def memory_mib(self):
        """Proportional set size: memory shared between its processes counts once."""
        kib = 0
        for pid in self.family():
            with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup") as rollup:
                kib += sum(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
        return kib / 1024

    def stop(self):
        """Ends the process group, by force where it does not listen."""
        self.end((signal.SIGTERM, 1), (signal.SIGKILL, 10))

    def kill(self):
        """Ends the process group as it is."""
        self.end((signal.SIGKILL, 10))

    def end(self, *signs):
        for sign, patience in signs:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.child.pid, sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.child.wait(patience)
                return


def prefer(pid):
    """Puts a process ahead of other work, where the kernel groups processes by session: a group's
    weight counts there, and not the process's own priority."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/autogroup", "w") as group:
        group.write("-20")


def core_ticks(core):
    """(busy, all) clock ticks of one core since boot."""
    with open("/proc/stat") as stat:
        for line in stat:
            if line.startswith(f"cpu{core} "):
                ticks = [int(field) for field in line.split()[1:9]]
                return sum(ticks) - ticks[3] - ticks[4], sum(ticks)
    return 0, 0


def listing(folder):
    try:
        return os.listdir(folder)
    except OSError:
        return []
