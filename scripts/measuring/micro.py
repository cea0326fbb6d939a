"""`cargo bench`, and what criterion wrote of it."""

import json
import re
import subprocess
import time

from .labs import Failure

# What issue the figures are held to: a name of criterion's (group/function/
# parameter), the most it may be, its unit, and what it is called.
TARGETS = [
    (r"hit/local/10_?000 flows", 60, "ns", "parse + tracked hit, 10,000 live flows"),
    (r"hit/local/1_?000_?000 flows", 150, "ns", "parse + tracked hit, 1,000,000 live flows"),
    (r"^miss/1_?000$", 300, "ns", "miss with 1,000 rules"),
]
# The first may be at most so many times the second.
RATIOS = [(r"^miss/100_?000$", r"^miss/10$", 1.5, "miss with 100,000 rules ÷ with 10")]


def measure(tree, target):
    """Every figure of `cargo bench`: name, nanoseconds, and their interval."""
    began = time.time()
    print("--- cargo bench", flush=True)
    done = subprocess.run(["cargo", "bench", "--locked", "--", "--noplot"], cwd=tree)
    if done.returncode != 0:
        raise Failure("`cargo bench` failed")
    figures = []
    for file in sorted((target / "criterion").rglob("new/estimates.json")):
        # What benches of other days left there is of other code.
        if file.stat().st_mtime < began:
            continue
        median = json.loads(file.read_text())["median"]
        interval = median["confidence_interval"]
        figures.append(
            {
                "name": json.loads((file.parent / "benchmark.json").read_text())["full_id"],
                "ns": median["point_estimate"],
                "low": interval["lower_bound"],
                "high": interval["upper_bound"],
            }
        )
    if not figures:
        raise Failure("`cargo bench` left no figures")
    return figures


def judged(figures):
    """The targets: (what, figure, unit, bound, met); a figure of None has no
    bench."""
    found = lambda pattern: next((f["ns"] for f in figures if re.search(pattern, f["name"])), None)  # noqa: E731
    rows = [(what, found(pattern), unit, most) for pattern, most, unit, what in TARGETS]
    for pattern, base, most, what in RATIOS:
        above, below = found(pattern), found(base)
        rows.append((what, above / below if above and below else None, "×", most))
    return [(*row, None if row[1] is None else row[1] <= row[3]) for row in rows]
