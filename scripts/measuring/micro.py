"""`cargo bench`: what criterion wrote of it, and figures that it printed."""

import json
import re
import subprocess
import time

from .labs import Failure

# What figures are held to: the name of one (criterion's group/function/parameter,
# or what is printed before a colon), the most it may be, its unit, and what
# it is called. Of several figures that are meant, the greatest counts.
TARGETS = [
    (r"hit/local/10000 flows$", 60, "ns", "parse + tracked hit, 10,000 live flows"),
    (r"hit/local/1000000 flows$", 150, "ns", "parse + tracked hit, 1,000,000 live flows, one at a time"),
    (r"hit/local/1000000 flows, in batches", 150, "ns", "the same, as they come from a busy link: 32 at a time"),
    (r"^miss/1000$", 300, "ns", "miss (parse, rules, insert), 1,000 rules"),
    (r"memory per flow of 1,000,000", 128, "bytes", "memory for a tracked flow of 1,000,000"),
    (r"^compile fleet/", 50e6, "ns", "compile 1,000 interfaces × 5 groups × 60 rules"),
    (r"^enforce fleet/one rule/", 5e6, "ns", "one of its rules changed to enforced"),
    (r"^recompile fleet/one rule, all read anew/", 5e6, "ns", "compile a file saved with one of them changed"),
    (r"^enforce fleet/one rule, all read anew/", 5e6, "ns", "that file, once it is read, to enforced"),
    (r"worst delay by a (swap|sweep)", 1e6, "ns", "worst delay of a packet by a swap or sweep, 1,000,000 flows"),
]
# The first may be at most so many times the second.
RATIOS = [(r"^miss/100000$", r"^miss/10$", 1.5, "miss, 100,000 rules ÷ 10 rules")]
# A figure that a bench prints: `what it is: 12.3 bytes`.
PRINTED = re.compile(r"^(\S.*): ([\d.,]+) (bytes|KiB|MiB|ns|µs|ms|s)\b")
UNITS = {
    "bytes": (1, "bytes"), "KiB": (1024, "bytes"), "MiB": (1 << 20, "bytes"),
    "ns": (1, "ns"), "µs": (1e3, "ns"), "ms": (1e6, "ns"), "s": (1e9, "ns"),
}


def measure(tree, target):
    """Every figure of `cargo bench`: name, value, unit (ns or bytes), interval."""
    began = time.time()
    print("--- cargo bench", flush=True)
    command = ["cargo", "bench", "--locked", "--", "--noplot"]
    figures = []
    with subprocess.Popen(command, cwd=tree, stdout=subprocess.PIPE, text=True) as bench:
        for line in bench.stdout:
            print(line, end="", flush=True)
            if found := PRINTED.match(line):
                scale, unit = UNITS[found[3]]
                value = float(found[2].replace(",", "")) * scale
                figures.append(
                    {"name": found[1], "value": value, "unit": unit, "low": value, "high": value}
                )
    if bench.returncode != 0:
        raise Failure("`cargo bench` failed")
    for file in sorted((target / "criterion").rglob("new/estimates.json")):
        # What benches of other days left there is of other code.
        if file.stat().st_mtime < began:
            continue
        median = json.loads(file.read_text())["median"]
        interval = median["confidence_interval"]
        figures.append(
            {
                "name": json.loads((file.parent / "benchmark.json").read_text())["full_id"],
                "value": median["point_estimate"],
                "unit": "ns",
                "low": interval["lower_bound"],
                "high": interval["upper_bound"],
            }
        )
    if not figures:
        raise Failure("`cargo bench` left no figures")
    return sorted(figures, key=lambda figure: figure["name"])


def judged(figures):
    """The targets: (what, value, unit, bound, met); a value of None has no bench."""

    def found(pattern):
        meant = [figure for figure in figures if re.search(pattern, figure["name"])]
        worst = max(meant, key=lambda figure: figure["value"], default=None)
        return worst and worst["value"]

    rows = [(what, found(pattern), unit, most) for pattern, most, unit, what in TARGETS]
    for pattern, base, most, what in RATIOS:
        above, below = found(pattern), found(base)
        rows.append((what, above / below if above and below else None, "×", most))
    return [(*row, None if row[1] is None else row[1] <= row[3]) for row in rows]
