"""A consumer group is moved while it runs: back by time, past its backlog, and cloned for another group.

Prints:

    consumed 0 1 2 3 4
    again 0 1 2 3 4
    the copy is 0 behind

trimq standalone                     # in another terminal
python examples/moving.py [NAMESRV]
"""

import sys
from datetime import UTC, datetime

import trio

import trimq

TOPIC, GROUP, COPY = "ledger", "bookkeeping", "bookkeeping-2"


async def main() -> None:
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:9876"
    began = datetime.now(UTC)
    async with trimq.connect(address) as mq, mq.subscribe(TOPIC, group=GROUP) as ledger:
        for number in range(5):
            await mq.send(TOPIC, f"{number}")
        print("consumed", *await collect(ledger, 5))
        # Something was wrong with the books: do the last minutes again. The consumer is moved at once.
        await mq.admin.reset(GROUP, TOPIC, to=began)
        print("again", *await collect(ledger, 5))
        await ledger.commit()
        await mq.admin.skip(GROUP, TOPIC)
        await mq.admin.clone(GROUP, COPY, TOPIC)
        print("the copy is", (await mq.admin.lag(COPY)).messages, "behind")


async def collect(ledger: trimq.PushConsumer, count: int) -> list[str]:
    found: list[str] = []
    with trio.fail_after(20):
        async for entry in ledger:
            async with entry:
                found.append(entry.body.decode())
            if len(found) == count:
                break
    return sorted(found)


if __name__ == "__main__":
    trio.run(main)
