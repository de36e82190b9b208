"""Every program in `examples/` runs, as a user would run it, against a three-node cluster of real processes.

New files are found by themselves. An example takes the name server's address as its only argument and ends by itself
within a minute with exit status 0, without a traceback (what the library logs is allowed). What its docstring shows
indented under a line `Prints:` has to come out in that order (other lines may stand between; `...` stands for
anything), also when somebody runs it again on the same cluster:

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


NAMES_A_TOPIC = {"create_topic", "find", "iterate", "pop", "queues", "request", "send", "subscribe", "timers"}
"""Methods whose first argument is a topic."""


def topics(program: str) -> set[str]:
    """The topics that a program uses, as far as they are written down: in a call, or in a name for them."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(program)):
        match node:
            case ast.keyword(arg="topic", value=value):
                found |= strings(value)
            case ast.Call(func=ast.Attribute(attr=name), args=[first, *_]) if name in NAMES_A_TOPIC:
                found |= strings(first)
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if is_topic(name):
                found |= strings(value)
            case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=values)):
                for target, value in zip(names, values, strict=True):
                    if isinstance(target, ast.Name) and is_topic(target.id):
                        found |= strings(value)
            case ast.For(target=ast.Name(id=name), iter=value) if is_topic(name):
                found |= strings(value)
    return {topic for topic in found if not topic.startswith("%")}  # %DLQ%group: each group has its own


def is_topic(name: str) -> bool:
    return name.upper().endswith("TOPIC")


def strings(value: ast.expr) -> set[str]:
    """A literal's strings; of a dictionary its keys (`subscribe({topic: filter})`)."""
    match value:
        case ast.Constant(value=str(text)):
            return {text}
        case ast.Tuple(elts=each) | ast.List(elts=each) | ast.Dict(keys=each):
            return set().union(*(strings(one) for one in each if one is not None))
    return set()


def test_topics_are_found_wherever_they_are_written() -> None:
    program = """
A_TOPIC = "a"
TOPIC, GROUP = "b", "group"
for topic in ("c", "d"): make(topic)
Message(topic="e", body=b"")
mq.subscribe({"f": tag}, group="group")
reader.iterate("g")
reader.iterate("%DLQ%group")
mq.send(A_TOPIC, "body")
"""
    assert topics(program) == set("abcdefg")


def test_no_two_examples_use_the_same_topic() -> None:
    """They run one after another on one cluster: with a topic in common, one would read what another has sent."""
    users: dict[str, list[str]] = {}
    for path in EXAMPLES:
        found = topics(path.read_text())
        assert found, f"{path.name}: no topic was found; is there another way of naming one?"
        for topic in found:
            users.setdefault(topic, []).append(path.name)
    shared = {topic: names for topic, names in users.items() if len(names) > 1}
    assert not shared, f"used by more than one example: {shared}"


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
