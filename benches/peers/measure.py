"""Alternating slices: whatever else the machine does meets all systems alike."""

import statistics
import sys

import load

# At a fixed rate: the share of what the slowest system can do, and how many requests a system's
# p99 is to be over where the rounds are a full run's.
SHARE = 0.7
REQUESTS = 200_000
FULL_RUN = 9


def alternate(rig, group, entries, asked):
    """Slices of load through every system of a group. Returns for each entry its slices and its
    memory; a system that cannot take the load has slices of failure."""
    running = {key: start(rig) for key, start in entries.items()}
    seconds, more = asked.seconds, {}
    for key, system in running.items():
        one(rig, group, key, system, 1, more)
    if group.fixed_rate:
        more["rate"] = rate = fixed_rate(rig, group, running)
        if asked.rounds >= FULL_RUN:
            seconds = max(seconds, REQUESTS / (rate * asked.rounds))
    slices = {key: [] for key in running}
    for number in range(asked.rounds):
        print(f"{group.name}: round {number + 1} of {asked.rounds}", file=sys.stderr)
        for key, system in running.items():
            slices[key].append(one(rig, group, key, system, seconds, more) | more)
    memory = {key: sum(process.memory_mib() for process in system.processes) for key, system in running.items()}
    for system in running.values():
        rig.stop(system.processes)
    return slices, memory


def one(rig, group, key, system, seconds, more):
    """One slice of a system."""
    return load.tried(f"{group.name}, {key[1]}", group.load, rig, system.port, system.processes, seconds, **more)


def fixed_rate(rig, group, running):
    """A share of what the slowest system answers when asked as fast as it can."""
    rates = []
    for key, system in running.items():
        rounds = [one(rig, group, key, system, 1, {}).get("rps") for _ in range(2)]
        rates += [statistics.mean(rounds)] if all(rounds) else []
    if not rates:
        raise SystemExit(f"{group.name}: no system takes load")
    return max(1, int(min(rates) * SHARE))
