"""From slices to rows."""

import statistics

REFERENCE = "pannier"

# What a row may have: the field, and its digits.
FIELDS = {"us_per_request": 2, "rps": 0, "p50_us": 0, "p99_us": 0}
MORE = {"p999_us": 0, "rate": 0, "late_p99_us": 0, "up_mib_per_second": 0, "down_mib_per_second": 0,
        "proxy_core_busy": 2, "load_core_busy": 2}
COMPARED = ("us_per_request", "p50_us", "p99_us")


def load_rows(slices, memory, per):
    """A row for each system: medians over its slices, and Pannier against it round by round."""
    ours = next((own for (_, system), own in slices.items() if system == REFERENCE), None)
    rows = []
    for key, own in slices.items():
        one = row(key, own, memory[key])
        one["per"] = per
        if ours and key[1] != REFERENCE:
            one["pannier_ratio"] = ratios(ours, own)
        rows.append(one)
    return rows


def row(key, slices, mib):
    case, system = key
    medians = {field: median(slices, field, digits) for field, digits in FIELDS.items()}
    more = {field: median(slices, field, digits) for field, digits in MORE.items()
            if any(field in one for one in slices)}
    return {"case": case, "system": system, **medians, "mib": round(mib, 1), **more,
            "requests": sum(one.get("requests", 0) for one in slices),
            "failures": sum(one["failures"] for one in slices)}


def median(slices, field, digits):
    known = [one[field] for one in slices if field in one]
    return round(statistics.median(known), digits or None) if known else None


def ratios(ours, theirs):
    """Pannier's over the other's, where both were measured: of each field by round."""
    found = {}
    for field in COMPARED:
        rounds = [a[field] / b[field] for a, b in zip(ours, theirs) if field in a and b.get(field)]
        if rounds:
            found[field] = quartiles(rounds)
    return found


def quartiles(values):
    """Median, first and third quartile."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": round(median, 3), "q1": round(low, 3), "q3": round(high, 3)}


def idle_row(case, system, mib, failures):
    unmeasured = dict.fromkeys(FIELDS)
    return {"case": case, "system": system, **unmeasured, "mib": round(mib, 1), "failures": failures}
