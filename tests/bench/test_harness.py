"""The measuring itself: requests that brokers understand, counts and ratios that are right, pages that do not lie."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from statistics import median

import pytest

from bench.goals import GOALS, rows
from bench.peers.nats import _Publishes as NatsPublishes
from bench.peers.rabbitmq import _Publishes as RabbitPublishes
from bench.peers.trimq import opener
from bench.plan import SCENARIOS, STEPS
from bench.report import goals_table, page, publish
from bench.results import Sample, Samples
from bench.rocketmq_dialect import Pulls, Sends
from bench.take import take
from bench.thin import Refused, drive
from trimq.message.batch import iter_batch
from trimq.wire.command import decode, response_to


def frames(data: bytes) -> list[bytes]:
    found = []
    while data:
        size = int.from_bytes(data[:4], "big")
        found.append(data[4 : 4 + size])
        data = data[4 + size :]
    return found


@pytest.mark.parametrize("unique", [False, True])
def test_sends_are_requests_that_a_broker_reads(unique: bool) -> None:
    sends = Sends([("t", 0), ("t", 1)], 7, unique=unique)
    read = [decode(frame) for frame in frames(sends.requests(3))]
    assert [each.ext["e"] for each in read] == ["0", "1", "0"]
    assert len({each.opaque for each in read}) == 3
    assert all(each.code == 310 and each.body == bytes(7) for each in read)
    assert ("UNIQ_KEY" in read[0].ext["i"]) is unique
    if unique:
        assert len({each.ext["i"] for each in read}) == 3


def test_a_batch_counts_its_messages() -> None:
    sends = Sends([("t", 0)], 10, batch=4)
    (frame,) = frames(sends.requests(1))
    request = decode(frame)
    assert len(iter_batch(request.body)) == 4
    assert sends.settled(response_to(request, 0)) == (1, 4)


def test_an_error_is_no_acknowledgement() -> None:
    sends = Sends([("t", 0)], 10)
    (frame,) = frames(sends.requests(1))
    with pytest.raises(Refused, match="too busy"):
        sends.settled(response_to(decode(frame), 2, remark="too busy"))


def test_pulls_walk_through_the_queue_and_begin_again() -> None:
    pulls = Pulls("t", 3, batch=32, messages=70)
    read = [decode(frame) for frame in frames(pulls.requests(3))]
    assert [each.ext["queueOffset"] for each in read] == ["0", "32", "0"]
    record = (10).to_bytes(4, "big") + bytes(6)
    answer = response_to(read[0], 0, body=record * 5)
    assert pulls.settled(answer[:30]) == (0, 0)
    assert pulls.settled(answer[30:]) == (1, 5)


def test_nats_replies_are_counted_across_reads() -> None:
    publishes = NatsPublishes("s", 5)
    reply = b'MSG _INBOX.bench.r 1 26\r\n{"stream":"s", "seq":1}\r\n'
    counted = 0
    stream = reply * 5
    for at in range(0, len(stream), 17):
        counted += publishes.settled(stream[at : at + 17])[1]
    assert counted == 5
    with pytest.raises(Refused):
        publishes.settled(b'MSG _INBOX.bench.r 1 9\r\n{"error":{}}\r\n')


def test_rabbitmq_confirmations_are_counted_once() -> None:
    publishes = RabbitPublishes(5)

    def ack(tag: int, multiple: bool) -> bytes:
        payload = b"\x00\x3c\x00\x50" + tag.to_bytes(8, "big") + bytes([multiple])
        return b"\x01\x00\x01" + len(payload).to_bytes(4, "big") + payload + b"\xce"

    assert publishes.settled(ack(2, False)) == (1, 1)
    assert publishes.settled(ack(4, True)) == (3, 3)
    assert publishes.settled(ack(5, False) + ack(7, False) + ack(8, True)) == (4, 4)


class Echo:
    """Answers every request of one connection."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        link, _ = self._listener.accept()
        with link:
            rest = b""
            while data := link.recv(1 << 16):
                rest += data
                answers = []
                while len(rest) >= 4 and len(rest) >= 4 + (size := int.from_bytes(rest[:4], "big")):
                    answers.append(response_to(decode(rest[4 : 4 + size]), 0))
                    rest = rest[4 + size :]
                link.sendall(b"".join(answers))

    def close(self) -> None:
        self._thread.join()
        self._listener.close()


