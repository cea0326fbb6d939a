"""What was measured, as a Markdown table, JSON, a chart, and the README's section."""

import json
import re
import statistics

from . import chart, micro

NAMES = {
    "sgwall": "sgwall",
    "baseline": "baseline",
    "relay": "bare relay",
    "nft": "nftables",
    "nft-sets": "nftables, sets",
}
SECTIONS = {
    "tcp": "TCP throughput",
    "udp": "UDP packets of 64 bytes",
    "rtt": "Round trip",
    "conns": "New connections",
    "cpu": "CPU time for a gigabyte of TCP",
    "start": "Starting, and memory",
}
# What the README shows of it.
SHOWN = [
    "tcp-9001-1-on-cubic", "tcp-9001-8-on-cubic", "tcp-1500-1-on-cubic", "tcp-1500-8-on-cubic",
    "tcp-9001-1-on-bbr", "tcp-9001-8-on-bbr", "tcp-1500-1-on-bbr", "tcp-1500-8-on-bbr",
    "udp-flood", "udp-lossfree", "rtt-p50", "rtt-p99", "conns-10", "conns-1000", "conns-10000",
    "cpu-9001-1-on-cubic", "cpu-1500-1-on-cubic",
]
BEGIN, END = "<!-- scripts/bench writes from here -->", "<!-- to here -->"


def targets(key):
    """What is aimed at: (a system to compare with, or None, and the bound)."""
    if key.startswith("tcp-"):
        return [("relay", 0.97)] + ([("nft", 0.9)] if "-on-" in key else [])
    return {
        "udp-flood": [("nft", 1.0)],
        "rtt-p50": [("nft", 1.1)],
        "rtt-p99": [("nft", 1.1)],
        "conns-10": [("nft", 0.9)],
        "conns-1000": [("nft", 1.0)],
        "start-binary": [(None, 10)],
        "start-memory": [(None, 24)],
        "start-time": [(None, 1)],
    }.get(key, [])


def figure(value):
    """Three digits that count."""
    if value is None:
        return "–"
    for bound, form in ((1000, ",.0f"), (100, ".0f"), (10, ".1f"), (0.1, ".2f")):
        if abs(value) >= bound:
            return format(value, form)
    return f"{value:.3f}"


def spread(values):
    """Median, least and most of what was measured; None of nothing."""
    values = [value for value in values or [] if value is not None]
    return (statistics.median(values), min(values), max(values)) if values else None


def ratios(measure, over, of="sgwall"):
    """The rounds' own ratios of sgwall, or another system, to a further one."""
    ours, theirs = measure["values"].get(of), measure["values"].get(over)
    pairs = zip(ours or [], theirs or [])
    return spread([one / other for one, other in pairs if one is not None and other])


def verdicts(measure):
    """Each target with what came of it: (over, bound, value, met)."""
    for over, bound in targets(measure["key"]):
        found = ratios(measure, over) if over else spread(measure["values"].get("sgwall"))
        value = found and found[0]
        met = value is not None and (value <= bound if measure["less"] else value >= bound)
        yield over, bound, value, met


def told(measure):
    """The targets in a cell of a table."""
    cells = []
    for over, bound, value, met in verdicts(measure):
        sign = "≤" if measure["less"] else "≥"
        what = f"÷ {NAMES[over]} " if over else ""
        state = "not measured" if value is None else "met" if met else "**missed**"
        cells.append(f"{what}{sign} {bound:g}: {state}")
    return "; ".join(cells)


def cell(found):
    if not found:
        return "–"
    median, least, most = found
    if least == most:
        return figure(median)
    return f"{figure(median)} ({figure(least)}–{figure(most)})"


def table(measures):
    present = {system for measure in measures for system in measure["values"]}
    systems = [system for system in NAMES if system in present]
    others = [system for system in systems if system != "sgwall"]
    header = ["measured", "unit", *(NAMES[s] for s in systems)]
    header += [f"÷ {NAMES[s]}" for s in others] + ["target"]
    lines = [f"| {' | '.join(header)} |"]
    lines.append("|---|---|" + "---:|" * (len(systems) + len(others)) + "---|")
    for measure in measures:
        cells = [measure["label"], measure["unit"]]
        cells += [cell(spread(measure["values"].get(system))) for system in systems]
        cells += [cell(ratios(measure, system)) for system in others]
        lines.append(f"| {' | '.join([*cells, told(measure)])} |")
    return "\n".join(lines)


def machine(about):
    return (
        f"{about['machine']}, {about['cores']} cores, Linux {about['kernel']}; {about['date']}, "
        f"commit {about['commit']}"
    )


def rounds(about):
    return f"{about['rounds']} round{'s' * (about['rounds'] > 1)}"


