"""`python -m tests.drills.one_way`: two nodes in namespaces send each other datagrams while directions are cut.

Prints one JSON object: what arrived at each node, and how a new connection through a cut direction ended. Exit status 2
where namespaces cannot be had.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack

import trio

from trimq.testing.namespaces import NamespaceError, Namespaces, enter, open_namespaces

STEPS: tuple[tuple[str, frozenset[tuple[str, str]]], ...] = (
    ("whole", frozenset()),
    ("a to b", frozenset({("a", "b")})),
    ("still a to b", frozenset({("a", "b")})),
    ("b to a", frozenset({("b", "a")})),
    ("both", frozenset({("a", "b"), ("b", "a")})),
    ("mended", frozenset()),
)

_PEER = """
import select, socket, sys
inbox = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
inbox.bind(("0.0.0.0", 4000))
print("ready", flush=True)
while True:
    for source in select.select([inbox, sys.stdin], [], [])[0]:
        if source is inbox:
            print("got", inbox.recv(99).decode(), flush=True)
            continue
        line = sys.stdin.readline()
        if not line:
            sys.exit()
        host, text = line.strip().split(" ", 1)
        inbox.sendto(text.encode(), (host, 4000))
        print("sent", flush=True)
"""

_CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], 4001), timeout=0.3)
except OSError as error:
    print(type(error).__name__)
"""


class Peer:
    """A process in one node's namespace that sends what it is told and tells what it gets."""

    def __init__(self, stack: ExitStack, prefix: list[str]) -> None:
        command = [*prefix, sys.executable, "-c", _PEER]
        self._process = stack.enter_context(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        self.got: list[str] = []
        self.until("ready")

    def send(self, host: str, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{host} {text}\n")
        self._process.stdin.flush()
        self.until("sent")

    def until(self, wanted: str) -> None:
        """Read on until a line comes. What is lost never comes, so the caller waits only for what must."""
        assert self._process.stdout is not None
        while (line := self._process.stdout.readline().strip()) != wanted:
            assert line.startswith("got "), line or "the peer ended"
            self.got.append(line.removeprefix("got "))


def run(namespaces: Namespaces) -> dict[str, object]:
    with ExitStack() as stack:
        peers = {node: Peer(stack, namespaces.prefix(node)) for node in ("a", "b")}
        connecting = ""
        for name, cuts in STEPS:
            trio.run(namespaces.cut, cuts)
            peers["a"].send(namespaces.hosts["b"], name)
            peers["b"].send(namespaces.hosts["a"], name)
            if name == "both":
                command = [*namespaces.prefix("a"), sys.executable, "-c", _CONNECT, namespaces.hosts["b"]]
                connecting = subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()
        last = STEPS[-1][0]
        for peer in peers.values():
            if last not in peer.got:
                peer.until(f"got {last}")
                peer.got.append(last)
        return {"a": peers["a"].got, "b": peers["b"].got, "connecting": connecting}


def main() -> None:
    try:
        enter()
        with open_namespaces(("a", "b")) as namespaces:
            print(json.dumps(run(namespaces)))
    except NamespaceError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
