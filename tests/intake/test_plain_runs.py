"""Runs of plain sends: the quick way stores, answers and remembers what the way of a single send does, byte for byte.

Two replicas are given the same frames: one serves each by itself, the other takes what it can by the run. Frames are
drawn so that most are plain and every reason for which one is not occurs.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING
from zlib import crc32

import pytest

from broker.metadata.id_window import PERIOD_MS
from broker.metadata.ops import TopicPut
from broker.metadata.topics import MULTI_TAG
from broker.metrics import Counters
from broker.processor.plain_sends import PlainSends
from broker.processor.request import Refused
from broker.processor.send_message import SendProcessor
from broker.replication import plain_runs
from broker.replication.base import Busy, Outcome, Shortfall, Verdict
from broker.replication.requests import Answer, PutMessage, RunAnswer
from broker.service.placing import Placing
from broker.service.wheel import Wheel
from tests.broker.support import local_config
from tests.support.intake_bench import LOST, OK, UNKNOWN, Client, Replica
from trimq.errors import ProtocolError
from trimq.message import properties
from trimq.message.batch import BatchElement, encode_batch
from trimq.message.record import unpack_record
from trimq.message.sysflag import MULTI_TAGS
from trimq.wire.command import Command
from trimq.wire.header_json import json_text
from trimq.wire.requests import decode_send

if TYPE_CHECKING:
    from broker.replication._plain_sends import Batch as SendBatch

pytest.importorskip("broker.replication._plain_sends", reason="no C compiler where trimq was installed")

SHORT = Outcome(Verdict.SHORT, shortfall=Shortfall.FLUSH_SLAVE_TIMEOUT)


class OneId:
    """Always the same: a send that is refused as busy uses up an id where it is judged by itself."""

    def new_id(self) -> str:
        return "0" * 32

    def new_ids(self, count: int) -> list[str]:
        return [self.new_id()] * count


class Server:
    """One replica with both ways of sending."""

    def __init__(self, *, runs: bool, segment_bytes: int = 16 << 20, window_ms: int | None = None) -> None:
        window = PERIOD_MS if window_ms is None else window_ms
        self.replica = Replica(segment_bytes=segment_bytes, window_ms=window)
        self.replica.lead()
        self.replica.intake._ids = OneId()
        self.client = Client()
        self.config = local_config(max_message_bytes=3_000)
        self.counters = Counters()
        self.said: list[str] = []
        """What was refused."""
        intake = self.replica.intake
        placing = Placing(self.config, intake, Wheel(3_600_000), self.replica.clock)
        self._single = SendProcessor(self.config, intake, placing, self.counters, lambda *_: None)
        self._take = PlainSends(self.config, intake, self.counters).take if runs else None
        self.batches = 0
        put_batch = intake.put_batch_run

        def put_batch_run(head: PutMessage, batch: SendBatch, answer: Answer) -> bool:
            taken = runs and put_batch(head, batch, answer)
            self.batches += taken
            return taken

        intake.put_batch_run = put_batch_run  # type: ignore[method-assign]
        self.taken = 0
        put_topics(self.replica)

    def serve(self, frames: Sequence[bytes]) -> None:
        """What the dispatcher does with one read."""
        at = 0
        while at < len(frames):
            taken = self._take(self.client, frames, at) if self._take is not None else 0
            if taken:
                self.taken += taken
                at += taken
                continue
            try:
                self._single.send(decode_send(frames[at]), self.client)
            except (Refused, ProtocolError, Busy) as error:
                self.said.append(str(error))
            at += 1

    def state(self) -> dict[str, object]:
        """Everything that decides what comes next."""
        replica = self.replica
        view, statistics = replica.intake.view, replica.intake.statistics
        return {
            "entries": [entry.data for entry in replica.log.entries],
            "answers": list(self.client.got),
            "said": self.said,
            "next": dict(view.next),
            "ids": dict(view._ids),
            "producers": dict(view.producers),
            "log time": view.log_time,
            "stored": (statistics.stored, statistics.duplicates, statistics.stale, statistics.out_of_sequence),
            "counted": (self.counters.put_messages, self.counters.put_bytes),
        }


def put_topics(replica: Replica) -> None:
    intake = replica.intake
    intake.put_ops([intake.topic_op("orders", read_queues=4, write_queues=4)])
    intake.put_ops([intake.topic_op("tags", read_queues=2, write_queues=2, filter_type=MULTI_TAG)])
    intake.put_ops([intake.topic_op("shrunk", read_queues=4, write_queues=1)])
    replica.flush()
    assert isinstance(intake.topic_op("orders", read_queues=4, write_queues=4), TopicPut)


# -- frames -----------------------------------------------------------------------------------------------------------


def frame(
    ext: dict[str, object] | None = None,
    *,
    body: bytes = b"body",
    top: dict[str, object] | None = None,
    **fields: object,
) -> bytes:
    """A send as Java writes it, with these ext fields and header fields instead; None leaves one out."""
    fill: dict[str, object] = {
        "a": "pg", "b": "orders", "c": "TBW102", "d": "4", "e": "1", "f": "0", "g": "1700000000123", "h": "0",
        "i": "WAIT\x01true\x02", "j": "0", "k": "false", "m": "false", **(ext or {}), **fields,
    }  # fmt: skip
    header: dict[str, object] = {
        "code": 310,
        "extFields": {key: value for key, value in fill.items() if value is not None},
        "flag": 0,
        "language": "JAVA",
        "opaque": 7,
        "serializeTypeCurrentRPC": "JSON",
        "version": 453,
        **(top or {}),
    }
    text = json.dumps({k: v for k, v in header.items() if v is not None}, separators=(",", ":")).encode()
    return len(text).to_bytes(4, "big") + text + body


ODD: tuple[Callable[[random.Random], dict[str, object]], ...] = (
    lambda rng: {"e": rng.choice(["-1", "4", "99", "", "x", "1.0", " 1", "01", "-0", 2, None])},
    lambda rng: {"b": rng.choice(["unknown", "shrunk", "SCHEDULE_TOPIC_XXXX", "%RETRY%g", "a" * 200, "é", "", None])},
    lambda rng: {"f": rng.choice(["1", "8", "16", "32", "48", str(2**31), "-5"])},
    lambda rng: {"g": rng.choice(["0", "-1", "9" * 18, "9" * 19, "x", None])},
    lambda rng: {"h": rng.choice(["-7", str(2**31 - 1), str(2**31), "true", None])},
    lambda rng: {"j": rng.choice(["3", "-2", None])},
    lambda rng: {"k": rng.choice(["true", "1", True, False, "x", None])},
    lambda rng: {"m": rng.choice(["true", "1", True, False, "TRUE", None])},
    lambda rng: {"l": rng.choice(["16", "x", 3])},
    lambda rng: {"n": rng.choice(["broker-a", ""]), "bname": "x"},
    lambda rng: {"i": rng.choice(["", "A\x01", "\x01\x02", "KEYS\x01a b\x02TAGS\x01t", "ä\x01ö\x02"])},
    lambda rng: {"i": "q\x01\"\\/\b\f\n\r\t\x02"},
    lambda rng: {"i": rng.choice(["DELAY\x013\x02", "TRAN_MSG\x01true\x02", "x\x01DELAYED\x02"])},
    lambda rng: {"i": "REPLY_TO_CLIENT\x01c\x02"},
    lambda rng: {"i": "UNIQ_KEY\x01A\x02UNIQ_KEY\x01B" + rng.choice(["", "\x02", "\x02UNIQ_KEY\x01\x02"])},
    lambda rng: {"i": "XUNIQ_KEY\x01A\x02UNIQ_KEYX\x01B\x02"},
    lambda rng: {"i": "p\x01" + "v" * rng.choice([31_000, 32_100, 32_760, 33_000]) + "\x02"},
    lambda rng: {"i": 5},
    lambda rng: {"again": rng.choice(["1", "true", "0", "false"])},
    lambda rng: {"fwd": "1", "fwdFrom": "n1"},
    lambda rng: {"extra": rng.choice(["x", 1, True, 1.5, [1], "q\"", "é"]), "oway": "false"},
    lambda rng: {"pid": rng.choice(["", "zz", "1" * 17, "00ff"]), "pe": "0", "ps": "0", "pf": "0"},
    lambda rng: {"pid": "abcd", "pe": rng.choice(["-1", "0", None]), "ps": "3", "pf": rng.choice(["4", "3", None])},
)  # fmt: skip

ODD_TOP: tuple[Callable[[random.Random], dict[str, object]], ...] = (
    lambda rng: {"flag": rng.choice([2, 0, 1, 3, "0", None])},
    lambda rng: {"opaque": rng.choice([-1, 2**31 - 1, 2**31, "5", None])},
    lambda rng: {"code": rng.choice([10, 320, 310.0, "310", None])},
    lambda rng: {"version": rng.choice([None, "x", 2**40])},
    lambda rng: {"language": rng.choice([None, 3, "PYTHON", "é", 'a"b'])},
    lambda rng: {"remark": rng.choice(["", "said", None])},
    lambda rng: {"extFields": rng.choice([{}, None, [], "x"])},
)


def batch(rng: random.Random, number: int, *, numbered: bool) -> bytes:
    """The body of a batch, mostly a plain one."""
    elements = []
    for each in range(rng.choice([1, 2, 5, 32])):
        kind = rng.random()
        if kind < 0.4 and not numbered:
            raw = b"UNIQ_KEY\x01B%d-%d\x02TAGS\x01a" % (rng.choice([number, number, 7]), each)
        elif kind < 0.99:
            raw = rng.choice([b"", b"WAIT\x01true\x02", b"KEYS\x01k"])
        else:
            raw = rng.choice([b"DELAY\x013\x02", b"TRAN_MSG\x01true\x02", b"x\x01" + bytes(32_600), b"\xff"])
        elements.append(BatchElement(rng.randbytes(rng.choice([0, 10, 50])), raw, rng.choice([0, 3, -1])))
    body = encode_batch(elements)
    return body if rng.random() > 0.05 else body[: rng.randrange(len(body))] + bytes(rng.randrange(3))


def frames(rng: random.Random, count: int) -> Iterator[bytes]:
    """Mostly plain sends: foreign ones with and without ids, some repeated, and those of two clients that number."""
    numbers = {"00000000000000a1": 0, "00000000000000B2": 0}
    made: list[bytes] = []
    kind = 0.0
    for number in range(count):
        if rng.random() < 0.1:
            kind = rng.random()
        body = rng.randbytes(rng.choice([0, 1, 30, 700, 3_000, 3_001]) if rng.random() < 0.2 else 20)
        ext: dict[str, object] = {"b": rng.choice(["orders", "orders", "tags"]), "e": str(rng.randrange(2))}
        top: dict[str, object] = {"opaque": 1_000 + number}
        if kind < 0.35:
            ext["i"] = properties.format({"UNIQ_KEY": f"ID{rng.randrange(10**9)}", "TAGS": rng.choice("ab")})
        elif kind < 0.6:
            pid = rng.choice(list(numbers))
            skip = rng.random()
            if skip < 0.01:
                numbers[pid] += 1
            at = max(0, numbers[pid] - (1 if skip > 0.95 else 0))
            numbers[pid] = at + 1
            ext |= {"pid": pid, "pe": "0", "ps": str(at), "pf": str(max(0, at - 5))}
            if rng.random() < 0.2:
                size = rng.choice([1, 2, 5, 32])
                body = encode_batch([BatchElement(b"x", b"WAIT\x01true\x02")] * size)
                ext["m"], numbers[pid] = "true", at + size
        elif kind < 0.75:
            body = batch(rng, number, numbered=False)
            ext["m"] = "true"
            if rng.random() < 0.5:
                top["code"] = 320
        if rng.random() < 0.1:
            top["flag"] = 2
        if rng.random() < 0.08:
            ext |= rng.choice(ODD)(rng)
        if rng.random() < 0.03:
            top |= rng.choice(ODD_TOP)(rng)
        if made and rng.random() < 0.03:
            yield rng.choice(made)
        made.append(frame(ext, body=body, top=top))
        yield made[-1]


def reads(rng: random.Random, given: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    at = 0
    while at < len(given):
        size = rng.choice([1, 2, 7, 40, 300])
        yield given[at : at + size]
        at += size


@pytest.mark.parametrize("seed", range(40))
def test_a_run_equals_its_sends_one_by_one(seed: int) -> None:
    rng = random.Random(f"plain/{seed}")
    segment = rng.choice([64 << 10, 16 << 20])
    window = rng.choice([None, None, 0])
    one = Server(runs=False, segment_bytes=segment, window_ms=window)
    many = Server(runs=True, segment_bytes=segment, window_ms=window)
    both = (one, many)
    for read in reads(rng, list(frames(rng, 400))):
        step, outcome = rng.random(), rng.choice([OK, OK, OK, SHORT])
        room = rng.random() > 0.05
        for server in both:
            server.replica.owner.has_room = room
            server.serve(read)
            if step < 0.5:
                server.replica.take()
            if step < 0.3:
                server.replica.settle(outcome)
                server.replica.apply()
            server.replica.clock.now_ms += 7
    for server in both:
        server.replica.owner.has_room = True
        server.replica.flush()
    assert one.state() == many.state()
    assert many.taken > 50, "else this proves nothing"
    assert many.batches > 5


@pytest.mark.parametrize("outcome", [LOST, UNKNOWN, SHORT])
def test_every_send_of_a_run_hears_what_became_of_it(outcome: Outcome) -> None:
    both = [Server(runs=False), Server(runs=True)]
    given = [
        frame({"e": str(number % 4)}, top={"opaque": number, "flag": 2 if number == 3 else 0}) for number in range(9)
    ]
    for server in both:
        server.serve(given)
        server.replica.take()
        server.replica.settle(outcome)
        assert [answer.opaque for answer in server.client.got] == [0, 1, 2, 4, 5, 6, 7, 8]
        assert {answer.code for answer in server.client.got} != {0}
    assert both[0].client.got == both[1].client.got
    assert both[1].taken == 9


def test_a_whole_read_is_one_answer() -> None:
    server = Server(runs=True)
    server.serve([frame(top={"opaque": number}) for number in range(100)])
    current = server.replica.intake._leading().batches.current
    assert current is not None
    ((answer, _),) = current.answers
    assert isinstance(answer, RunAnswer)
    server.replica.flush()
    assert server.client.sends == 1
    assert [answer.opaque for answer in server.client.got] == list(range(100))


def test_sends_that_are_not_plain_cost_no_look_at_all_that_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client sends a thousand messages again: each is found stored, and none makes the others be read once more."""
    server = Server(runs=True)
    given = [frame({"i": f"UNIQ_KEY\x01ID{number}\x02"}) for number in range(1_000)]
    server.serve(given)
    server.replica.flush()
    assert server.taken == 1_000
    looked: list[int] = []
    made = plain_runs.make_run
    assert made is not None

    def counted(frames: Sequence[bytes], first: int, most: int, body_max: int) -> object:
        looked.append(most)
        return made(frames, first, most, body_max)

    monkeypatch.setattr("broker.processor.plain_sends.make_run", counted)
    server.serve(given)
    assert server.taken == 1_000
    assert server.replica.intake.statistics.duplicates == 1_000
    assert sum(looked) < 3_000


