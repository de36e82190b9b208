"""A network namespace for each node of a local cluster, without privileges: links that the kernel itself cuts.

The command that wants them begins again inside a user and a network namespace of its own (`enter`), where it may do
what only root may do outside. There a bridge joins the nodes; each node's namespace is held by a process that sleeps
until its stdin closes, so none outlives the command, however that ends. Name server and clients stay beside the bridge.

A direction A→B is cut where a switch would lose it: in A's neighbour table B's address points to a hardware address
that nobody has. The frames leave A and arrive nowhere; nothing is told to A, and B→A is untouched. A blackhole route
would not do: the kernel answers a local `connect` through it with EINVAL at once, which no lost packet ever does. All
neighbours are permanent entries from the start, so no question by ARP mends or delays anything.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress

import trio

__all__ = ["OUTER_HOST", "Cuts", "NamespaceError", "Namespaces", "changes", "check_tools", "enter", "open_namespaces"]

Cuts = frozenset[tuple[str, str]]
"""(from, to) of every direction that is cut, by the nodes' names."""

OUTER_HOST = "10.0.0.254"
"""Where name server and clients are. The network is ours alone, so its addresses cannot collide with anybody's."""

_INSIDE = "TRIMQ_INSIDE_NAMESPACES"
_TOOLS = {"unshare": "util-linux", "nsenter": "util-linux", "ip": "iproute2"}
_OUTSIDE = ["unshare", "--user", "--map-root-user", "--net", "--"]
_NOWHERE = "02:00:00:00:00:ff"
_NODES_MAX = 100


class NamespaceError(Exception):
    """What this machine does not have or does not allow, in one line."""


def enter() -> None:
    """Return inside namespaces of our own. Outside, the whole command begins again there, with the same pid.

    Raises NamespaceError when they cannot be had; nothing has happened then.
    """
    if os.environ.get(_INSIDE) == str(os.getpid()):  # not just set: a child of ours elsewhere inherits it
        return
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"  # where `ip` is, and not in every user's PATH
    check_tools(path)
    environment = {**os.environ, "PATH": path}
    _ip_batch(["link add br0 type bridge", "link add v0 type veth peer name e0"], within=_OUTSIDE, env=environment)
    sys.stdout.flush()
    sys.stderr.flush()
    environment[_INSIDE] = str(os.getpid())
    os.execvpe(_OUTSIDE[0], [*_OUTSIDE, sys.executable, *sys.orig_argv[1:]], environment)  # noqa: S606 - ourselves


def check_tools(path: str) -> None:
    """Raises NamespaceError, which names what is not there, unless all that is needed stands in the search path."""
    for tool, package in _TOOLS.items():
        if shutil.which(tool, path=path) is None:
            raise NamespaceError(f"no network namespaces: `{tool}` ({package}) is not installed")


class Namespaces:
    """The nodes' namespaces, and what is cut between them. Made by `open_namespaces`."""

    def __init__(self, holders: Mapping[str, int]) -> None:
        self._holders = holders
        self._cuts: Cuts = frozenset()
        self.hosts = {"namesrv": OUTER_HOST, **{node: _address(i) for i, node in enumerate(holders)}}
        """Process name to the address it listens on."""

    def prefix(self, process: str) -> list[str]:
        """What stands before the command line of a process; empty for the name server. It keeps the pid."""
        if process not in self._holders:
            return []
        return ["nsenter", f"--net=/proc/{self._holders[process]}/ns/net", "--"]

    async def cut(self, cuts: Iterable[tuple[str, str]]) -> None:
        """Cut exactly these directions and mend all others; a few milliseconds. Cancelled, it is done or not begun."""
        await trio.to_thread.run_sync(self._cut, frozenset(cuts))

    def _cut(self, wanted: Cuts) -> None:
        for node, lines in changes(self._cuts, wanted, list(self._holders)).items():
            _ip_batch(lines, within=self.prefix(node))
        self._cuts = wanted


