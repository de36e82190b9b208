"""Stored once: the table of producer sequences row by row, the id window, and answers that wait for the first copy."""

from __future__ import annotations

import logging
import random

import pytest
import trio
import trio.testing

from broker.replication.base import Busy
from broker.replication.intake import Refused
from broker.replication.lookups import HELD_MAX
from tests.support.intake_bench import OK, UNKNOWN, Client, Replica, records_of
from trimq.message.batch import BatchElement
from trimq.message.ids import IdSource, parse_offset_message_id
from trimq.wire.codes import ResponseCode
from trimq.wire.command import Command

PID = 0xFEDCBA9876543210


@pytest.fixture
def replica() -> Replica:
    leader = Replica()
    leader.lead()
    return leader


def numbered(
    replica: Replica, client: Client, first: int, floor: int = 0, *, epoch: int = 0, count: int = 1, pid: int = PID
) -> None:
    sequence = (pid, epoch, first, floor)
    if count == 1:
        replica.put(client, sequence=sequence, uniq=b"S%d" % first)
    else:
        replica.put_elements([BatchElement(b"e%d" % n) for n in range(count)], client, sequence=sequence)


def refusal(replica: Replica, first: int, floor: int = 0, *, epoch: int = 0, count: int = 1) -> tuple[int, str]:
    with pytest.raises(Refused) as refused:
        numbered(replica, Client(), first, floor, epoch=epoch, count=count)
    return refused.value.code, refused.value.ext["next"]


def place(answer: Command) -> tuple[str, str, int]:
    ids = answer.ext["msgId"].split(",")
    return answer.ext["queueId"], answer.ext["queueOffset"], parse_offset_message_id(ids[0])[1]


# --- producer sequences: applied or not, the table answers alike


@pytest.mark.parametrize("applied", [True, False], ids=["applied", "in flight"])
class TestSequences:
    def settle(self, replica: Replica, applied: bool) -> None:
        replica.take()
        if applied:
            replica.settle()
            replica.apply()

    def test_the_next_sequence_is_stored(self, replica: Replica, applied: bool) -> None:
        client = Client()
        for first in range(3):
            numbered(replica, client, first)
            self.settle(replica, applied)
        assert [record.queue_offset for record in replica.records()] == [0, 1, 2]

    def test_the_floor_lifts_what_is_next(self, replica: Replica, applied: bool) -> None:
        numbered(replica, Client(), 5, floor=5)
        self.settle(replica, applied)
        assert len(replica.records()) == 1
        assert refusal(replica, 7, floor=6) == (ResponseCode.OUT_OF_SEQUENCE, "6")
        numbered(replica, Client(), 8, floor=8)

    def test_the_same_sequence_and_count_is_a_duplicate_with_the_first_answer(
        self, replica: Replica, applied: bool
    ) -> None:
        client = Client()
        numbered(replica, client, 0)
        numbered(replica, client, 1, count=3)
        numbered(replica, client, 4)
        self.settle(replica, applied)
        again = Client()
        numbered(replica, again, 0)
        numbered(replica, again, 1, count=3)
        self.settle(replica, True)
        replica.settle()
        assert len(replica.records()) == 5
        firsts, repeats = client.take(), again.take()
        assert [answer.ext.get("dup") for answer in repeats] == ["1", "1"]
        assert [place(answer) for answer in repeats] == [place(answer) for answer in firsts[:2]]
        assert repeats[1].ext["msgId"] == firsts[1].ext["msgId"]

    def test_a_sequence_below_the_floor_is_stale(self, replica: Replica, applied: bool) -> None:
        for first in range(4):
            numbered(replica, Client(), first, floor=first)
        self.settle(replica, applied)
        assert refusal(replica, 1, floor=1) == (ResponseCode.STALE_SEQUENCE, "4")

    def test_the_same_sequence_with_another_count_is_stale(self, replica: Replica, applied: bool) -> None:
        numbered(replica, Client(), 0, count=2)
        numbered(replica, Client(), 2)
        self.settle(replica, applied)
        assert refusal(replica, 0) == (ResponseCode.STALE_SEQUENCE, "3")
        assert refusal(replica, 0, count=3) == (ResponseCode.STALE_SEQUENCE, "3")
        assert refusal(replica, 1) == (ResponseCode.STALE_SEQUENCE, "3")

    def test_a_gap_is_out_of_sequence_and_not_stored(self, replica: Replica, applied: bool) -> None:
        numbered(replica, Client(), 0)
        self.settle(replica, applied)
        assert refusal(replica, 2) == (ResponseCode.OUT_OF_SEQUENCE, "1")
        assert len(replica.records()) == 1

    def test_an_unknown_producer_begins_at_zero(self, replica: Replica, applied: bool) -> None:
        assert refusal(replica, 1) == (ResponseCode.OUT_OF_SEQUENCE, "0")
        numbered(replica, Client(), 0)

    def test_a_send_that_was_given_up_is_stale_when_it_comes_late(self, replica: Replica, applied: bool) -> None:
        numbered(replica, Client(), 0)
        numbered(replica, Client(), 2, floor=2)  # 1 was given up
        self.settle(replica, applied)
        assert refusal(replica, 1, floor=0) == (ResponseCode.STALE_SEQUENCE, "3")

    def test_a_higher_epoch_starts_afresh_and_a_lower_one_is_stale(self, replica: Replica, applied: bool) -> None:
        numbered(replica, Client(), 0)
        numbered(replica, Client(), 0, epoch=1)
        self.settle(replica, applied)
        assert len(replica.records()) == 2
        assert refusal(replica, 1, epoch=0) == (ResponseCode.STALE_SEQUENCE, "1")


