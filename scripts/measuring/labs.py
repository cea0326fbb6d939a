"""Systems to measure: two ends, `a` and `b`, and what stands between them.

All of them give the ends the same addresses and MTU, so that the same programs
run in the same way inside them. Names have this process's id in them. Whatever
was begun is ended in reverse order by the `Room` that it was begun in, however
the script ends; programs are ended by their process id alone.
"""

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path

A = "10.77.0.10"
B = "10.77.0.11"
GATE = "10.77.0.1"
# What runs at `b`.
IPERF, COUNT, ECHO, HOLD, CONNS = 5201, 5202, 5203, 5204, 5210
# Ports of the connection server, from CONNS on: none is short of pairs of ports.
CONN_PORTS = 16
OPEN = (5200, 5299)
OFFLOADS = ["tso", "off", "gso", "off", "gro", "off"]
# A busy machine is no failure.
PATIENCE = 30
NETNS = Path("/run/netns")


class Failure(Exception):
    """Something could not be measured."""


class Program:
    """A program of ours, and the lines that it writes."""

    def __init__(self, command, log):
        self.command = [str(word) for word in command]
        self.log = open(log, "wb")
        self.process = subprocess.Popen(
            # Should the script be killed, nobody else would end its programs.
            ["setpriv", "--pdeathsig", "TERM", *self.command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self.log,
            # Ctrl-C is for the script: it ends its programs in its own order.
            start_new_session=True,
        )
        self.pid = self.process.pid
        self.lines = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.put(line.decode(errors="replace").rstrip("\n"))
        self.lines.put(None)

    def line(self, patience=PATIENCE):
        """The next line, or a Failure with what the program said instead."""
        try:
            line = self.lines.get(timeout=patience)
        except queue.Empty:
            line = None
        if line is None:
            said = Path(self.log.name).read_text(errors="replace").strip()
            raise Failure(f"no answer from `{' '.join(self.command)}`: {said or 'it says nothing'}")
        return line

    def await_line(self, text):
        while text not in (line := self.line()):
            pass
        return line

    def alive(self):
        return self.process.poll() is None

    def end(self):
        if self.alive():
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.log.close()


class Room(contextlib.ExitStack):
    """Where programs and namespaces begin and, on leaving, end."""

    def __init__(self):
        super().__init__()
        self.dir = Path(tempfile.mkdtemp(prefix="sgwall-measuring-"))
        self.callback(shutil.rmtree, self.dir, ignore_errors=True)
        self.count = 0

    def start(self, command):
        self.count += 1
        program = Program(command, self.dir / f"{self.count}.log")
        self.callback(program.end)
        return program


def run(*command, text=None):
    """Runs a program that must succeed; what it wrote."""
    command = [str(word) for word in command]
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=120, start_new_session=True
    )
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise Failure(f"`{' '.join(command)}` failed: {said}")
    return done.stdout


def rules(count):
    """So many rules: (protocol, peer, first port, last port). Every one is for
    another block of addresses; the last two let `a` in, TCP by the very last."""
    strangers = [
        ("tcp", f"10.{100 + i // 256}.{i % 256}.0/24", 5000, 5999) for i in range(count - 2)
    ]
    return strangers + [("udp", f"{A}/32", *OPEN), ("tcp", f"{A}/32", *OPEN)]


def lab_file(mtu, count):
    """`a` may send anything, as AWS's default is; what `b` takes, rules say."""
    lines = [
        "vpc: { cidr: [10.77.0.0/16] }",
        "subnets: { one: { cidr: [10.77.0.0/24] } }",
        "security_groups:",
        "  client: { ingress: [] }",
        "  server:",
        "    ingress:",
    ]
    lines += [
        f"      - {{ protocol: {protocol}, ports: {low}-{high}, from: {peer} }}"
        for protocol, peer, low, high in rules(count)
    ]
    lines += [
        "entities:",
        f"  a: {{ kind: ec2, subnet: one, addresses: [{A}], mtu: {mtu}, security_groups: [client] }}",
        f"  b: {{ kind: ec2, subnet: one, addresses: [{B}], mtu: {mtu}, security_groups: [server] }}",
    ]
    return "\n".join(lines) + "\n"


def ruleset(count, sets):
    """The same rules for nftables: one line each, or one look-up in a set for
    each protocol."""
    body, elements = [], {"tcp": [], "udp": []}
    for protocol, peer, low, high in rules(count):
        elements[protocol].append(f"{peer} . {low}-{high}")
        body.append(f"ip saddr {peer} {protocol} dport {low}-{high} accept")
    lines = ["table ip bench {"]
    if sets:
        for protocol, members in elements.items():
            lines.append(f"set allowed_{protocol} {{")
            lines.append("type ipv4_addr . inet_service; flags interval;")
            lines.append(f"elements = {{ {', '.join(members)} }}")
            lines.append("}")
        body = [f"ip saddr . {protocol} dport @allowed_{protocol} accept" for protocol in elements]
    lines.append("chain forward {")
    lines.append("type filter hook forward priority filter; policy drop;")
    lines.append("ct state established,related accept")
    # What `a` sends needs no rule of its own, as its group allows all egress.
    lines += body
    lines += ["}", "}"]
    return "\n".join(lines) + "\n"


