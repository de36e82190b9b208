"""A consumer that is not overrun: so many messages at a time, so many a second, paused and resumed by hand.

trimq standalone                     # in another terminal
python examples/flow.py [NAMESRV]

Prints:

    at most 50 a second: 40 messages took ... s
    paused: nothing came
    resumed: 5 more
"""

import sys

import trio

import trimq

LIMITS = trimq.Limits(
    messages=32,  # held in memory, all queues together
    bytes=1 << 20,  # of their bodies
    span=500,  # a message that hangs holds its queue back here
    per_second=50,
    process_s=60,  # a handler that takes longer loses its message to somebody else
)


async def take(consumer: trimq.PushConsumer, count: int) -> int:
    taken = 0
    async for message in consumer:
        async with message:
            taken += 1
        if taken == count:
            break
    return taken


async def main() -> None:
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:9876"
    async with trimq.connect(address) as mq:
        await mq.admin.create_topic("page-views", queues=2)
        async with mq.subscribe(
            "page-views", group="statistics", limits=LIMITS, allocation=trimq.ConsistentHash()
        ) as views:
            async with mq.producer() as producer, producer.stream() as stream:
                for number in range(40):
                    await stream.send(trimq.Message(topic="page-views", body=b"%d" % number))
            began = trio.current_time()
            with trio.fail_after(20):
                await take(views, 40)
            print(f"at most 50 a second: 40 messages took {trio.current_time() - began:.1f} s")

            views.pause()
            for number in range(5):
                await mq.send("page-views", f"later {number}")
            with trio.move_on_after(0.5) as scope:
                await take(views, 1)
            print("paused: nothing came" if scope.cancelled_caught else "paused: something came")
            views.resume()
            with trio.fail_after(20):
                print(f"resumed: {await take(views, 5)} more")


if __name__ == "__main__":
    trio.run(main)
