"""aio-pika, the Python client of RabbitMQ, publishing to a quorum queue and waiting for each confirmation."""

from __future__ import annotations

import asyncio

from bench.clients.loops import parser, run


async def main() -> None:
    import aio_pika

    arguments = parser()
    arguments.add_argument("--url", required=True)
    args = arguments.parse_args()
    body = bytes(args.body)
    connection = await aio_pika.connect_robust(args.url)
    async with connection:
        exchange = (await connection.channel()).default_exchange

        async def send() -> None:
            message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
            await exchange.publish(message, routing_key="bench")

        await run(args, send)


if __name__ == "__main__":
    asyncio.run(main())
