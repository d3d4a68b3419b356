"""What Pannier is held to, and which of it the rows miss."""

TRIALS_OF_A_ROW = 2_000
TRIALS = 100_000
FRESH_ENDPOINTS = 2_000
HALF_REUSED = 0.99
UNDER_REUSED = 0.95

AFTER_LEARNING = ("edge", "half", "under")
STEPS = ("learn", *AFTER_LEARNING, "fresh")


def failures(counts):
    return sum(counts["failures"].values())


def most(counts):
    """The failures of the lane that had most."""
    return max(map(int, counts["lanes_by_failures"]), default=0)


def reused(counts):
    return counts["reused"] / counts["answered"] if counts["answered"] else 0.0


def missed(result, whole):
    """The promises that are missed, in words. Of a whole run the amounts are promised, too."""
    own = [row for row in result["rows"] if row["system"] == "pannier"]
    found = [f"{row['row']} {row['method']}{', fresh' if row['new'] else ''}: {what}"
             for row in own for what in of_row(row, whole)]
    if own and whole:
        trials = sum(row["edge"]["trials"] for row in own if "edge" in row)
        fresh = sum(row["lanes"] for row in own if row['new'] and not row["hint"])
        found += [f"only {trials:,} trials in all"] if trials < TRIALS else []
        found += [f"only {fresh:,} fresh endpoints"] if fresh < FRESH_ENDPOINTS else []
    return found


def of_row(row, whole):
    for step in STEPS:
        counts = row.get(step)
        if not counts:
            continue
        failed, spared = failures(counts), step in AFTER_LEARNING or row["method"] == "GET" or row["hint"]
        if spared and failed:
            yield f"{step}: {failed} failed"
        if not spared and most(counts) > 1:
            yield f"{step}: {most(counts)} failed at one endpoint"
        if row["method"] == "POST" and counts["twice"]:
            yield f"{step}: {counts['twice']} acted on twice"
    # Of connections that carry only so many requests no share is promised.
    if "half" in row and row["reusable"] == 1 and reused(row["half"]) < HALF_REUSED:
        yield f"half: {reused(row['half']):.1%} reused"
    if "under" in row and reused(row["under"]) < UNDER_REUSED:
        yield f"under: {reused(row['under']):.1%} reused"
    if whole and "edge" in row and row["edge"]["trials"] < TRIALS_OF_A_ROW:
        yield f"edge: only {row['edge']['trials']:,} trials"
