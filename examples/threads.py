"""The same without an event loop: plain threads, `with` and `for`.

trimq standalone                     # in another terminal
python examples/threads.py [NAMESRV]

Prints:

    sent job 0 to jobs@...
    did job ...
"""

import sys

from trimq import blocking


def main() -> None:
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:9876"
    with blocking.connect(address) as mq, mq.subscribe("jobs", group="workers") as jobs:
        for number in range(5):
            receipt = mq.send("jobs", f"job {number}", keys=[f"job-{number}"])
            print(f"sent job {number} to {receipt.queue}")
        done = 0
        while done < 5 and (job := jobs.poll(timeout=10)) is not None:
            with job:  # leaving the block acknowledges; an exception would bring the job back later
                print(f"did {job.body.decode()} (attempt {job.attempt})")
                done += 1


if __name__ == "__main__":
    main()
