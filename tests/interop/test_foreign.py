"""Clients in other languages, unchanged, against three Raft groups whose leaders are killed: Go, Node.js, native C++.

Each sends 10,000 messages and another one of its kind pushes them, with three `kill -9` of leaders meanwhile. Lost is
what the client was told is stored and no queue holds; twice, what stands in the queues more than once. The errors that
reached the application are counted: with a failover shorter than a client's patience there should be none.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.interop.bench import Killer, cluster_for_clients, create_topic, stored
from tests.interop.chromium import NotToBeHad
from tests.interop.foreign import CLIENTS, Foreign, Program
from tests.interop.table import FAILED, NOT_TO_BE_HAD, PASSED, Row, record

MESSAGES = 10_000
KILLS = 3
pytestmark = [pytest.mark.interop, pytest.mark.timeout(460)]


@pytest.mark.parametrize("client", CLIENTS, ids=[f"{each.name.split()[0]}-{each.version}" for each in CLIENTS])
def test_ten_thousand_messages_and_three_leader_kills(client: Foreign, tmp_path: Path) -> None:
    try:
        command = client.command()
    except NotToBeHad as error:
        record(Row(client=client.name, version=client.version, feature="all", result=NOT_TO_BE_HAD, note=str(error)))
        pytest.skip(str(error))
    with cluster_for_clients(tmp_path / "cluster") as cluster:
        namesrv, topic = cluster.namesrv_address, "foreign"
        create_topic(namesrv, topic)
        killer = Killer(cluster)
        consumer = Program(command, tmp_path, "push", namesrv, topic, "readers", MESSAGES, 240)
        programs = [consumer]
        try:
            consumer.until("started", 60)
            producer = Program(command, tmp_path, "send", namesrv, topic, MESSAGES)
            programs.append(producer)
            for number in range(KILLS):
                producer.until("sent", 120, count=MESSAGES * (number + 1) // (KILLS + 1))
                killer.kill()
            failed = set(producer.until("done", 200)["failed"])
            killer.healed()
            there = stored(namesrv, topic)
            read = consumer.until("done", 260)
        finally:
            for program in programs:
                program.close()
            killer.returned()
    acked = {f"body-{n}" for n in range(MESSAGES)} - failed
    lost, inside, elsewhere = len(acked - there.bodies), there.twice_in_one_group, there.twice_elsewhere
    notes = [client.note, *(f"{count} x {text[:60]}" for text, count in Counter(producer.errors).most_common(2))]
    if elsewhere:
        notes.append(f"{elsewhere} sent again by the client to another broker")
    record(
        Row(
            client=client.name,
            version=client.version,
            feature="send, leader kills",
            result=FAILED if lost else PASSED,
            messages=len(acked),
            kills=killer.kills,
            lost=lost,
            twice=inside,
            errors=len(failed),
            note="; ".join(note for note in notes if note),
        )
    )
    unseen = len(there.bodies - set(read["bodies"]))
    record(
        Row(
            client=client.name,
            version=client.version,
            feature="push with tags, leader kills",
            result=FAILED if unseen else PASSED,
            messages=len(read["bodies"]),
            kills=killer.kills,
            lost=unseen,
            errors=0,
            note=f"{read['deliveries'] - len(read['bodies'])} delivered again",
        )
    )
    assert not lost
    assert not inside or client.note, "a message with a unique id is stored once in its group"
    assert not there.bodies - acked - failed, "nothing that was not sent"
    assert not unseen, f"{unseen} stored messages were never delivered"
