"""A guard by counts, not by seconds: how many calls of Python and C one message costs on its way through the intake.

Seconds differ by a factor of five on a shared machine, calls do not differ at all. A bound is the count that was
measured when it was written, and a tenth more: what goes beyond has to be worth it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType

import pytest

from broker.replication.requests import Answer
from tests.intake.test_plain_runs import Server, frame
from tests.support.intake_bench import Client, Replica, message
from trimq.message.batch import BatchElement
from trimq.message.properties import get

COUNT = 256
IDENTIFIED = b"UNIQ_KEY\x01C0A80101000000000000%012d\x02WAIT\x01true\x02TAGS\x01a\x02"


def calls(work: Callable[[], object]) -> int:
    """Calls of functions, Python's and C's, while it runs."""
    counted = 0

    def count(frame: FrameType, event: str, arg: object) -> None:
        nonlocal counted
        counted += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return counted


class Deaf(Client):
    def send(self, frame: bytes) -> None:
        self.sends += 1


@pytest.fixture
def replica() -> Replica:
    made = Replica(segment_bytes=1 << 26)
    made.lead()
    made.put()
    made.flush()
    return made


@pytest.mark.parametrize(("numbered", "bound"), [(True, 65), (False, 65)])
def test_a_message(replica: Replica, numbered: bool, bound: float) -> None:
    client = Deaf()
    requests = [
        (
            message(
                body=bytes(100),
                properties=IDENTIFIED % n,
                sequence=(7, 0, n, max(0, n - 32)) if numbered else None,
            ),
            Answer(client, n, 0),
        )
        for n in range(COUNT)
    ]
    put = replica.intake.put

    def work() -> None:
        for request, answer in requests:
            put(request, answer)

    assert calls(work) / COUNT < bound


@pytest.mark.parametrize(("ext", "bound"), [({}, 0.4), ({"i": "UNIQ_KEY\x01%012d\x02"}, 12.5)], ids=["bare", "id"])
def test_a_send_of_a_run(ext: dict[str, str], bound: float) -> None:
    """From the frame on, with its answer."""
    pytest.importorskip("broker.replication._plain_sends", reason="no C compiler where trimq was installed")
    server = Server(runs=True)
    frames = [frame({key: value % n for key, value in ext.items()}, body=bytes(100)) for n in range(COUNT)]
    assert calls(lambda: server.serve(frames)) / COUNT < bound
    assert server.taken == COUNT


@pytest.mark.parametrize(("properties", "bound"), [(IDENTIFIED, 43), (b"WAIT\x01true\x02%.0d", 30)], ids=["id", "bare"])
def test_an_element_of_a_batch(replica: Replica, properties: bytes, bound: float) -> None:
    elements = [BatchElement(bytes(100), properties % n) for n in range(COUNT)]
    head = message(body=b"")
    answer = Answer(Deaf(), 1, 0)
    assert get(elements[0].properties, b"WAIT") == b"true"
    assert calls(lambda: replica.intake.put_elements(head, elements, answer)) / COUNT < bound
