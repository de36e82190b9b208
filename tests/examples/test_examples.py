"""Every program in `examples/` runs, as a user would run it, against a three-node cluster of real processes.

New files are found by themselves. An example takes the name server's address as its only argument and ends by itself
within a minute with exit status 0, without a traceback (what the library logs is allowed). What its docstring shows
indented under a line `Prints:` has to come out in that order (other lines may stand between; `...` stands for
anything):

    \"\"\"Send one order and bill it.

    Prints:

        stored at orders@...
        billing order 42
    \"\"\"
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from trimq.testing.local_cluster import LocalCluster
from trimq.testing.status import query, wait_ready_blocking

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
WITHIN_S = 60


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Three nodes, three groups, every default as `deploy/run3.sh` has it."""
    found = LocalCluster.create(tmp_path_factory.mktemp("examples"), base_port=0)
    try:
        found.start()
        wait_ready_blocking(found)
        wait_settled(found)
        yield found
    finally:
        found.stop()


def wait_settled(cluster: LocalCluster) -> None:
    """Until every group is led by the node that it prefers: a new cluster hands leadership over in its first second."""
    deadline = time.monotonic() + 30  # noqa: TID251 - real processes
    while True:
        leaders = [group.leader for group in query(cluster).values()]
        if leaders == cluster.nodes[: len(leaders)]:
            return
        assert time.monotonic() < deadline, f"led by {leaders}"  # noqa: TID251
        time.sleep(0.1)  # noqa: TID251


def prints(program: str) -> list[str]:
    """The lines that a program's docstring promises."""
    text = ast.get_docstring(ast.parse(program)) or ""
    _, _, promised = text.partition("\nPrints:\n")
    lines: list[str] = []
    for line in promised.splitlines():
        if line.startswith("    "):
            lines.append(line.strip())
        elif line.strip():
            break
    return lines


def missing(promised: list[str], printed: str) -> str | None:
    """The first promised line that does not come in its turn; None when all do."""
    lines = iter(printed.splitlines())
    for wanted in promised:
        pattern = re.compile(".*".join(map(re.escape, wanted.split("..."))))
        if not any(pattern.search(line) for line in lines):
            return wanted
    return None


def test_promised_lines_come_in_order() -> None:
    program = '"""Does it.\n\nPrints:\n\n    one ... two\n    three\n\nNothing else.\n"""\n'
    assert prints(program) == ["one ... two", "three"]
    assert prints('"""No promise."""') == []
    assert missing(["one ... two", "three"], "zero\none and two\n\nthree 3\n") is None
    assert missing(["one", "two"], "two\none\n") == "two"


@pytest.mark.slow
@pytest.mark.timeout(WITHIN_S + 60)
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path: Path, cluster: LocalCluster) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path), cluster.namesrv_address],
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        cwd=cluster.directory,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NAMESRV_ADDR": ""},
        check=False,
    )
    said = f"{path.name} ended with {done.returncode}\n--- out\n{done.stdout}\n--- err\n{done.stderr}"
    assert done.returncode == 0, said
    assert "Traceback" not in done.stderr, said
    assert "Warning:" not in done.stderr, said
    assert done.stdout, said
    absent = missing(prints(path.read_text()), done.stdout)
    assert absent is None, f"never printed: {absent!r}\n{said}"