def test_producers_do_not_see_each_other(replica: Replica) -> None:
    numbered(replica, Client(), 0)
    numbered(replica, Client(), 0, pid=1)
    replica.flush()
    assert len(replica.records()) == 2


def test_a_duplicate_of_an_uncommitted_entry_is_settled_with_it_never_earlier(replica: Replica) -> None:
    first, again = Client(), Client()
    numbered(replica, first, 0)
    numbered(replica, again, 0)  # still in the open batch
    replica.take()
    numbered(replica, again, 0)  # in flight
    assert again.got == []
    replica.settle()
    assert [answer.ext["dup"] for answer in again.take()] == ["1", "1"]
    numbered(replica, again, 0)  # committed, not applied
    assert len(again.take()) == 1
    replica.apply()
    numbered(replica, again, 0)  # applied
    assert len(again.take()) == 1
    assert len(replica.records()) == 1


def test_a_duplicate_shares_the_fate_of_the_first_copy(replica: Replica) -> None:
    again = Client()
    numbered(replica, Client(), 0)
    replica.take()
    numbered(replica, again, 0)
    replica.settle(UNKNOWN)
    assert [answer.code for answer in again.take()] == [ResponseCode.SYSTEM_ERROR]
    numbered(replica, again, 0)  # its ticket has given up: now only the applied state says more
    assert again.got == []
    replica.apply()
    assert [answer.code for answer in again.take()] == [0]


def test_a_duplicate_of_an_inherited_entry_waits_until_it_is_applied(replica: Replica) -> None:
    numbered(replica, Client(), 0)
    replica.take()
    replica.intake.end_term()
    replica.elect()
    again = Client()
    numbered(replica, again, 0)
    assert again.got == []
    assert refusal(replica, 2) == (ResponseCode.OUT_OF_SEQUENCE, "1")
    replica.apply()
    assert [answer.ext["dup"] for answer in again.take()] == ["1"]


def test_an_inherited_duplicate_is_unknown_when_this_leadership_ends_too(replica: Replica) -> None:
    numbered(replica, Client(), 0)
    replica.take()
    replica.intake.end_term()
    replica.elect()
    again = Client()
    numbered(replica, again, 0)
    replica.intake.end_term()
    assert [answer.code for answer in again.take()] == [ResponseCode.SYSTEM_ERROR]


