"""Differences between roles that take turns: what a role adds to that of nothing, in the same round."""

import math
import statistics

CONFIDENCE = 0.95


def added(rounds, field, role, base):
    """What a role adds to the base in each round. `rounds` are of {role: slice}, and a slice has its field's
    value and, where processes take turns in the roles, its `process`."""
    known = [of for of in rounds if field in of.get(role, {}) and field in of.get(base, {})]
    apart = of_processes(known, field)
    value = lambda one: one[field] - apart.get(one.get("process"), 0)
    return [value(of[role]) - value(of[base]) for of in known]


def of_processes(rounds, field):
    """By how much each process is apart from the others, whatever its role is: two processes of the same program
    and configuration differ. Each process has had each role equally often."""
    values = [(number, role, one["process"], one[field]) for number, of in enumerate(rounds)
              for role, one in of.items() if "process" in one and field in one]
    if not values:
        return {}
    mean = lambda place, name: statistics.mean(value for *key, value in values if key[place] == name)
    of_round = {name: mean(0, name) for name in {value[0] for value in values}}
    of_role = {name: mean(1, name) for name in {value[1] for value in values}}
    overall = statistics.mean(value for *_, value in values)
    rest = {}
    for number, role, process, value in values:
        rest.setdefault(process, []).append(value - of_round[number] - of_role[role] + overall)
    return {process: statistics.mean(of) for process, of in rest.items()}


def interval(values):
    """The median, and what holds it with a confidence of 95 %, whatever the values are distributed like; of fewer
    than six all that there are."""
    values = sorted(values)
    count = len(values)
    out = 0
    # As many from each end as the median is beyond with so little chance.
    while out < count // 2 and below(count, out) <= (1 - CONFIDENCE) / 2:
        out += 1
    return {"median": statistics.median(values), "low": values[max(out - 1, 0)], "high": values[count - max(out, 1)]}


def below(count, most):
    """The chance that at most so many of them are below their median."""
    return sum(math.comb(count, number) for number in range(most + 1)) / 2 ** count
