"""Read a topic again from its beginning, without any consumer group; under asyncio this time.

trimq standalone                     # in another terminal
python examples/replay.py [NAMESRV]

Prints:

    ... readings, mean 4.50
    readings@...: offsets 0 to ...

10 readings the first time; the topic keeps them, so ten more with every further run.
"""

import asyncio  # noqa: TID251  (this is an application, and its own loop)
import sys

import trimq


async def main() -> None:
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:9876"
    async with trimq.connect(address) as mq:
        async with mq.producer() as producer:
            # All or none, side by side in one queue.
            await producer.send_batch([trimq.Message(topic="readings", body=b"%d" % n) for n in range(10)])
        async with mq.pull() as reader:
            count = total = 0
            async for message in reader.iterate("readings"):
                count += 1
                total += int(message.body)
            print(f"{count} readings, mean {total / count:.2f}")
            for queue in await reader.queues("readings"):
                first, end = await reader.bounds(queue)
                print(f"{queue}: offsets {first} to {end}")


if __name__ == "__main__":
    asyncio.run(main())