class System:
    """Two ends that can be entered."""

    # The process that forwards; None where the kernel does.
    appliance = None

    def __init__(self, key, room):
        self.key = key
        self.room = room
        self.lab = f"bench-{os.getpid()}-{key}"
        self.servers = {}
        # Nothing is left to remove unless an appliance came to a bad end.
        room.callback(remove, f"sgwall-{self.lab}-*")

    def namespace(self, end):
        return NETNS / f"sgwall-{self.lab}-{end}"

    def inside(self, end, *command):
        return ["nsenter", f"--net={self.namespace(end)}", "--", *map(str, command)]

    def ready(self):
        """What both ends get in every system: all of the source ports."""
        for end in "ab":
            command = "echo 1024 65535 > /proc/sys/net/ipv4/ip_local_port_range"
            run(*self.inside(end, "sh", "-c", command))

    def must_drop(self):
        """A yardstick that lets everything through would be none."""
        code = f"import socket; socket.create_connection(('{B}', 6000), 0.2)"
        command = self.inside("a", "python3", "-c", code)
        done = subprocess.run(command, capture_output=True, text=True, start_new_session=True)
        # Nobody listens there: what comes through is refused, not ignored.
        if "timed out" not in done.stderr:
            raise Failure(f"{self.key} does not drop what no rule allows: {done.stderr[-200:]}")

    def room_left(self):
        """A Failure if there is none for more connections."""

    def serve(self, name, *command, says='"ready"'):
        """Starts a server at `b`, unless it runs already."""
        if name not in self.servers:
            server = self.room.start(self.inside("b", *command))
            server.await_line(says)
            self.servers[name] = server
        return self.servers[name]

    def ask(self, *command, patience=PATIENCE):
        """Runs a program of one JSON answer at `a`."""
        done = subprocess.run(
            self.inside("a", *command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=patience,
            start_new_session=True,
        )
        try:
            answer = json.loads(done.stdout)
        except ValueError:
            answer = {"error": done.stderr.strip() or done.stdout.strip()}
        if done.returncode != 0 or "error" in answer:
            raise Failure(f"{self.key}: `{' '.join(map(str, command))}` failed: {answer.get('error')}")
        return answer


class Sgwall(System):
    """`sgwall run`."""

    def __init__(self, key, room, binary, text, arguments=()):
        super().__init__(key, room)
        file = room.dir / f"{key}.yaml"
        file.write_text(text)
        self.file = file
        self.binary = binary
        command = [binary, "run", file, "--name", self.lab, "--format", "json", "--ignore-quotas"]
        self.appliance = room.start([*command, *arguments])
        self.appliance.await_line('"enforcing"')
        self.ready()
        self.must_drop()

    def status(self):
        return json.loads(run(self.binary, "status", "--lab", self.lab, "--format", "json"))


class Relay(System):
    """The bare relay between two TUN devices: sgwall's reads and writes without
    any policy."""

    def __init__(self, key, room, binary, text, arguments=()):
        super().__init__(key, room)
        file = room.dir / f"{key}.yaml"
        file.write_text(text)
        self.appliance = room.start([binary, file, "--name", self.lab, *arguments])
        self.appliance.await_line("relaying")
        self.ready()


class Kernel(System):
    """The kernel forwards: `a`, a router and `b` are namespaces, joined by two
    veth pairs; the router has a stateful nftables ruleset in its forward hook."""

    def __init__(self, key, room, mtu, text, offload=True):
        super().__init__(key, room)
        for end in "arb":
            name = self.namespace(end).name
            run("ip", "netns", "add", name)
        router = self.namespace("r").name
        for end, address in (("a", A), ("b", B)):
            name = self.namespace(end).name
            pair = ["link", "add", f"to-{end}", "mtu", mtu, "type", "veth"]
            run("ip", "-n", router, *pair, "peer", "name", "eth0", "mtu", mtu, "netns", name)
            for where, device, own in ((name, "eth0", address), (router, f"to-{end}", GATE)):
                run("ip", "-n", where, "address", "add", f"{own}/32", "dev", device)
                run("ip", "-n", where, "link", "set", device, "up")
                if not offload:
                    run("ip", "netns", "exec", where, "ethtool", "-K", device, *OFFLOADS)
            run("ip", "-n", router, "route", "add", address, "dev", f"to-{end}")
            run("ip", "-n", name, "route", "add", "default", "via", GATE, "dev", "eth0", "onlink")
        run(*self.inside("r", "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"))
        run(*self.inside("r", "nft", "-f", "-"), text=text)
        self.ready()
        self.must_drop()

    def room_left(self):
        """A full table drops new connections: then that is what was measured."""
        ask = "cat /proc/sys/net/netfilter/nf_conntrack_count /proc/sys/net/netfilter/nf_conntrack_max"
        count, most = map(int, run(*self.inside("r", "sh", "-c", ask)).split())
        if count > 0.95 * most:
            raise Failure(f"{self.key}: the kernel's table of connections is full: {count} of {most}")


def remove(names):
    for path in NETNS.glob(names):
        with contextlib.suppress(Failure):
            run("ip", "netns", "delete", path.name)


def sweep():
    """Removes namespaces of a run of these scripts that was killed."""
    for path in NETNS.glob("sgwall-bench-*"):
        pid = path.name.split("-")[2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            remove(path.name)


def busy_seconds():
    """CPU time that the whole machine has spent, on anything."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, softirq = map(int, fields[:7])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def own_seconds(pid):
    """CPU time that one process's threads have spent."""
    spent = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        spent += int((task / "schedstat").read_text().split()[0])
    return spent / 1e9


def memory(pid):
    """What a process has in memory, and the most it had, in MB (10⁶ bytes)."""
    found = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("VmRSS", "VmHWM"):
            found[name] = int(value.split()[0]) * 1024 / 1e6
    if len(found) != 2:
        raise Failure(f"process {pid} has ended")
    return found["VmRSS"], found["VmHWM"]


def hold_signals():
    """Turns the signals that ask a script to end into an orderly end."""

    def leave(number, _frame):
        # A second one must not interrupt the cleaning up.
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, leave)


def wait(seconds):
    time.sleep(seconds)