def changes(before: Cuts, wanted: Cuts, nodes: Sequence[str]) -> dict[str, list[str]]:
    """The lines for `ip -batch` in each node's namespace that lead from some cuts to others; none where none change."""
    told: dict[str, list[str]] = {}
    for here, there in sorted(before ^ wanted):
        told.setdefault(here, []).append(_neighbour(nodes.index(there), reached=(here, there) not in wanted))
    return told


@contextmanager
def open_namespaces(nodes: Sequence[str]) -> Iterator[Namespaces]:
    """Namespaces for these nodes, joined by a bridge, for as long as the block runs. Call `enter` before.

    Raises NamespaceError when the kernel refuses.
    """
    assert os.environ.get(_INSIDE) == str(os.getpid()), "the bridge would be made in the machine's own network"
    assert len(nodes) <= _NODES_MAX
    with ExitStack() as stack:
        holders = {node: _hold(stack) for node in nodes}
        stack.callback(_remove_links, len(nodes))
        _ip_batch(_outer_links(list(holders.values())))
        namespaces = Namespaces(holders)
        for i, node in enumerate(nodes):
            _ip_batch(_inner_links(i, len(nodes)), within=namespaces.prefix(node))
        yield namespaces


def _hold(stack: ExitStack) -> int:
    """Start a process that holds a new network namespace until its stdin closes. Returns its pid."""
    holder = stack.enter_context(  # on the way out its pipes are closed, and it is waited for
        subprocess.Popen(
            ["unshare", "--net", "--", "cat"],  # noqa: S607 - found by `enter`
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # Ctrl-C is for the drill, which needs its nodes until they are stopped
        )
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    assert holder.stderr is not None
    with suppress(BrokenPipeError):
        holder.stdin.write(b"\n")
    if holder.stdout.read(1) != b"\n":  # the echo says that `cat` runs, so the namespace is the new one
        raise NamespaceError(f"no network namespace: {_first_line(holder.stderr.read())}")
    return holder.pid


def _outer_links(holders: Sequence[int]) -> list[str]:
    lines = ["link set lo up", "link add br0 type bridge", "link set br0 up", f"address add {OUTER_HOST}/24 dev br0"]
    for i, pid in enumerate(holders):
        lines.append(f"link add v{i} type veth peer name e0 address {_hardware(i)} netns {pid}")
        lines.append(f"link set v{i} master br0 up")
    return lines


def _inner_links(i: int, count: int) -> list[str]:
    own = ["link set lo up", "link set e0 up", f"address add {_address(i)}/24 dev e0"]
    return own + [_neighbour(other, reached=True) for other in range(count) if other != i]


def _remove_links(count: int) -> None:
    """The namespaces end with their holders, a little later; the names are free again at once."""
    lines = [*(f"link delete v{i}" for i in range(count)), "link delete br0"]
    for line in lines:
        with suppress(NamespaceError):  # it had not been made
            _ip_batch([line])


def _neighbour(i: int, *, reached: bool) -> str:
    hardware = _hardware(i) if reached else _NOWHERE
    return f"neighbour replace {_address(i)} lladdr {hardware} dev e0 nud permanent"


def _address(i: int) -> str:
    return f"10.0.0.{i + 1}"


def _hardware(i: int) -> str:
    return f"02:00:00:00:00:{i + 1:02x}"


def _ip_batch(lines: Sequence[str], *, within: Sequence[str] = (), env: Mapping[str, str] | None = None) -> None:
    """Do all lines in one call of `ip`. Raises NamespaceError with the first refusal."""
    done = subprocess.run(  # noqa: S603 - our own lines
        [*within, "ip", "-batch", "-"],
        input="".join(f"{line}\n" for line in lines).encode(),
        capture_output=True,
        check=False,
        env=env,
        start_new_session=True,  # Ctrl-C in the middle must not leave half of them
    )
    if done.returncode:
        raise NamespaceError(f"no network namespaces: {_first_line(done.stderr)}")


def _first_line(output: bytes) -> str:
    return (output.decode(errors="replace").strip().splitlines() or ["the kernel refuses them"])[0]
