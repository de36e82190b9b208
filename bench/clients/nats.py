"""nats-py, the Python client of NATS, publishing to a JetStream stream and waiting for each acknowledgement."""

from __future__ import annotations

import asyncio
import json

from bench.clients.loops import parser, run


async def main() -> None:
    import nats

    arguments = parser()
    arguments.add_argument("--servers", type=json.loads, required=True)
    args = arguments.parse_args()
    body = bytes(args.body)

    async def quiet(error: Exception) -> None:
        """Lost connections are the failover workload's point."""

    link = await nats.connect(
        args.servers, error_cb=quiet, max_reconnect_attempts=-1, reconnect_time_wait=0.05, connect_timeout=1
    )
    stream = link.jetstream(timeout=2 if args.gap else 15)

    async def send() -> None:
        await stream.publish("bench", body)

    await run(args, send)
    await link.close()


if __name__ == "__main__":
    asyncio.run(main())
