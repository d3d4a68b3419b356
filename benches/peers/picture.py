"""The picture of what a request costs, as SVG: a bar for each system, light and dark."""

PANELS = (
    ("One plain hop", (("hop/64", ""),)),
    ("The mTLS pair", (("pair-h2/64", ""), ("pair-h1/64", ", HTTP/1.1"))),
    ("64 KiB through the pair", (("pair-h2/64KiB", ""), ("pair-h1/64KiB", ", HTTP/1.1"))),
)
NAMES = {"pannier": "Pannier", "nginx": "nginx", "haproxy": "HAProxy", "envoy": "Envoy", "floor": "copying bytes"}

WIDTH, PANEL, BAR, GAP, TOP, BOTTOM = 960, 320, 18, 8, 64, 28
NAME_WIDTH, VALUE_WIDTH, MARGIN = 138, 48, 16

STYLE = """
    text { fill: #2b2722; }
    .small { font-size: 12px; fill: #5d554a; }
    .strong { font-weight: 600; }
    .peer { fill: #c9bda8; }
    .own { fill: #2f6f5e; }
    @media (prefers-color-scheme: dark) {
      text { fill: #efe9df; }
      .small { fill: #b9afa1; }
      .peer { fill: #6d6353; }
      .own { fill: #6fbfa6; }
    }
"""


def draw(rows):
    """The picture; none where no case of it was measured."""
    panels = [(title, bars(rows, cases)) for title, cases in PANELS]
    panels = [(title, found) for title, found in panels if found]
    if not panels:
        return None
    height = TOP + max(len(found) for _, found in panels) * (BAR + GAP) + BOTTOM
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="title"'
             ' font-family="system-ui, sans-serif" font-size="14">',
             '  <title id="title">CPU per request, in microseconds: shorter is better</title>',
             f"  <style>{STYLE}  </style>"]
    for number, (title, found) in enumerate(panels):
        parts += panel(number * PANEL + MARGIN, title, found)
    parts.append(f'  <text class="small" x="{MARGIN}" y="{height - 10}">CPU µs per request, 64 connections; shorter is '
                 "better. A pair is both sidecars summed; one connection for all (HTTP/2, Pannier its own frames) unless said.</text>")
    return "\n".join([*parts, "</svg>", ""])


def bars(rows, cases):
    """(name, microseconds, whether ours), the cheapest first."""
    found = [(NAMES[row["system"]] + how, row["us_per_request"], row["system"] == "pannier")
             for case, how in cases for row in rows if row["case"] == case and row["us_per_request"]]
    return sorted(found, key=lambda bar: bar[1])


def panel(x, title, found):
    yield f'  <text class="strong" x="{x}" y="36">{title}</text>'
    room = PANEL - 2 * MARGIN - NAME_WIDTH - VALUE_WIDTH
    most = max(value for _, value, _ in found)
    for number, (name, value, ours) in enumerate(found):
        y, long = TOP + number * (BAR + GAP), max(2, round(value / most * room))
        weight = "strong" if ours else "small"
        yield f'  <text class="{weight}" x="{x}" y="{y + 14}">{name}</text>'
        yield f'  <rect class="{"own" if ours else "peer"}" x="{x + NAME_WIDTH}" y="{y}" width="{long}" height="{BAR}" rx="2"/>'
        yield f'  <text class="{weight}" x="{x + NAME_WIDTH + long + 6}" y="{y + 14}">{value:.1f}</text>'