def test_a_duplicate_whose_record_has_expired_has_queue_offset_minus_one(replica: Replica) -> None:
    numbered(replica, Client(), 0)
    replica.flush()
    replica.log.first_position = replica.log.last.end
    again = Client()
    numbered(replica, again, 0)
    assert place(again.take()[0])[1] == "-1"


def test_a_producer_without_a_floor_cannot_fill_the_memory(replica: Replica) -> None:
    for first in range(1024):
        numbered(replica, Client(), first)
    with pytest.raises(Refused) as refused:
        numbered(replica, Client(), 1024)
    assert refused.value.code == ResponseCode.MESSAGE_ILLEGAL
    numbered(replica, Client(), 1024, floor=10)


# --- the id window


def test_a_foreign_repeat_is_answered_with_the_first_copy(replica: Replica, caplog: pytest.LogCaptureFixture) -> None:
    first, again = Client(), Client()
    caplog.set_level(logging.INFO)
    replica.put(first, uniq=b"ID1", queue_id=1)
    replica.put(again, uniq=b"ID1", queue_id=3, born_ms=5)  # another queue and born time: as Java's retry
    replica.flush()
    replica.put(again, uniq=b"ID1", queue_id=2)
    (answer,) = first.take()
    repeats = again.take()
    assert [place(repeat) for repeat in repeats] == [place(answer)] * 2
    assert len(replica.records()) == 1
    assert len([line for line in caplog.records if "repeated message" in line.message]) == 1
    assert replica.intake.statistics.duplicates == 2


@pytest.mark.parametrize(
    "other", [{"body": b"other"}, {"topic": b"elsewhere"}, {"reconsume_times": 1}, {"flag": 1}], ids=str
)
def test_the_same_id_with_other_content_is_another_message(replica: Replica, other: dict[str, object]) -> None:
    replica.put(uniq=b"ID1")
    replica.put(None, uniq=b"ID1", **other)
    replica.flush()
    assert len(replica.records()) == 2


def test_the_brokers_own_appends_are_neither_checked_nor_entered(replica: Replica) -> None:
    replica.put(uniq=b"ID1")
    replica.put(uniq=b"ID1", own=True)
    replica.put(uniq=b"ID2", own=True)
    replica.flush()
    replica.put(uniq=b"ID2")
    replica.flush()
    assert len(replica.records()) == 4


def test_the_window_turned_off_stores_everything() -> None:
    replica = Replica(window_ms=0)
    replica.lead()
    for _ in range(2):
        replica.put(uniq=b"ID1")
        replica.flush()
    assert len(replica.records()) == 2


def test_batch_elements_are_judged_one_by_one(replica: Replica) -> None:
    client = Client()
    replica.put(uniq=b"E1", body=b"1")
    replica.flush()
    elements = [BatchElement(b"%d" % n, b"UNIQ_KEY\x01E%d\x02" % n) for n in range(3)]
    replica.put_elements(elements, client)
    (entry,) = replica.flush()
    assert [bytes(record.body) for record in records_of(entry)] == [b"0", b"2"]
    (answer,) = client.take()
    ids = [parse_offset_message_id(each)[1] for each in answer.ext["msgId"].split(",")]
    stored = {bytes(record.body): record.position for record in replica.records()}
    assert ids == [stored[b"0"], stored[b"1"], stored[b"2"]]
    replica.put_elements(elements, client)
    assert [answer.ext.get("dup") for answer in client.take()] == ["1"]


def test_an_expired_suspect_counts_as_the_same_message(replica: Replica) -> None:
    client = Client()
    replica.put(uniq=b"ID1")
    replica.flush()
    replica.log.first_position = replica.log.last.end
    replica.put(client, uniq=b"ID1")
    assert place(client.take()[0])[1] == "-1"


# --- what needs the disk


async def run_lookups(replica: Replica) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(replica.intake._lookups.run)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_a_suspect_that_is_not_in_memory_is_read_and_compared(replica: Replica) -> None:
    client = Client()
    replica.put(uniq=b"ID1")
    replica.put(uniq=b"ID2")
    replica.flush()
    replica.log.cached = False
    replica.put(client, uniq=b"ID1")
    replica.put(client, uniq=b"ID2", body=b"different")
    assert client.got == []
    await run_lookups(replica)
    assert [answer.ext["dup"] for answer in client.take()] == ["1"]
    replica.flush()
    assert [answer.ext.get("dup") for answer in client.take()] == [None]
    assert (len(replica.records()), replica.log.reads) == (3, 2)


