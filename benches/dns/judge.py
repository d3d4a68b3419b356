"""What Pannier is held to, and which of it the rows miss."""

# What a change may take beyond its TTL.
GRACE = 1.0


def missed(result):
    """The promises that are missed, in words."""
    return [f"{row['title']}: {what}" for row in result["rows"] if row["system"] == "pannier" for what in of_row(row)]


def of_row(row):
    if row["failed"]:
        kinds = ", ".join(f"{count} {kind}" for kind, count in row["failures"].items())
        yield f"{row['failed']} of {row['requests']:,} requests failed ({kinds})"
    if not row["requests"]:
        yield "no request was sent"
    if "seconds" in row and not row["seconds"]:
        yield "no change was seen"
    worst = max(row.get("seconds") or [0])
    if worst > row["ttl"] + GRACE:
        yield f"the old address was used for {worst:.2f} s"
    if row.get("cold") and row["first_success"] is None:
        yield f"no success in {row['for']} s"
