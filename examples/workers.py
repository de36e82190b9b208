"""More workers than queues: each takes jobs one by one and acknowledges them one by one (pop).

trimq standalone                     # in another terminal
python examples/workers.py [NAMESRV]

Prints:

    12 jobs done by 6 workers on 2 queues
    job 7 took 2 attempts
    dead letters: the impossible job
"""

import sys
from collections import Counter
from datetime import timedelta

import trio

import trimq

JOBS, WORKERS = 12, 6


async def main() -> None:
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:9876"
    done: Counter[str] = Counter()
    attempts: dict[str, int] = {}

    async def work(worker: str, jobs: trimq.PopConsumer) -> None:
        async for job in jobs:
            async with job:  # leaving the block acknowledges; nobody else sees the job for 30 s
                name = job.body.decode()
                if name == "the impossible job":
                    raise trimq.DeadLetter("nobody can do this")
                if name == "job 7" and job.attempt == 1:
                    raise trimq.Retry("no paper", after=timedelta(seconds=1))
                await trio.sleep(0.2)
                attempts[name] = job.attempt
                done[worker] += 1
            if sum(done.values()) == JOBS:
                finished.set()

    finished = trio.Event()
    async with trimq.connect(address) as mq:
        await mq.admin.create_topic("print-jobs", queues=2)
        async with mq.pop("print-jobs", group="printers", invisible=30) as jobs, trio.open_nursery() as nursery:
            for number in range(WORKERS):
                nursery.start_soon(work, f"worker {number}", jobs)
            for number in range(JOBS):
                await mq.send("print-jobs", f"job {number}")
            await mq.send("print-jobs", "the impossible job")
            with trio.fail_after(20):
                await finished.wait()
            nursery.cancel_scope.cancel()
        print(f"{sum(done.values())} jobs done by {len(done)} workers on 2 queues")
        print(f"job 7 took {attempts['job 7']} attempts")
        async with mq.pull() as reader:
            dead = [message.body.decode() async for message in reader.iterate("%DLQ%printers")]
            print(f"dead letters: {', '.join(dead)}")


if __name__ == "__main__":
    trio.run(main)
