"""Start, signal and find the processes of a local cluster, and only those.

A pid from a state file may be somebody else's by now. So each process is started with a token in its
environment, and a signal goes out only to a process that still carries it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

_TOKEN = "TRIMQ_CLUSTER_TOKEN"  # noqa: S105 - the name of a variable, not a secret


def start(command: Sequence[str], *, token: str, log: Path, cwd: Path) -> int:
    """Start a process that outlives us, its output appended to `log`. Returns its pid."""
    with log.open("ab") as output:
        child = subprocess.Popen(  # noqa: S603 - our own command line, built from our own state
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env={**os.environ, _TOKEN: token, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
    # Whoever called us may outlive the child: without this the dead child would stay a zombie and look alive.
    _children[child.pid] = child, token
    return child.pid


_children: dict[int, tuple[subprocess.Popen[bytes], str]] = {}
"""Our own, by pid, each with its token."""


def alive(pid: int, token: str) -> bool:
    """Whether `pid` runs and is the process that was started with `token`."""
    if (own := _children.get(pid)) is not None and own[1] == token:
        # Nobody else's pid before it is polled. Its environment is not looked at: in the middle of exec, which a busy
        # machine can stretch, a process has none yet.
        return own[0].poll() is None
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state != b"Z" and f"{_TOKEN}={token}".encode() in environment.split(b"\0")


def send_signal(pid: int, token: str, number: signal.Signals) -> bool:
    """Signal the process if it is still ours. False when it is gone."""
    if not alive(pid, token):
        return False
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def wait_gone(pids: Sequence[tuple[int, str]], *, timeout_s: float) -> list[int]:
    """Wait until none of (pid, token) is alive. Returns those that still are at the end."""
    deadline = time.monotonic() + timeout_s  # noqa: TID251 - a process outside any loop: real time is what counts
    while True:
        left = [pid for pid, token in pids if alive(pid, token)]
        if not left or time.monotonic() >= deadline:  # noqa: TID251
            return left
        time.sleep(0.02)  # noqa: TID251
