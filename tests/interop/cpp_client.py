"""A program for the native C++ clients on PyPI (`rocketmq` 0.4.4, `rocketmq-python-cvs` 2.1.0.3), each in its venv.

    cpp_client.py send NAMESRV TOPIC COUNT                 each message once; what failed is told
    cpp_client.py push NAMESRV TOPIC GROUP COUNT SECONDS   push consumer until COUNT distinct bodies or SECONDS

JSON lines as `tests/interop/foreign.py` asks for them. It must not import anything of trimq: the client's own package
is called `rocketmq` and the virtual environment holds nothing else.
"""

import json
import sys
import threading
import time
from typing import Any

from rocketmq.client import Message, Producer, PushConsumer  # type: ignore[import-not-found]  # its own venv has it


def say(**fields: object) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def send(namesrv: str, topic: str, count: int) -> None:
    producer = Producer("CPP_PRODUCER")
    producer.set_namesrv_addr(namesrv)
    producer.start()
    failed: list[str] = []
    for number in range(count):
        body = f"body-{number}"
        message = Message(topic)
        message.set_keys(f"key-{number}")
        message.set_tags("TagA")
        message.set_body(body)
        try:
            producer.send_sync(message)
        except Exception as error:
            failed.append(body)
            say(event="error", body=body, error=str(error))
        if number % 100 == 99:
            say(event="sent", count=number + 1)
    say(event="done", failed=failed)
    producer.shutdown()


def push(namesrv: str, topic: str, group: str, count: int, seconds: float) -> None:
    seen: dict[str, int] = {}
    lock, done = threading.Lock(), threading.Event()

    def callback(message: Any) -> Any:  # Any: the foreign client has no types
        body = message.body.decode() if isinstance(message.body, bytes) else message.body
        with lock:
            seen[body] = seen.get(body, 0) + 1
            if len(seen) >= count:
                done.set()
        try:
            from rocketmq.client import ConsumeStatus

            return ConsumeStatus.CONSUME_SUCCESS
        except ImportError:
            return None

    consumer = PushConsumer(group)
    consumer.set_namesrv_addr(namesrv)
    consumer.subscribe(topic, callback, "TagA || TagB")
    consumer.start()
    say(event="started")
    done.wait(seconds)
    time.sleep(0.5)
    # Said before the shutdown: 2.1.0.3 crashes in its own, whatever the broker.
    say(event="done", deliveries=sum(seen.values()), bodies=sorted(seen))
    consumer.shutdown()


if __name__ == "__main__":
    if sys.argv[1] == "send":
        send(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        push(sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5]), float(sys.argv[6]))
