"""Deliver later: after a delay, at a time, by a level; look at what waits, and call one back.

trimq standalone                     # in another terminal
python examples/delay.py [NAMESRV]

Prints:

    waiting for their time: 3 messages
    called back: water the plants
    level 1
    after 1.5 s
    at its time
"""

import sys
from datetime import UTC, datetime, timedelta

import trio

import trimq
from trimq import Message


async def main() -> None:
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:9876"
    async with (
        trimq.connect(address) as mq,
        mq.subscribe("reminders", group="diary") as reminders,
        mq.producer() as producer,
    ):
        began = datetime.now(UTC)
        await producer.send(Message(topic="reminders", body=b"level 1", delay_level=1))
        after = await producer.send(Message(topic="reminders", body=b"after 1.5 s", delay=timedelta(seconds=1.5)))
        at = await producer.send(Message(topic="reminders", body=b"at its time", at=began + timedelta(seconds=2.5)))
        plants = await producer.send(Message(topic="reminders", body=b"water the plants", delay=timedelta(days=365)))
        ours = {after.id, at.id, plants.id}
        waiting = [timed for timed in await mq.admin.timers("reminders") if timed.id in ours]
        print(f"waiting for their time: {len(waiting)} messages, the last until {waiting[-1].due:%Y-%m-%d}")
        if await producer.recall(plants):
            print("called back: water the plants")
        count = 0
        with trio.fail_after(20):
            async for message in reminders:
                async with message:
                    passed = (datetime.now(UTC) - began).total_seconds()
                    print(f"{message.body.decode()} (came {passed:.2f} s after the start)")
                    count += 1
                if count == 3:
                    break


if __name__ == "__main__":
    trio.run(main)
