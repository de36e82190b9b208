"""Pull: assigned queues, read from a place of one's own choosing, with a place of one's own kept at the brokers.

trimq standalone                     # in another terminal
python examples/seek.py [NAMESRV]

Prints:

    from the first: 0 1 2 3 4 5 6 7 8 9
    from half time: 5 6 7 8 9
    again from 2: 2 3 4
    the group is at 5, ... messages behind

5 messages behind the first time; the topic keeps what was sent, so ten more with every further run.
"""

import sys
from datetime import UTC, datetime

import trio

import trimq


async def poll(reader: trimq.PullConsumer, count: int) -> str:
    bodies: list[str] = []
    with trio.fail_after(15):
        while len(bodies) < count:
            bodies += [message.body.decode() for message in await reader.poll(max=count - len(bodies))]
    return " ".join(bodies)


async def main() -> None:
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:9876"
    async with trimq.connect(address) as mq:
        broker = (await mq.admin.cluster()).groups[0].name
        await mq.admin.create_topic("measurements", queues=1, groups=[broker])
        half_time = datetime.now(UTC)
        for number in range(10):
            if number == 5:
                await trio.sleep(0.1)
                half_time = datetime.now(UTC)
            await mq.send("measurements", str(number))
        async with mq.pull("plotter") as reader:
            (queue,) = await reader.queues("measurements")
            await reader.assign({queue: trimq.Start.FIRST})
            print("from the first:", await poll(reader, 10))
            await reader.seek(queue, half_time)
            print("from half time:", await poll(reader, 5))
            await reader.seek(queue, 2)
            print("again from 2:", await poll(reader, 3))
            await reader.commit()
            behind = (await mq.admin.lag("plotter")).messages
            print(f"the group is at {await reader.committed(queue)}, {behind} messages behind")


if __name__ == "__main__":
    trio.run(main)