@pytest.mark.parametrize("cut", range(0, 330, 3))
def test_a_header_that_is_cut_or_spoiled_is_left_to_the_decoder(cut: int) -> None:
    """Whatever the bytes: both ways say the same, and nothing is read beyond them."""
    whole = frame(body=b"")
    for spoiled in (
        whole[:cut],
        whole[:cut] + b"\x00" + whole[cut + 1 :],
        whole[:cut] + b'"' + whole[cut + 1 :],
        whole[:cut] + b"\\" + whole[cut + 1 :],
        max(0, cut - 4).to_bytes(4, "big") + whole[4:],
        b"\x01" + whole[1:],
    ):
        both = [Server(runs=False), Server(runs=True)]
        for server in both:
            server.serve([frame(), spoiled, frame()])
            server.replica.flush()
        assert both[0].state() == both[1].state()


def test_text_of_json_is_read_as_the_decoder_reads_it() -> None:
    text = 'quote " slash / back \\ tab \t \x01\x02 \x7e'
    server = Server(runs=True)
    server.serve([frame({"i": f"k\x01{text}\x02"})])
    raw = json_text("UNIQ_KEY\x01x\x02")
    assert raw
    server.replica.flush()
    (record,) = server.replica.records()
    assert record.properties.startswith(f"k\x01{text}\x02".encode())
    assert server.taken == 1


