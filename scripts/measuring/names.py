"""A sidecar whose rules name their peers by a DNS name with rotating addresses.

    names.py serve BEGAN             DNS, and an echo service, at the peers' addresses
    names.py probe BEGAN SECONDS     asks all peers, and compares with what DNS said

Two of the four addresses are in each answer; every `TURN` seconds one leaves and the next
comes. `BEGAN` is the time, on the clock that both share, of the first answer.
"""

import json
import os
import socket
import struct
import sys
import threading
import time
from pathlib import Path

from . import labs

NAME = "rotating.test"
SERVER, WORKLOAD = "10.78.0.1", "10.78.0.2"
PEERS = [f"10.78.0.{10 + nth}" for nth in range(4)]
PORT = 5300
# Seconds: between two turns; for which an answer counts; in which it is looked at again;
# that a busy machine may add to that.
TURN, TTL, REFRESH, SLACK = 15, 10, 5, 3

RULES = f"""
security_groups:
  peers: {{ members: [{NAME}] }}
  workload:
    ingress: []
    egress: [ {{ protocol: udp, ports: {PORT}, to: sg/peers }} ]
"""


def answered(turn):
    """The addresses that DNS gives in a turn."""
    return {PEERS[turn % 4], PEERS[(turn + 1) % 4]}


def expected(address, now):
    """Whether `address` counts `now` seconds after the first answer; None where that
    depends on when the sidecar asked."""
    turn = int(now // TURN)
    if address in answered(turn):
        came = turn if turn == 0 or address not in answered(turn - 1) else turn - 1
        return True if now - came * TURN > REFRESH + SLACK else None
    left = turn if address in answered(turn - 1) else turn - 1
    return False if now - left * TURN > TTL + SLACK else None


class Rotation:
    """The namespaces, the server and the sidecar; they end with `room`."""

    def __init__(self, room, binary):
        self.room = room
        prefix = f"sgwall-bench-{os.getpid()}-names"
        self.workload, self.peer = f"{prefix}-w", f"{prefix}-p"
        room.callback(labs.remove, f"{prefix}-*")
        for name in (self.workload, self.peer):
            labs.run("ip", "netns", "add", name)
        pair = ["link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", self.peer]
        labs.run("ip", "-n", self.workload, *pair)
        for name, addresses in ((self.workload, [WORKLOAD]), (self.peer, [SERVER, *PEERS])):
            for address in addresses:
                labs.run("ip", "-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                labs.run("ip", "-n", name, "link", "set", device, "up")
        self.began = time.monotonic()
        self.script(self.peer, "serve", self.began).await_line("ready")
        folder = room.dir / "names"
        folder.mkdir()
        (folder / "rules.yaml").write_text(RULES)
        (folder / "resolv.conf").write_text(f"nameserver {SERVER}\n")
        command = [binary, "sidecar", "--rules", folder / "rules.yaml", "--group", "workload"]
        command += ["--refresh", REFRESH, "--name", f"names-{os.getpid()}", "--format", "json"]
        own = f"mount --bind {folder}/resolv.conf /etc/resolv.conf && exec \"$@\""
        within = ["ip", "netns", "exec", self.workload, "unshare", "-m", "sh", "-c", own, "sh"]
        self.sidecar = room.start([*within, *command])
        self.sidecar.await_line('"enforcing"')

    def script(self, namespace, *arguments):
        script = [sys.executable, "-m", "measuring.names", *arguments]
        folder = Path(__file__).resolve().parent.parent
        return self.room.start(["ip", "netns", "exec", namespace, "env", f"PYTHONPATH={folder}", *script])

    def probe(self, seconds):
        """Starts the probe, which says what it found each second."""
        return self.script(self.workload, "probe", self.began, seconds)

    def complaints(self):
        """What the sidecar complained of."""
        while not self.sidecar.lines.empty():
            event = json.loads(self.sidecar.lines.get() or "{}").get("event")
            if event in ("refused", "warning", "unproven", "gone"):
                yield f"sidecar: {event}"
        for line in Path(self.sidecar.log.name).read_text(errors="replace").splitlines():
            yield f"sidecar: {line}"


def serve(began):
    def echo(address):
        peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        peer.bind((address, PORT))
        while True:
            peer.sendto(*peer.recvfrom(512))

    for address in PEERS:
        threading.Thread(target=echo, args=[address], daemon=True).start()
    dns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    dns.bind((SERVER, 53))
    print('"ready"', flush=True)
    while True:
        question, asker = dns.recvfrom(512)
        end = question.index(0, 12) + 5
        of_ipv4 = question[end - 4 : end] == struct.pack("!HH", 1, 1)
        turn = int((time.monotonic() - began) // TURN)
        answers = sorted(answered(turn)) if of_ipv4 else []
        header = question[:2] + struct.pack("!HHHHH", 0x8180, 1, len(answers), 0, 0)
        records = [struct.pack("!HHHIH", 0xC00C, 1, 1, TTL, 4) + socket.inet_aton(one) for one in answers]
        dns.sendto(header + question[12:end] + b"".join(records), asker)


def probe(began, seconds):
    found = {"passed": 0, "kept": 0, "missed": 0, "leaked": 0}
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for address in PEERS:
            before = expected(address, time.monotonic() - began)
            # Another port each time: another flow.
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
                asker.settimeout(0.3)
                asker.connect((address, PORT))
                try:
                    asker.send(b"?")
                    passes = asker.recv(16) == b"?"
                except OSError:
                    passes = False
            # The turn may come while it waits.
            if before is not None and before == expected(address, time.monotonic() - began):
                name = {(True, True): "passed", (False, False): "kept", (True, False): "missed", (False, True): "leaked"}
                found[name[before, passes]] += 1
        print(json.dumps(found), flush=True)
        time.sleep(0.4)


if __name__ == "__main__":
    what, *numbers = sys.argv[1:]
    {"serve": serve, "probe": probe}[what](*map(float, numbers))
