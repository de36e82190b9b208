"""mqadmin of RocketMQ 4.9 and 5.x, unchanged: every command, one after the other, at a cluster in which a leader dies.

Writes the table of `docs/mqadmin.md` between its markers: what is in it is what this test saw.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

import trimq
from tests.interop import java_home
from tests.interop.bench import Killer, cluster_for_clients, create_topic
from tests.interop.java_home import STAMP, Driver, NotToBeHad, Program
from tests.interop.mqadmin import COMMANDS, REFUSED, TOOL_ONLY, Command
from tests.interop.table import FAILED, NOT_TO_BE_HAD, PASSED, Row, record
from trimq.testing.local_cluster import LocalCluster
from trimq.testing.status import query
from trimq.wire.codes import RequestCode
from trimq.wire.command import Command as TrimqCommand

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "mqadmin.md"
BEGIN, END = "<!-- the table of {} begins -->", "<!-- the table of {} ends -->"
ENDLESS_MS = 6_000
COUNT = 40
pytestmark = [pytest.mark.interop, pytest.mark.timeout(460)]


@pytest.mark.parametrize("module", ["client4", "client5"])
def test_every_command_gives_a_right_or_a_clear_answer(module: str, tmp_path: Path) -> None:
    version = java_home.VERSIONS[module]
    try:
        java_home.built()
    except NotToBeHad as reason:
        record(_row(version, NOT_TO_BE_HAD, note=str(reason)))
        pytest.skip(str(reason))
    with (
        cluster_for_clients(tmp_path / "cluster", traceTopicEnable="true") as cluster,
        java_home.driver(module, cluster.namesrv_address, tmp_path) as java,
    ):
        killer = Killer(cluster)
        seen = list(_run_all(java, cluster, killer, tmp_path))
    wrong = [(command.line, output) for command, output, right in seen if not right]
    record(
        _row(
            version,
            FAILED if wrong else PASSED,
            kills=killer.kills,
            errors=len(wrong),
            note=f"{len({c.name for c, _, _ in seen})} commands; not as promised: "
            + (", ".join(line.split()[0] for line, _ in wrong) or "none"),
        )
    )
    _write(version, [(command, right) for command, _, right in seen])
    said = "".join(f"=== {'' if right else 'WRONG '}{command.line}\n{output}\n" for command, output, right in seen)
    (STAMP.parent / f"mqadmin-{version}.txt").write_text(said)
    for line, output in wrong:
        print(f"--- {line}\n{output[:1500]}")
    assert not wrong, [line for line, _ in wrong]


def _row(version: str, result: str, *, kills: int | None = None, errors: int | None = None, note: str = "") -> Row:
    return Row(
        client="mqadmin (rocketmq-tools)",
        version=version,
        feature="every command",
        result=result,
        kills=kills,
        errors=errors,
        note=note,
    )


def _run_all(java: Driver, cluster: LocalCluster, killer: Killer, home: Path) -> Iterator[tuple[Command, str, bool]]:
    words = _prepare(java, cluster, home)
    tool = java.admin()
    tool.until("ready", 30)
    listed = set(re.findall(r"(?m)^\s{3}(\w+)", _ask(tool, [])))
    commands = [each for each in COMMANDS if each.only in ("", java.module)]
    assert {each.name for each in commands} >= listed, f"no row for {listed - {each.name for each in commands}}"
    for number, command in enumerate(commands):
        if number == len(commands) // 2:
            killer.kill()
            killer.healed()
            _await_client(cluster, words["g"], words["client"])
        if command.again:
            tool.stop()
            tool = java.admin()
            tool.until("ready", 30)
        # The leader may have moved.
        words["b"] = _leader(cluster, "broker-a")
        line = [word.format(**words) for word in command.line.split()]
        if command.name not in ("exportMetadataInRocksDB", "dumpCompactionLog"):
            line += ["-n", cluster.namesrv_address]
        output = _ask(tool, line, endless=command.endless)
        pattern = re.sub(r"\{(\w+)\}", lambda found: re.escape(words.get(found[1], found[0])), command.says)
        right = re.search(pattern, output, re.MULTILINE | re.IGNORECASE) is not None
        if command.verdict not in (REFUSED, TOOL_ONLY) and not command.endless:
            right = right and re.search(r"Exception: |command failed", output) is None
        yield command, output, right


def _ask(tool: Program, line: list[str], *, endless: bool = False) -> str:
    asked = len(tool.of("ran"))
    tool.tell("\t".join([f"limit_ms={ENDLESS_MS}", *line] if endless else line))
    tool.until("ran", 60, lambda _: len([e for e in tool.events if e["event"] == "ran"]) > asked)
    return str(tool.of("ran")[-1]["output"])


def _prepare(java: Driver, cluster: LocalCluster, home: Path) -> dict[str, str]:
    """A topic with messages in every queue, a consumer that has read them and stays, a producer that stays."""
    topic, group = "orders", "billing"
    create_topic(cluster.namesrv_address, topic)
    consumer = java.start("push", topic=topic, group=group, count=10_000, seconds=400)
    consumer.until("started", 30)
    sent = java.start("send", topic=topic, count=COUNT, ids=1, trace=1, group="PRODUCERS")
    ids = {each["number"]: each for each in _done(sent).of("id")}
    java.start("stay", topic=topic, group="PRODUCERS", seconds=400).until("started", 30)
    consumer.until("got", 30, lambda each: each["body"] == f"body-{COUNT - 1}")
    (home / "topics.json").write_text(json.dumps([{"topicName": "listed", "readQueueNums": 2, "writeQueueNums": 2}]))
    (home / "groups.json").write_text(json.dumps([{"groupName": "listed", "retryMaxTimes": 3}]))
    connected = consumer.until("started", 1)
    return {
        "c": "DefaultCluster",
        "t": topic,
        "g": group,
        "client": connected["client"],
        "b2": cluster.client_address("n1", "broker-b"),
        "id": ids[7]["offset_id"],
        "uniq": ids[7]["id"],
        "dir": str(home),
        "nsport": cluster.namesrv_address.rpartition(":")[2],
    }


def _done(program: Program) -> Program:
    program.done(60)
    return program


def _await_client(cluster: LocalCluster, group: str, client_id: str) -> None:
    """A broker that was started anew knows a consumer with its next heartbeat: within 30 s."""

    async def main() -> None:
        with trio.fail_after(45):
            async with trimq.connect(cluster.namesrv_address) as client:
                ask = TrimqCommand(code=RequestCode.GET_CONSUMER_CONNECTION_LIST, ext={"consumerGroup": group})
                for found in (await client.admin.cluster()).groups:
                    assert found.leader is not None
                    while client_id.encode() not in (await client.admin.invoke(found.leader, ask)).body:  # noqa: ASYNC110
                        await trio.sleep(0.5)

    trio.run(main)


def _leader(cluster: LocalCluster, group: str) -> str:
    for _ in range(100):
        leader = query(cluster)[group].leader
        if leader is not None:
            return cluster.client_address(leader, group)
    raise AssertionError(f"{group} has no leader")


def _write(version: str, seen: list[tuple[Command, bool]]) -> None:
    """Put what was seen between the markers of the document."""
    rows: dict[str, tuple[list[str], bool, list[str]]] = {}
    for command, right in seen:
        verdicts, all_right, whys = rows.get(command.name, ([], True, []))
        rows[command.name] = (
            list(dict.fromkeys([*verdicts, command.verdict])),
            all_right and right,
            list(dict.fromkeys([*whys, *([command.why] if command.why else [])])),
        )
    lines = ["| command | answer | |", "|---|---|---|"]
    for name, (verdicts, right, whys) in rows.items():
        answer = ", ".join(verdicts) if right else "**wrong**"
        lines.append(f"| `{name}` | {answer} | {'; '.join(whys)} |")
    begin, end = BEGIN.format(version), END.format(version)
    text: Any = DOCUMENT.read_text(encoding="utf-8")
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    assert tail, f"{DOCUMENT} has no markers for {version}"
    DOCUMENT.write_text(head + begin + "\n\n" + "\n".join(lines) + "\n\n" + end + tail, encoding="utf-8")
