"""A process full of pop consumers, to be killed: `python -m tests.drills.pop_worker NAMESRV CONSUMERS INVISIBLE_S`.

It prints a line for each message: `got BODY`, and `told BODY` once the acknowledgement was answered.
"""

from __future__ import annotations

import sys

import trio

import trimq
from trimq.errors import TrimqError

TOPIC, GROUP = "popped", "poppers"


async def consume(namesrv: str, invisible_s: float) -> None:
    async with trimq.connect(namesrv) as mq, mq.pop(TOPIC, group=GROUP, invisible=invisible_s) as jobs:
        async for job in jobs:
            say(f"got {job.body.decode()}")
            await trio.sleep(0.02)
            try:
                if await job.ack():
                    say(f"told {job.body.decode()}")
            except TrimqError:
                continue  # unknown whether it counted: it may come again


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def main() -> None:
    namesrv, count, invisible_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(consume, namesrv, invisible_s)


if __name__ == "__main__":
    trio.run(main)