def markdown(data):
    about = data["about"]
    lines = [
        "# What sgwall costs",
        "",
        "Written by `scripts/bench`. sgwall beside its yardsticks, by turns in one run: medians, and in",
        "brackets the least and the most of the rounds. A ratio is sgwall ÷ the other, the median of the",
        "rounds' own. Of Gbit/s and of anything a second more is better, of everything else less.",
        "",
        f"{machine(about)}. {rounds(about)} of {about['seconds']} s, {about['tcp_seconds']} s for TCP; sgwall with "
        f"{about.get('workers', '?')} workers; {about['iperf3']}, {about['nft']}; {about['took']} s in all.",
        "",
        "![sgwall beside nftables in the kernel](bench.svg)",
        "",
    ]
    for section, title in SECTIONS.items():
        measures = [measure for measure in data["measures"] if measure["section"] == section]
        if measures:
            lines += [f"## {title}", "", table(measures), ""]
    if data["micro"]:
        lines += ["## A packet's road, by `cargo bench`", ""]
        lines += ["| aimed at | measured | at most | |", "|---|---:|---:|---|"]
        lines += [micro_row(row) for row in micro.judged(data["micro"])]
        lines += ["", "| bench | median | 95 % confidence |", "|---|---:|---|"]
        for each in data["micro"]:
            unit = each["unit"]
            interval = f"{amount(each['low'], unit)} – {amount(each['high'], unit)}"
            lines.append(f"| {each['name']} | {amount(each['value'], unit)} | {interval} |")
        lines.append("")
    if data["notes"] or data["missing"]:
        lines += ["## To be known of this run", ""]
        lines += [f"- {note}." for note in data["notes"]]
        lines += [f"- **Not measured:** {what}" for what in data["missing"]] + [""]
    lines += ["## What is compared", "", METHOD]
    return "\n".join(lines).rstrip() + "\n"


def micro_row(row):
    what, value, unit, most, met = row
    state = "not measured" if met is None else "met" if met else "**missed**"
    return f"| {what} | {amount(value, unit)} | {amount(most, unit)} | {state} |"


def amount(value, unit):
    """A time, a size or a ratio as people write it."""
    if value is None:
        return "–"
    if unit == "×":
        return f"{value:.2f}"
    for bound, larger in ((1e9, "s"), (1e6, "ms"), (1e3, "µs")) if unit == "ns" else ((1e6, "MB"),):
        if value >= bound:
            return f"{figure(value / bound)} {larger}"
    return f"{figure(value)} {unit}"


METHOD = """\
Two namespaces, `a` and `b`, with the same addresses and MTU in every system; `a` sends, `b` answers.

- **sgwall**: `sgwall run` with its default of workers; a TUN device at each end, the appliance between them.
- **bare relay**: `examples/bare_relay`, the same devices, reads and writes, and no policy at all.
- **nftables**: a third namespace between the two, joined to each by a veth pair, which routes; in its forward
  hook `ct state established,related accept`, then a line for each rule, and a policy of drop. With **sets**,
  one look-up for each protocol in a set of address blocks and port ranges.
- The same rules everywhere, each for another block of addresses and a range of ports; the one that lets `a`
  in is the last. The systems are up together; every round measures each of them once, every
  second round in the reverse order.
- *No offload*: `--no-offload` for sgwall and the relay, `ethtool -K … tso off gso off gro off` on all four
  ends of the veth pairs. At most three rounds, as they differ less.
- TCP: iperf3, with each congestion control named, whatever the machine's default is. CUBIC, Linux's own default,
  keeps the road full: what counts is CPU time per byte. BBR sets out from the shortest round trip that it has seen
  and keeps some three super-packets under way at a time, so what counts is how soon each is handed on.
- UDP: IPv4 packets of 64 bytes (36 of payload) of one flow, sent one by one; flooded for the delivered
  rate, paced for the loss-free one, which is searched for: at most 0.1 % lost, to within 4 %.
- Round trip: one datagram of that size at a time, there and back, between two processes.
- Connections: TCP, one byte there and one back, closed by the side that opened it with FIN; 16 threads, each
  with a port of the server, and all source ports from 1024 on.
- CPU: all but idle time of the whole machine during the TCP runs, iperf3's own included; *own threads* are
  the appliance's.
- Flows, by `cargo bench`: one for each end of a connection that an interface tracks, so two for a connection
  within the VPC.

What is unfair. To sgwall: a packet passes two copies between kernel and userspace that veth spares; it is
tracked at both ends and its source checked, as on AWS, where the kernel tracks it once; the programs that
make load want the same cores as the appliance. To nftables: its packets pass three namespaces and two veth
pairs, each with its own routing and queueing, and no flowtable is used; the work of forwarding is done
on whatever core the sender is on, so that one flow hardly uses a second one."""


