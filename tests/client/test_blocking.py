"""The facade for plain threads, against a real broker."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta

import pytest

from trimq import blocking
from trimq.errors import NoRoute

Names = Callable[[str], str]


def test_send_and_consume_with_plain_loops(namesrv: str, fresh: Names) -> None:
    topic = fresh("t")
    with blocking.connect(namesrv) as mq, mq.subscribe(topic, group=fresh("g")) as consumer:
        receipts = [mq.send(topic, f"number {n}", tag="even" if n % 2 == 0 else "odd") for n in range(4)]
        got = []
        for message in consumer:
            with message:
                got.append((message.id, message.body, message.tag, message.queue, message.offset))
            if len(got) == 4:
                break
        assert sorted(got) == sorted(
            (r.id, b"number %d" % n, "even" if n % 2 == 0 else "odd", r.queue, r.offset) for n, r in enumerate(receipts)
        )
        assert consumer.poll(0.05) is None


def test_a_failed_message_comes_back(namesrv: str, fresh: Names) -> None:
    topic = fresh("t")
    with blocking.connect(namesrv) as mq, mq.subscribe(topic, group=fresh("g")) as consumer:
        mq.send(topic, "x")
        for message in consumer:
            with message:
                if message.attempt < 3:
                    raise blocking.Retry(after=timedelta(seconds=1))
                break


def test_threads_share_one_producer(namesrv: str, fresh: Names) -> None:
    topic = fresh("t")
    with blocking.connect(namesrv) as mq, mq.producer() as producer:

        def send(start: int) -> None:
            for number in range(start, start + 20):
                producer.send(blocking.Message(topic=topic, body=b"%d" % number), timeout=10)

        threads = [threading.Thread(target=send, args=(20 * n,)) for n in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with producer.stream() as stream:
            stream.send(blocking.Message(topic=topic, body=b"100"))
        with mq.pull() as reader:
            queue = producer.queues(topic)[0]
            assert reader.read(queue, 0, wait=5).messages
            bodies = {int(message.body) for message in reader.iterate(topic)}
    assert bodies == set(range(101))


def test_handlers_run_in_worker_threads(namesrv: str, fresh: Names) -> None:
    topic = fresh("t")
    names: set[str] = set()
    done = threading.Event()

    def handle(message: blocking.Received) -> None:
        names.add(threading.current_thread().name)
        if message.body == b"last":
            done.set()

    with blocking.connect(namesrv) as mq:
        with mq.subscribe(topic, group=fresh("g")) as consumer:
            runner = threading.Thread(target=consumer.run, args=(handle,))
            runner.start()
            mq.send(topic, "last")
            assert done.wait(10)
        runner.join(10)
        assert not runner.is_alive(), "leaving the consumer's block ends run"
    assert threading.current_thread().name not in names


def test_positions_and_topics(namesrv: str, fresh: Names) -> None:
    topic = fresh("t")
    with blocking.connect(namesrv) as mq, mq.pull(fresh("g")) as reader, mq.producer() as producer:
        assert mq.admin.create_topic(topic, queues=1).queues == {"solo": 1}
        producer.send_batch([blocking.Message(topic=topic, body=b"%d" % n) for n in range(5)])
        (queue,) = reader.queues(topic)
        reader.assign({queue: 2})
        assert [message.body for message in reader.poll()] == [b"2", b"3", b"4"]
        assert reader.position(queue) == 5
        reader.commit()
        assert reader.committed(queue) == 5
        assert reader.bounds(queue) == (0, 5)
        assert [group.name for group in mq.admin.cluster().groups] == ["solo"]
        with pytest.raises(NoRoute):
            mq.admin.route(fresh("missing"))
