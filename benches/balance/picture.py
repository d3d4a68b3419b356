"""A scenario as a picture: p99 against load, a line for each policy, a panel for each size; light and dark."""

import math
from rows import BOUND, OURS, POLICIES

SIZES = ("10x10", "100x10", "100x100", "1000x1000")
WIDTH, PANEL, TOP, HEIGHT, LEFT, RIGHT = 960, 240, 44, 190, 52, 18
LEGEND = 42
# Beyond so many times the oracle's, lines leave the picture: such a server is overwhelmed, and its queue
# only grows.
MOST = 40

NAMES = {"pannier": "Pannier", "random": "random", "round-robin": "round robin", "least-request": "least request of two",
         "least-connections": "leastconn", "peak-ewma": "peak EWMA", "prequal": "Prequal", "oracle": "oracle"}

# Of each policy: its colour on light, and on dark; what tells it apart without one.
COLOURS = {"pannier": ("#2f6f5e", "#6fbfa6", ""), "random": ("#a79a86", "#7d7365", "2 3"),
           "round-robin": ("#8a7d68", "#9c907f", "6 3"), "least-request": ("#b4552d", "#e58a5f", ""),
           "least-connections": ("#8c6bb1", "#b79bd9", ""), "peak-ewma": ("#2b6ca3", "#74aede", ""),
           "prequal": ("#b08900", "#d8b84a", ""), "oracle": ("#2b2722", "#efe9df", "1 4")}


def style():
    yield "    text { fill: #2b2722; } .small { font-size: 11px; fill: #5d554a; } .strong { font-size: 12px; font-weight: 600; }"
    yield "    .grid { stroke: #d9d0c0; } path { fill: none; stroke-width: 1.5; } .pannier { stroke-width: 3; }"
    yield from (f"    .{policy} {{ stroke: {light}; stroke-dasharray: {dashes or 'none'}; }}"
                for policy, (light, _, dashes) in COLOURS.items())
    yield "    @media (prefers-color-scheme: dark) {"
    yield "      text { fill: #efe9df; } .small { fill: #b9afa1; } .grid { stroke: #4a443b; }"
    yield from (f"      .{policy} {{ stroke: {dark}; }}" for policy, (_, dark, _) in COLOURS.items())
    yield "    }"


def draw(title, rows):
    """The picture of a scenario's rows; none where no size of it has several loads."""
    panels = [(size, [row for row in rows if row.size == size and BOUND in row.runs]) for size in SIZES]
    panels = [(size, own) for size, own in panels if len(own) > 1]
    if not panels:
        return None
    known = [policy for policy in POLICIES if any(policy in row.runs for row in rows)]
    values = [row.mean(policy, "p99_us") for _, own in panels for row in own for policy in row.policies()]
    bounds = [row.mean(BOUND, "p99_us") for _, own in panels for row in own]
    scale = Scale(min(values) / 1000 * 0.9, min(max(values), MOST * max(bounds)) / 1000 * 1.1)
    height = TOP + HEIGHT + LEGEND + 26
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="title"'
             ' font-family="system-ui, sans-serif" font-size="13">',
             f'  <title id="title">{title}: the 99th percentile of latency against load, for each policy</title>',
             "  <style>", *style(), "  </style>"]
    for number, (size, own) in enumerate(panels):
        parts += panel(number * PANEL, number, size, own, scale)
    parts += legend(known, TOP + HEIGHT + 44)
    return "\n".join([*parts, "</svg>", ""])


class Scale:
    """Milliseconds to heights, each factor as high as any other."""

    def __init__(self, low, high):
        self.low, self.high = low, high

    def y(self, value):
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return round(TOP + HEIGHT * (1 - share), 1)

    def lines(self):
        decades = [digit * 10 ** power for power in range(6) for digit in (1, 2, 5)]
        return [value for value in decades if self.low <= value <= self.high]


def panel(x, number, size, rows, scale):
    loads = [row.load for row in rows]
    left, right = x + LEFT, x + PANEL - RIGHT
    clip = f"panel{number}"

    def across(load):
        return round(left + (load - loads[0]) / (loads[-1] - loads[0]) * (right - left), 1)
    clients, servers = size.split("x")
    yield f'  <text class="strong" x="{left}" y="22">{int(clients)} clients, {int(servers)} servers</text>'
    yield f'  <clipPath id="{clip}"><rect x="{left}" y="{TOP}" width="{right - left}" height="{HEIGHT}"/></clipPath>'
    for value in scale.lines():
        y = scale.y(value)
        word = f"{value} ms" if value < 1000 else f"{value // 1000} s"
        yield f'  <line class="grid" x1="{left}" y1="{y}" x2="{right}" y2="{y}"/>'
        yield f'  <text class="small" text-anchor="end" x="{left - 4}" y="{y + 4}">{word}</text>'
    for load in loads:
        # 90 would touch 95.
        if load in (loads[0], 70, loads[-1]):
            yield f'  <text class="small" text-anchor="middle" x="{across(load)}" y="{TOP + HEIGHT + 16}">{load} %</text>'
    # Ours is drawn last, so that nothing lies on it.
    for policy in sorted(POLICIES, key=lambda policy: policy == OURS):
        points = [(across(row.load), scale.y(row.mean(policy, "p99_us") / 1000)) for row in rows if policy in row.runs]
        if points:
            path = " L".join(f"{a} {b}" for a, b in points)
            yield f'  <path class="{policy}" clip-path="url(#{clip})" d="M{path}"/>'


def legend(policies, y):
    x = LEFT
    for policy in policies:
        yield f'  <path class="{policy}" d="M{x} {y - 4} h22"/>'
        yield f'  <text class="small" x="{x + 27}" y="{y}">{NAMES[policy]}</text>'
        x += 46 + 6.4 * len(NAMES[policy])
    yield f'  <text class="small" x="{LEFT}" y="{y + 18}">p99 of latency against load; lower is better. Work takes 20 ms on average.</text>'
