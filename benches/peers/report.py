"""From slices to rows, and from rows to the table that the README shows."""

import json
import statistics

from machine import cpu_model

BEGIN, END = "<!-- peers:begin -->", "<!-- peers:end -->"
REFERENCE = "pannier"

TITLES = {
    "hop/64": "One plain hop, 64 connections",
    "pair-h1/64": "The mTLS pair, HTTP/1.1 between the sidecars, 64 connections",
    "pair-h2/64": "The mTLS pair, HTTP/2 between the sidecars, 64 connections",
    "idle/4000": "One plain hop, 4,000 idle connections",
    "idle-pair/4000": "The mTLS pair, 4,000 idle connections",
}
NAMES = {"pannier": "**Pannier**", "nginx": "nginx", "haproxy": "HAProxy", "envoy": "Envoy",
         "floor": "a relay that only copies bytes"}


def load_rows(case, slices, memory):
    """A row for each system: medians over its slices, and the ratio of its CPU to Pannier's."""
    rows = []
    for system, own in slices.items():
        median = lambda key: statistics.median(one[key] for one in own)
        row = {
            "case": case,
            "system": system,
            "us_per_request": round(median("us_per_request"), 2),
            "rps": round(median("rps")),
            "p50_us": round(median("p50_us")),
            "p99_us": round(median("p99_us")),
            "mib": round(memory[system], 1),
            "failures": sum(one["failures"] for one in own),
        }
        if REFERENCE in slices and system != REFERENCE:
            row["pannier_ratio"] = quartiles([
                ours["us_per_request"] / theirs["us_per_request"]
                for ours, theirs in zip(slices[REFERENCE], own) if theirs["us_per_request"] > 0])
        rows.append(row)
    return rows


def quartiles(ratios):
    """Median, first and third quartile of Pannier's CPU over the other's, round by round."""
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return {"median": round(median, 3), "q1": round(low, 3), "q3": round(high, 3)}


def idle_row(case, system, mib, failures):
    unmeasured = dict.fromkeys(("us_per_request", "rps", "p50_us", "p99_us"))
    return {"case": case, "system": system, **unmeasured, "mib": round(mib, 1), "failures": failures}


def write_json(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[\n" + ",\n".join("  " + json.dumps(row) for row in rows) + "\n]\n")


def markdown(rows, rounds, seconds):
    """The table, one block of rows for each case."""
    lines = ["| system | CPU µs per request | requests/s | p50 µs | p99 µs | MiB | Pannier's CPU against it (quartiles) |",
             "|---|--:|--:|--:|--:|--:|--:|"]
    for case in dict.fromkeys(row["case"] for row in rows):
        lines.append(f"| *{TITLES[case]}* | | | | | | |")
        lines += [line(row) for row in rows if row["case"] == case]
    lines += ["", f"Medians of {rounds} alternating slices of {seconds} s; {cpu_model()}, one core for the proxy, one for load "
              "and upstream; 100-byte bodies. A pair is both sidecars summed. nginx speaks no HTTP/2 to an upstream."]
    return "\n".join(lines)


def line(row):
    ratio = row.get("pannier_ratio")
    cells = [
        NAMES[row["system"]] + (f" ({row['failures']:,} failed)" if row["failures"] else ""),
        shown(row["us_per_request"], ".1f"), shown(row["rps"], ",d"),
        shown(row["p50_us"], ",d"), shown(row["p99_us"], ",d"), shown(row["mib"], ".1f"),
        f"{ratio['median']:.2f}x ({ratio['q1']:.2f} to {ratio['q3']:.2f})" if ratio else "",
    ]
    return "| " + " | ".join(cells) + " |"


def shown(value, form):
    return "" if value is None else format(value, form)


def replace_table(path, table):
    """Puts the table between the markers of a file, which must have them."""
    text = path.read_text()
    if BEGIN not in text or END not in text:
        raise SystemExit(f"{path}: the markers {BEGIN} and {END} are missing")
    before, rest = text.split(BEGIN, 1)
    path.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.split(END, 1)[1]}")
