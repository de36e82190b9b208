"""confluent-kafka (librdkafka): `window` messages unacknowledged at any time, acks=all, no lingering.

librdkafka has no coroutines; its own loop here does what the other clients' closed loop does.
"""

from __future__ import annotations

import json
import os
from time import monotonic

from bench.clients.loops import parser
from bench.thin import percentile


def main() -> None:
    from confluent_kafka import KafkaError, Message, Producer

    arguments = parser()
    arguments.add_argument("--servers", required=True)
    args = arguments.parse_args()
    producer = Producer({"bootstrap.servers": args.servers, "acks": "all", "linger.ms": 0, "log_level": 0})
    body = bytes(args.body)
    waits: list[float] = []
    in_flight = total = 0
    begin = monotonic()
    count_from, end = begin + args.seconds * 0.2, begin + args.seconds

    def sent(called: float, error: KafkaError | None, _: Message) -> None:
        nonlocal in_flight, total
        if error is not None:
            raise RuntimeError(str(error))
        in_flight -= 1
        total += 1
        now = monotonic()
        if count_from <= now <= end:
            waits.append(now - called)

    while monotonic() < end:
        while in_flight < args.window:
            called = monotonic()
            in_flight += 1
            producer.produce("bench", body, callback=lambda error, message, at=called: sent(at, error, message))
        producer.poll(0.01)
    producer.flush(10)
    waits.sort()
    times = os.times()
    print(
        json.dumps(
            {
                "messages": len(waits),
                "all_messages": total,
                "seconds": end - count_from,
                "p50_ms": percentile(waits, 0.5) * 1e3,
                "p99_ms": percentile(waits, 0.99) * 1e3,
                "cpu_s": times.user + times.system,
            }
        )
    )


if __name__ == "__main__":
    main()