@pytest.mark.trio
async def test_again_finds_the_first_copy_in_the_key_index_once_all_is_applied(replica: Replica) -> None:
    numbered(replica, Client(), 0)  # uniq S0; its outcome is never learnt
    replica.take()
    client = Client()
    replica.put(client, uniq=b"S0", sequence=(PID, 0, 1, 1), again=True)
    replica.put(client, uniq=b"S2", sequence=(PID, 0, 2, 2))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(replica.intake._lookups.run)
        await trio.testing.wait_all_tasks_blocked()
        assert replica.keys.asked == []  # the first copy is still in flight
        replica.settle(OK)
        replica.apply()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    replica.flush()
    duplicate, held = client.take()
    assert (duplicate.ext.get("dup"), held.ext.get("dup")) == ("1", None)
    assert [record.properties for record in replica.records()] == [b"UNIQ_KEY\x01S0\x02", b"UNIQ_KEY\x01S2\x02"]


@pytest.mark.trio
@pytest.mark.parametrize(
    ("made", "stored", "again"), [(3, 0, 0), (0, 3, 0), (0, 0, 3)], ids=["fast client", "fast leader", "slow leader"]
)
async def test_again_finds_the_first_copy_whatever_the_clocks_said(
    replica: Replica, made: int, stored: int, again: int
) -> None:
    start, hour = replica.clock.now_ms, 3_600_000
    replica.clock.now_ms = start + made * hour
    uniq = IdSource(random.Random(1), replica.clock).new_id().encode()
    replica.clock.now_ms = start + stored * hour
    replica.put(uniq=uniq, sequence=(PID, 0, 0, 0))
    replica.flush()
    replica.clock.now_ms = start + again * hour
    client = Client()
    replica.put(client, uniq=uniq, sequence=(PID, 0, 1, 1), again=True)
    await run_lookups(replica)
    replica.flush()
    assert [answer.ext.get("dup") for answer in client.take()] == ["1"]


@pytest.mark.trio
async def test_again_stores_what_is_not_found_and_later_sends_keep_their_order(replica: Replica) -> None:
    numbered(replica, Client(), 0)
    replica.flush()
    client = Client()
    for first in range(1, 4):
        replica.put(client, uniq=b"N%d" % first, sequence=(PID, 0, first, 1), again=first != 2)
    await run_lookups(replica)
    replica.flush()
    await run_lookups(replica)
    replica.flush()
    assert [answer.code for answer in client.take()] == [0, 0, 0]
    assert [record.properties[9:11] for record in replica.records()] == [b"S0", b"N1", b"N2", b"N3"]


@pytest.mark.trio
async def test_sends_held_by_a_lookup_are_lost_with_the_term(replica: Replica) -> None:
    numbered(replica, Client(), 0)
    replica.flush()
    client = Client()
    replica.put(client, uniq=b"N1", sequence=(PID, 0, 1, 1), again=True)
    replica.put(client, uniq=b"N2", sequence=(PID, 0, 2, 1))
    replica.intake.end_term()
    assert [answer.code for answer in client.take()] == [ResponseCode.SERVICE_NOT_AVAILABLE] * 2
    replica.elect(scan=False)  # everything is applied: nothing to scan, and a loop runs already
    await run_lookups(replica)
    assert client.got == []


def test_what_is_held_behind_a_lookup_is_bounded(replica: Replica) -> None:
    numbered(replica, Client(), 0)
    replica.flush()
    replica.put(uniq=b"N", sequence=(PID, 0, 1, 1), again=True)
    for first in range(2, 2 + HELD_MAX):
        replica.put(uniq=b"N", sequence=(PID, 0, first, 1))
    with pytest.raises(Busy):
        replica.put(uniq=b"N", sequence=(PID, 0, 2 + HELD_MAX, 1))