def test_answers_are_those_of_the_codec() -> None:
    server = Server(runs=True)
    server.serve([frame(top={"opaque": -5})])
    server.replica.flush()
    (answer,) = server.client.got
    assert isinstance(answer, Command)
    assert (answer.opaque, answer.ext["queueId"], answer.ext["queueOffset"]) == (-5, "1", "0")


SPLINTERS = (b'"', b"\\", b"{", b"}", b",", b":", rb"\u0001", rb"\uD800", b"0", b"-", b"null", b"true", b'"a":"x",')


def spoiled(rng: random.Random, whole: bytes) -> bytes:
    """A frame with a few bytes changed, lost or put in, its header mostly as long as it says."""
    raw = bytearray(whole)
    for _ in range(rng.choice([0, 1, 1, 2, 5])):
        at = rng.randrange(len(raw) + 1)
        match rng.randrange(4):
            case 0:
                raw[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del raw[at : at + rng.randrange(4)]
            case 2:
                raw[at:at] = rng.choice(SPLINTERS)
            case _:
                del raw[at:]
    end = raw.find(b"453}")
    if end > 0 and rng.random() < 0.7:
        raw[:4] = end.to_bytes(4, "big")
    return bytes(raw)


def test_what_is_taken_for_plain_is_what_the_decoder_reads() -> None:
    rng = random.Random("spoiled")
    made = list(frames(rng, 200))
    assert plain_runs.make_run is not None
    plain = 0
    for _ in range(20_000):
        one = spoiled(rng, rng.choice(made))
        run = plain_runs.make_run([one], 0, 1, 1 << 20)
        if not run.count:
            continue
        plain += 1
        request = decode_send(one)  # raises for what is no send
        header = request.header
        assert (request.code, header.batch, run.topics) == (310, False, [header.topic.encode()])
        assert header.sequence == (run.sequence(0) if run.numbered else None)
        run.end_at_queues([1 << 31])
        if not run.count:
            assert header.queue_id < 0
            continue
        run.place(0, 1, 1_000, [1], {}, lambda key: 5)
        ids = ["0" * 32] * run.without_id(0, 1)
        (raw,) = run.records(0, 1, crc32, ids, [False], bytes(8), 1, bytes(8), MULTI_TAGS)
        record = unpack_record(raw)
        assert record.properties.startswith(header.properties.encode())
        assert (record.queue_id, record.flag, record.born_ms, record.reconsume_times, bytes(record.body)) == (
            header.queue_id,
            header.flag,
            header.born_timestamp,
            header.reconsume_times,
            request.body,
        )
    assert plain > 2_000
