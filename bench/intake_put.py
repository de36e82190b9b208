"""What the admission of one message costs: judging, record, answer, overlays; and closing the entry with its answers.

    python -m bench.intake_put [MESSAGES]

No disk, no network, no header decoding. Prints microseconds per message; the goal is 6 to 8 for `put`.
"""

from __future__ import annotations

import gc
import sys
from time import perf_counter

from broker.replication.requests import Answer
from tests.support.intake_bench import Client, Replica, message
from trimq.message.batch import BatchElement

PASS = 256
"""Requests of one read, then one entry."""
PROPERTIES = b"KEYS\x01k%08d\x02UNIQ_KEY\x01C0A80101000000000000%012d\x02WAIT\x01true\x02TAGS\x01a\x02"


class Deaf(Client):
    """Takes answers without reading them."""

    def send(self, frame: bytes) -> None:
        self.sends += 1


def single(count: int, body: bytes, *, numbered: bool) -> tuple[float, float]:
    """Microseconds for `put`, and for taking and settling, per message."""
    replica, client = Replica(segment_bytes=1 << 30), Deaf()
    replica.lead()
    replica.put()
    replica.flush()
    requests = [
        (
            message(
                body=body,
                queue_id=n % 4,
                properties=PROPERTIES % (n, n),
                sequence=(77, 0, n, max(0, n - 32)) if numbered else None,
            ),
            Answer(client, n, 0),
        )
        for n in range(count)
    ]
    gc.collect()
    gc.freeze()
    putting = closing = 0.0
    put = replica.intake.put
    for start in range(0, count, PASS):
        before = perf_counter()
        for request, answer in requests[start : start + PASS]:
            put(request, answer)
        between = perf_counter()
        replica.take()
        replica.settle()
        closing += perf_counter() - between
        putting += between - before
        replica.apply()
    return putting / count * 1e6, closing / count * 1e6


def batches(count: int, *, numbered: bool) -> float:
    """Microseconds per element of batches of 256 × 100 bytes."""
    replica, client = Replica(segment_bytes=1 << 30), Deaf()
    replica.lead()
    replica.put()
    replica.flush()
    spent = 0.0
    for start in range(0, count, PASS):
        elements = [BatchElement(bytes(100), PROPERTIES % (n, n)) for n in range(start, start + PASS)]
        head = message(body=b"", sequence=(5, 0, start, start) if numbered else None)
        before = perf_counter()
        replica.intake.put_elements(head, elements, Answer(client, start, 0))
        spent += perf_counter() - before
        replica.flush()
    return spent / count * 1e6


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20_480
    for numbered in (True, False):
        known_by = "sequence" if numbered else "unique id"
        for size in (100, 1024):
            put, close = min(single(count, bytes(size), numbered=numbered) for _ in range(3))
            print(f"single, {size:4} B, known by {known_by:9}: put {put:.2f} µs, take and settle {close:.2f} µs")
        print(f"batch of 256, 100 B, known by {known_by:9}: {batches(count, numbered=numbered):.2f} µs an element")


if __name__ == "__main__":
    main()
