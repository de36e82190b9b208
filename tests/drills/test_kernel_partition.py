"""Partitions made by the kernel, each run as a command of its own: it begins again in namespaces, which no test can."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.drills.one_way import STEPS

ROUNDS = int(os.environ.get("TRIMQ_DRILL_ROUNDS") or 2)
ROOT = Path(__file__).parents[2]
PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
_LINKS = b"link add br0 type bridge\nlink add v0 type veth peer name e0\n"


def run(*command: str, within_s: float = 30.0, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PATH": PATH}
    return subprocess.run(
        command, input=stdin, capture_output=True, check=False, cwd=ROOT, env=environment, timeout=within_s
    )


def namespaces_can_be_had() -> bool:
    try:
        return run("unshare", "-Urn", "ip", "-batch", "-", stdin=_LINKS).returncode == 0
    except FileNotFoundError:
        return False


def drill(directory: Path, rounds: int) -> list[str]:
    options = ["--fault", "kernel-partition", "--rounds", str(rounds), "--rate", "300", "--json"]
    return [sys.executable, "-m", "trimq.testing.run3", "drill", "--dir", str(directory), *options]


def left_behind(directory: Path) -> list[str]:
    """Command lines that still name the folder of a drill."""
    found: list[str] = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it ended meanwhile
        if str(directory) in text:
            found.append(text)
    return found


def assert_says_what_is_missing(done: subprocess.CompletedProcess[bytes]) -> None:
    assert done.returncode == 2
    lines = done.stderr.decode().strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("drill: no network namespaces: ")
    assert "--fault partition" in lines[0]
    assert not done.stdout


@pytest.mark.slow
@pytest.mark.timeout(ROUNDS * 30 + 120)
def test_partitions_by_the_kernel_lose_nothing_or_say_what_is_missing(tmp_path: Path) -> None:
    done = run(*drill(tmp_path, ROUNDS), within_s=ROUNDS * 30 + 90)
    if not namespaces_can_be_had():
        assert_says_what_is_missing(done)
        return
    assert done.returncode == 0, done.stderr.decode()
    verdict = json.loads(done.stdout)
    assert verdict["rounds_hit"] == ROUNDS
    assert verdict["acked"] > 300
    assert not any(verdict[name] for name in ("lost", "duplicates", "reordered", "phantom", "disagree", "two_leaders"))
    assert "kernel-partition (leader cut off)" in done.stderr.decode()
    assert verdict["failover_ms"]["max"] > 150, "nobody had to be elected: nothing was cut"
    assert left_behind(tmp_path) == []


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A shell's background jobs ignore Ctrl-C, and so do their children; those of this process do not, meanwhile."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_ctrl_c_in_the_middle_leaves_nothing_behind(tmp_path: Path, interruptible: None) -> None:
    if not namespaces_can_be_had():
        assert_says_what_is_missing(run(*drill(tmp_path, 1)))
        return
    with subprocess.Popen(
        drill(tmp_path, 6), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT, start_new_session=True
    ) as running:
        assert running.stderr is not None
        said = running.stderr.readline()
        before = left_behind(tmp_path)
        os.killpg(running.pid, signal.SIGINT)  # as a terminal does: to everything in the foreground
        said += running.stderr.read()
    assert b"round 1/6" in said
    assert b"Traceback" not in said
    assert len(before) == 5, "the drill, the name server, three nodes"
    assert running.returncode == 130
    assert left_behind(tmp_path) == []


@pytest.mark.slow
def test_a_kernel_that_allows_no_further_namespace_costs_one_sentence(tmp_path: Path) -> None:
    if not namespaces_can_be_had():
        assert_says_what_is_missing(run(*drill(tmp_path, 1)))
        return
    forbid = 'echo 0 >/proc/sys/user/max_net_namespaces && exec "$@"'
    assert_says_what_is_missing(run("unshare", "-Ur", "sh", "-c", forbid, "sh", *drill(tmp_path, 1)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_cut_direction_loses_everything_and_the_other_way_nothing() -> None:
    done = run(sys.executable, "-m", "tests.drills.one_way")
    if not namespaces_can_be_had():
        assert done.returncode == 2
        return
    assert done.returncode == 0, done.stderr.decode()
    found = json.loads(done.stdout)
    assert found["b"] == [name for name, cuts in STEPS if ("a", "b") not in cuts]
    assert found["a"] == [name for name, cuts in STEPS if ("b", "a") not in cuts]
    assert found["connecting"] == "TimeoutError", "a lost packet is not answered"