def readme(data):
    """The section of the README: what a reader wants to know first."""
    by_key = {measure["key"]: measure for measure in data["measures"]}
    shown = [by_key[key] for key in SHOWN if key in by_key]
    lines = [
        "![sgwall beside nftables in the kernel, by measure](docs/bench/bench.svg)",
        "",
        f"{machine(data['about'])}. Medians of {rounds(data['about'])}, by turns in one run;",
        "all of it, with spread and method: [docs/bench/bench.md](docs/bench/bench.md).",
        "",
        "| measured | sgwall | bare relay | nftables | ÷ relay | ÷ nftables | target |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for measure in shown:
        medians = [first(spread(measure["values"].get(s))) for s in ("sgwall", "relay", "nft")]
        compared = [first(ratios(measure, s)) for s in ("relay", "nft")]
        cells = [figure(value) for value in medians + compared]
        lines.append(f"| {measure['label']}, {measure['unit']} | {' | '.join(cells)} | {told(measure)} |")
    for measure in [by_key.get("start-time"), by_key.get("start-memory"), by_key.get("start-binary")]:
        if measure:
            value = figure(first(spread(measure["values"].get("sgwall"))))
            lines.append(f"| {measure['label']}, {measure['unit']} | {value} | – | – | – | – | {told(measure)} |")
    if data["micro"]:
        lines += ["", "| a packet's road, by `cargo bench` | measured | at most | |", "|---|---:|---:|---|"]
        lines += [micro_row(row) for row in micro.judged(data["micro"])]
    loses = [line for section in SECTIONS if (line := lost(section, data["measures"]))]
    if loses:
        lines += ["", "Where sgwall loses to the kernel, by more than a twentieth:", "", *loses]
    else:
        lines += ["", "Nowhere does sgwall lose to the kernel by more than a twentieth."]
    return "\n".join(lines)


def lost(section, measures):
    """What of a section is worse than the kernel, as an item of a list."""
    items = []
    for measure in measures:
        for over in ("nft", "nft-sets"):
            ratio = first(ratios(measure, over))
            if measure["section"] != section or ratio is None:
                continue
            if ratio <= 1.05 if measure["less"] else ratio >= 0.95:
                continue
            ours, theirs = (figure(first(spread(measure["values"][s]))) for s in ("sgwall", over))
            # The section says it already.
            what = re.sub(r"^(TCP|UDP 64 B|round trip|TCP connections|CPU), ", "", measure["label"])
            beside = " beside sets" if over == "nft-sets" else ""
            items.append(f"  - {what}{beside}: {figure(ratio)} ({ours} against {theirs} {measure['unit']})")
    if not items:
        return None
    less = section in ("rtt", "cpu")
    return "\n".join([f"- {SECTIONS[section]}, times the kernel's ({'less' if less else 'more'} is better):", *items])


def first(found):
    return found[0] if found else None


def write(data, out, tree, with_readme):
    """Writes everything; the Markdown of it."""
    out.mkdir(parents=True, exist_ok=True)
    for measure in data["measures"]:
        measure["median"] = {s: first(spread(v)) for s, v in measure["values"].items()}
        others = [system for system in measure["values"] if system != "sgwall"]
        named = ("median", "least", "most")
        measure["ratio"] = {s: dict(zip(named, ratios(measure, s) or [None] * 3)) for s in others}
        keys = ("over", "bound", "value", "met")
        measure["targets"] = [dict(zip(keys, verdict)) for verdict in verdicts(measure)]
    text = markdown(data)
    (out / "bench.json").write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")
    (out / "bench.md").write_text(text)
    (out / "bench.svg").write_text(chart.draw(chart_rows(data), machine(data["about"])))
    if with_readme:
        file = tree / "README.md"
        before, begin, rest = file.read_text().partition(BEGIN)
        _, end, after = rest.partition(END)
        if begin and end:
            file.write_text(f"{before}{BEGIN}\n{readme(data)}\n{END}{after}")
        else:
            print(f"README.md has no place for the figures ({BEGIN} … {END})")
    return text


def chart_rows(data):
    """What the chart shows: how many times as good as the kernel sgwall is, and
    the relay; more is better for all of them."""
    by_key = {measure["key"]: measure for measure in data["measures"]}
    off = [f"tcp-{mtu}-{streams}-off-cubic" for mtu in (9001, 1500) for streams in (1, 8)]
    tcp = [key for key in SHOWN if key.startswith("tcp-")]
    keys = [*tcp, *off, *(key for key in SHOWN if key not in tcp)]
    rows = []
    for key in keys:
        measure = by_key.get(key)
        if not measure or not ratios(measure, "nft"):
            continue
        turn = (lambda value: value and 1 / value) if measure["less"] else (lambda value: value)
        median, least, most = map(turn, ratios(measure, "nft"))
        relay = first(ratios(measure, "nft", of="relay"))
        kernel = first(spread(measure["values"].get("nft")))
        aims = [turn(bound) for over, bound in targets(key) if over == "nft"]
        rows.append(
            {
                "label": measure["label"],
                "value": median,
                "low": min(least, most),
                "high": max(least, most),
                "relay": turn(relay),
                "target": aims[0] if aims else None,
                "absolute": f"{figure(first(spread(measure['values']['sgwall'])))} : {figure(kernel)} {measure['unit']}",
            }
        )
    return rows
