"""Messages of one order key stay in order, also when handlers fail: three orders, each through its states.

trimq standalone                     # in another terminal
python examples/ordered.py [NAMESRV]

Prints:

    A created -> paid -> packed -> shipped
    B created -> paid -> packed -> shipped
    C created -> paid -> packed -> shipped
"""

import sys
from collections import defaultdict
from datetime import timedelta

import trio

import trimq

STATES = ["created", "paid", "packed", "shipped"]


async def main() -> None:
    seen: dict[str, list[str]] = defaultdict(list)
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:9876"
    async with (
        trimq.connect(address) as mq,
        mq.subscribe("order-states", group="warehouse", ordered=True) as states,
    ):
        async with mq.producer() as producer, producer.stream() as stream:
            for state in STATES:
                for order in ("A", "B", "C"):
                    await stream.send(trimq.Message(topic="order-states", body=state.encode(), order_key=order))
        # Leaving the stream's block: all twelve are stored.
        with trio.move_on_after(15):
            async for message in states:
                async with message:
                    if message.body == b"packed" and message.attempt == 1:
                        # The next state of this order waits until this one has gone through.
                        raise trimq.Retry("no boxes left", after=timedelta(milliseconds=200))
                    seen[message.order_key or ""].append(message.body.decode())
                if sum(map(len, seen.values())) >= 3 * len(STATES):
                    break
    for order, history in sorted(seen.items()):
        print(order, " -> ".join(history))


if __name__ == "__main__":
    trio.run(main)