@pytest.mark.parametrize("window", [1, 16])
def test_the_thin_client_counts_what_was_answered(window: int) -> None:
    server = Echo()
    run = drive(server.address, Sends([("t", 0)], 10), window=window, seconds=0.2)
    server.close()
    assert 0 < run.messages <= run.all_messages
    assert 0 < run.p50_ms <= run.p99_ms < 200
    assert run.per_second == pytest.approx(run.messages / run.seconds)


def test_a_server_that_hangs_up_is_no_figure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            link, _ = listener.accept()
            link.recv(4)
            link.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises((Refused, OSError)):
            drive(listener.getsockname(), Sends([("t", 0)], 10), window=1, seconds=5)
        thread.join()


def sample(subject: str, value: float, round_: int, scenario: str = "1 KiB, 256 in flight") -> Sample:
    return Sample(
        step="nats-always", scenario=scenario, subject=subject, round=round_, value=value, unit="msg/s",
        facts={"p99_ms": 1000 / value},
    )  # fmt: skip


def test_ratios_are_taken_round_by_round(tmp_path: Path) -> None:
    samples = Samples(tmp_path / "s.jsonl", resume=False)
    ours, theirs = [100.0, 10.0, 50.0], [50.0, 10.0, 10.0]
    for at, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        samples.add(sample("trimq", a, at))
        samples.add(sample("NATS always", b, at))
    pair = ("1 KiB, 256 in flight", "trimq"), ("1 KiB, 256 in flight", "NATS always")
    ratio = samples.ratio(*pair)
    assert ratio is not None
    assert (ratio.low, ratio.median, ratio.high) == (1.0, 2.0, 5.0)
    assert ratio.median != median(ours) / median(theirs)
    first = rows(samples)[0]
    assert first.verdict == "met"
    assert not first.stretched
    assert rows(samples)[1].verdict == "not measured"
    again = Samples(tmp_path / "s.jsonl", resume=True)
    assert again.all == samples.all
    assert again.has("nats-always", "1 KiB, 256 in flight", "trimq", 2)


def test_a_poor_figure_stands_in_the_page(tmp_path: Path) -> None:
    samples = Samples(tmp_path / "s.jsonl", resume=False)
    samples.add(sample("trimq", 50, 0))
    samples.add(sample("NATS always", 100, 0))
    samples.note("RabbitMQ", "not on this machine")
    path = tmp_path / "performance.md"
    path.write_text("# P\n<!-- figures begin -->\nold\n<!-- figures end -->\ntail\n")
    publish(path, page(samples, {"commit": "abc"}, ["goals"]))
    text = path.read_text()
    assert "NOT met" in text
    assert "not on this machine" in text
    assert "commit: abc" in text
    assert "old" not in text
    assert text.endswith("tail\n")
    assert goals_table(samples).count("\n") == len(GOALS) + 1


def test_every_goal_is_measured_by_some_step() -> None:
    planned = {(take.name, subject) for step in STEPS for take, who in step.takes for subject in who}
    alone = {step.name for step in STEPS if step.alone is not None}
    grown = {"standalone", "queues", "recovery", "backlog", "connections"}
    assert alone == grown | {"consume", "tail", "mixed", "groups", "processes"}
    for goal in GOALS:
        if goal.peer and not goal.peer.startswith("ours"):
            peer = goal.peer.split(",")[0].split(" (")[0]
            assert any(subject == peer for _, subject in planned), goal
    assert sum(step.needs_s(5, 1.5) for step in STEPS) < 45 * 60


@pytest.mark.slow
def test_a_cluster_is_measured(tmp_path: Path) -> None:
    with opener("trimq", "")(tmp_path / "cluster") as peer:
        rate, unit, facts = take(peer, SCENARIOS["100 B, 64 in flight"], 0.5)
        assert rate > 10
        assert unit == "msg/s"
        assert {"cpu_us:leader", "cpu_us:follower 1", "cpu_us:client", "p99_ms"} <= set(facts)
        rate, _, facts = take(peer, SCENARIOS["library, 1 KiB, 256 in flight"], 0.5)
        assert rate > 10
        assert facts["p50_ms"] > 0
        address, dialect = peer.pulls(100, batch=32, messages=3200)
        assert drive(address, dialect, window=2, messages=3200).messages >= 3200
