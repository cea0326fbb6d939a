"""A chart of ratios on a logarithmic axis, as SVG for light and dark pages."""

import math
from xml.sax.saxutils import escape

# The chart's own width, and pixels for each character of a label: DejaVu Sans, the
# widest of the fonts below, takes some 0.6 of the font size.
SPAN, CHARACTER = 460, 8.1
TOP, ROW, FOOT = 92, 30, 66
# What the axis shows at least, and at most.
NARROW, WIDE = 2, 16

STYLE = """
    text { font-family: ui-sans-serif, system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; font-size: 13.5px; fill: #1f2937 }
    .title { font-size: 18px; font-weight: 600 }
    .faint { fill: #5b6472; font-size: 12.5px }
    .end { text-anchor: end }
    .mid { text-anchor: middle }
    .page { fill: #ffffff; stroke: #d5dae1 }
    .grid { stroke: #dfe4ea }
    .level { stroke: #334155; stroke-width: 2 }
    .better { fill: #2f9e5b }
    .worse { fill: #d0743c }
    .range { stroke: #1f2937; stroke-width: 1.5 }
    .relay { fill: #ffffff; stroke: #3b76c4; stroke-width: 2 }
    .target { stroke: #7c3aed; stroke-width: 3 }
    @media (prefers-color-scheme: dark) {
      text { fill: #e5e9f0 }
      .faint { fill: #a3adba }
      .page { fill: #0f141a; stroke: #2c3540 }
      .grid { stroke: #27313d }
      .level { stroke: #cbd5e1 }
      .better { fill: #37a566 }
      .worse { fill: #c8773f }
      .range { stroke: #e5e9f0 }
      .relay { fill: #0f141a; stroke: #6ea8ec }
      .target { stroke: #b794f6 }
    }
"""


def draw(rows, caption):
    """One bar for each row, from 1 (level with the kernel) to its value."""
    values = [row[name] for row in rows for name in ("value", "low", "high", "relay") if row.get(name)]
    widest = max([NARROW, *(max(value, 1 / value) for value in values)])
    reach = math.log2(min(WIDE, widest)) * 1.05
    height = TOP + ROW * len(rows) + FOOT
    left = 32 + math.ceil(CHARACTER * max(len(row["label"]) for row in rows))
    right = left + SPAN
    width = right + 70 + math.ceil(CHARACTER * max(len(row["absolute"]) for row in rows))

    def x(value):
        place = max(-1.0, min(1.0, math.log2(value) / reach))
        return left + SPAN * (1 + place) / 2

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-labelledby="title desc">',
        '  <title id="title">sgwall beside nftables in the kernel</title>',
        f'  <desc id="desc">{escape("; ".join(describe(row) for row in rows))}</desc>',
        f"  <style>{STYLE}  </style>",
        f'  <rect class="page" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="10"/>',
        '  <text class="title" x="20" y="32">sgwall beside nftables in the kernel</text>',
        '  <text class="faint" x="20" y="52">times as good as the kernel: right of 1 is better, for times and CPU too</text>',
    ]
    bottom = TOP + ROW * len(rows)
    for power in range(-6, 7):
        tick = 2.0 ** (power / 2)
        if abs(power / 2) > reach or (power % 2 and reach > 2):
            continue
        css = "level" if power == 0 else "grid"
        name = "kernel = 1" if power == 0 else f"{tick:g}" if power % 2 == 0 else f"{tick:.2g}"
        out.append(f'  <line class="{css}" x1="{x(tick):.1f}" y1="{TOP - 8}" x2="{x(tick):.1f}" y2="{bottom}"/>')
        out.append(f'  <text class="faint mid" x="{x(tick):.1f}" y="{TOP - 14}">{name}</text>')
    for at, row in enumerate(rows):
        middle = TOP + ROW * at + ROW / 2
        value = row["value"]
        ends = sorted((x(1), x(value)))
        css = "better" if value >= 1 else "worse"
        out.append(f'  <text class="end" x="{left - 12}" y="{middle + 4.5}">{escape(row["label"])}</text>')
        out.append(
            f'  <rect class="{css}" x="{ends[0]:.1f}" y="{middle - 8}" width="{ends[1] - ends[0]:.1f}" height="16"/>'
        )
        if row["target"]:
            mark = x(row["target"])
            out.append(f'  <line class="target" x1="{mark:.1f}" y1="{middle - 12}" x2="{mark:.1f}" y2="{middle + 12}"/>')
        out.append(
            f'  <line class="range" x1="{x(row["low"]):.1f}" y1="{middle}" x2="{x(row["high"]):.1f}" y2="{middle}"/>'
        )
        if row["relay"]:
            out.append(f'  <circle class="relay" cx="{x(row["relay"]):.1f}" cy="{middle}" r="4.5"/>')
        out.append(f'  <text x="{right + 14}" y="{middle + 4.5}">{value:.2f}</text>')
        out.append(f'  <text class="faint" x="{right + 58}" y="{middle + 4.5}">{escape(row["absolute"])}</text>')
    key = bottom + 26
    out += [
        f'  <rect class="better" x="20" y="{key - 11}" width="12" height="12"/><rect class="worse" x="36" y="{key - 11}" width="12" height="12"/>',
        f'  <text class="faint" x="56" y="{key}">sgwall, median of the rounds’ own ratios</text>',
        f'  <line class="range" x1="320" y1="{key - 5}" x2="346" y2="{key - 5}"/><text class="faint" x="354" y="{key}">least to most</text>',
        f'  <circle class="relay" cx="466" cy="{key - 5}" r="4.5"/><text class="faint" x="478" y="{key}">bare relay, no policy</text>',
        f'  <line class="target" x1="630" y1="{key - 14}" x2="630" y2="{key + 4}"/><text class="faint" x="640" y="{key}">target</text>',
        f'  <text class="faint" x="710" y="{key}">figures: sgwall : nftables</text>',
        f'  <text class="faint" x="20" y="{key + 24}">{escape(caption)}</text>',
        "</svg>",
    ]
    return "\n".join(out) + "\n"


def describe(row):
    return f"{row['label']}: {row['value']:.2f} times as good as the kernel ({row['absolute']})"
