"""trimq's own client library, under Trio, against trimq or Apache's brokers."""

from __future__ import annotations

from itertools import cycle

import anyio

import trimq
from bench.clients.loops import parser, run


async def main() -> None:
    arguments = parser()
    arguments.add_argument("--namesrv", required=True)
    arguments.add_argument("--topic", default="bench")
    args = arguments.parse_args()
    body = bytes(args.body)
    async with trimq.connect(args.namesrv) as client, client.producer("bench") as producer:
        queues = sorted(await producer.queues(args.topic))
        turn = cycle(queues[:1])

        async def send() -> None:
            await producer.send(trimq.Message(topic=args.topic, body=body), queue=next(turn))

        async def send_anywhere() -> None:
            await producer.send(trimq.Message(topic=args.topic, body=body))

        await run(args, send_anywhere if args.gap else send)


if __name__ == "__main__":
    anyio.run(main, backend="trio")
