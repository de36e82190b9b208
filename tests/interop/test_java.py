"""RocketMQ's own Java client (4.9 and 5.x), unchanged, against three Raft groups whose leaders are killed meanwhile.

One row of the compatibility table per feature. Each feature runs with a `kill -9` of a leader in the middle; the last
rows are the long ones: 10,000 messages sent and pushed with three kills. What the client was told is compared with what
our own client finds in the queues.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.interop import bench, java_home
from tests.interop.bench import Found, Killer, Stored, bodies, cluster_for_clients, compare, create_topic, stored
from tests.interop.java_home import Driver, NotToBeHad, Program
from tests.interop.table import FAILED, NOT_TO_BE_HAD, PASSED, Row, record
from trimq.testing.local_cluster import LocalCluster

CLIENT = "rocketmq-client (Java)"
MANY = 10_000
LONG_KILLS = 3
SETTINGS = {
    "enablePropertyFilter": "true",
    "traceTopicEnable": "true",
    "transactionTimeOut": "1000",
    "transactionCheckInterval": "2000",
}
pytestmark = [pytest.mark.interop, pytest.mark.timeout(420)]


class Bench:
    """One version of the client at one cluster."""

    def __init__(self, java: Driver, cluster: LocalCluster) -> None:
        self.java = java
        self.cluster = cluster
        self.namesrv = cluster.namesrv_address
        self.killer = Killer(cluster)
        self._topics = 0

    def topic(self, name: str) -> str:
        self._topics += 1
        made = f"{name}-{self.java.module}-{self._topics}"
        create_topic(self.namesrv, made)
        return made

    def while_sending(self, program: Program, count: int, kills: int = 1) -> None:
        """Kill leaders at equal distances while a program says how far it is."""
        for number in range(kills):
            at = count * (number + 1) // (kills + 1)
            program.until("sent", 120, lambda each, at=at: each["count"] >= at)  # type: ignore[misc]
            self.killer.kill()

    def send(self, topic: str, bodies: list[str], *, tags: tuple[str, ...] = ("TagA",)) -> None:
        """With our own client, one leader killed in the middle."""
        half = len(bodies) // 2
        bench.send(self.namesrv, topic, bodies[:half], tags=tags)
        self.killer.kill()
        bench.send(self.namesrv, topic, bodies[half:], tags=tags)


# --- sending


def sending(mode: str, count: int) -> Callable[[Bench], Found]:
    def row(at: Bench) -> Found:
        topic = at.topic(f"send-{mode}")
        program = at.java.start("send", mode=mode, topic=topic, count=count)
        at.while_sending(program, count)
        done = program.done(120)
        found = Found(messages=done["sent"], errors=done["errors"])
        there = stored(at.namesrv, topic)
        compare(found, set(bodies(count)), there)
        wrong = [b for b in there.bodies if there.keys[b] != (b.replace("body", "key"),) or there.tags[b] is None]
        found.expect(not wrong, f"{len(wrong)} messages with other keys or tags than sent")
        if mode == "oneway" and found.lost:
            found.notes.append(f"{found.lost} lost: a oneway send is not acknowledged")
            # What it sends to those groups until it hears of the next leader, in its own time; and what was under way.
            held = count // 2 * at.killer.led // len(at.cluster.groups) + count // 12
            found.expect(found.lost <= held, f"more oneway messages lost than the dead leader was sent: {held}")
            found.lost = 0
        if mode == "ordered":
            found.expect(_in_order(there), "messages of one key are not in order")
        return found

    return row


def _in_order(there: Stored) -> bool:
    """First copies of each key's messages (number modulo 4) rise inside their queue."""
    for order in there.order.values():
        last: dict[int, int] = {}
        for body in dict.fromkeys(order):
            number = int(body.rpartition("-")[2])
            if number < last.get(number % 4, -1):
                return False
            last[number % 4] = number
    return True


ROUTE_POLL_MS = {"client4": 30_000, "client5": 0}
"""How long a client may go on pulling from a leader that is gone: 5.x asks for the route when it cannot connect."""


def delay_levels(at: Bench) -> Found:
    count, topic = 60, at.topic("delay")
    consumer = at.java.start("push", topic=topic, group=f"delay-{at.java.module}", count=count, seconds=60)
    consumer.until("started", 30)
    program = at.java.start("send", topic=topic, count=count, level=6)
    sent = program.done(60)
    at.killer.kill()
    done = consumer.done(90)
    found = Found(messages=sent["sent"], errors=sent["errors"], lost=count - done["distinct"])
    waits = sorted(each["at"] - each["born"] for each in consumer.of("got"))
    found.expect(bool(waits) and waits[0] >= 3950, f"delivered after {waits[:1]} ms instead of 4,000")
    found.notes.append(f"level of 4 s delivered after {waits[0]:,} to {waits[-1]:,} ms" if waits else "nothing came")
    if at.java.module == "client4":
        found.notes.append("it pulls where the leader was until its next look at the route, 30 s apart")
    most_ms = 12_000 + ROUTE_POLL_MS[at.java.module]
    found.expect(bool(waits) and waits[-1] <= most_ms, f"delivered after {waits[-1:]} ms, at most {most_ms:,}")
    found.twice = stored(at.namesrv, topic).twice_in_one_group
    return found


def timer(at: Bench) -> Found:
    count, topic = 60, at.topic("timer")
    consumer = at.java.start("push", topic=topic, group="timer-5", count=count, seconds=60)
    consumer.until("started", 30)
    program = at.java.start("send", topic=topic, count=count, delay_ms=4500)
    sent = program.done(60)
    at.killer.kill()
    done = consumer.done(90)
    found = Found(messages=sent["sent"], errors=sent["errors"], lost=count - done["distinct"])
    late = sorted(each["at"] - int(each["due"]) for each in consumer.of("got"))
    found.expect(bool(late) and late[0] >= -50, f"delivered {late[:1]} ms after their time")
    found.notes.append(f"due in 4.5 s: delivered {late[0]:+,} to {late[-1]:+,} ms" if late else "nothing came")
    found.twice = stored(at.namesrv, topic).twice_in_one_group
    return found


def transactions(at: Bench) -> Found:
    count, topic = 60, at.topic("transactions")
    program = at.java.start("transactions", topic=topic, count=count, seconds=60, group=f"tx-{at.java.module}")
    at.while_sending(program, count)
    done = program.done(120)
    found = Found(messages=count, errors=done["errors"])
    compare(found, {f"body-{n}" for n in range(count) if n % 3 != 1}, stored(at.namesrv, topic))
    checked = {each["number"] for each in program.of("checked")}
    asked = {n for n in range(count) if n % 3 == 2}
    found.notes.append(f"{len(checked)} checked back")
    found.expect(asked <= checked, f"{len(asked - checked)} open transactions were never asked for")
    return found


def request_reply(at: Bench) -> Found:
    count, topic = 60, at.topic("requests")
    program = at.java.start("request", topic=topic, group=f"repliers-{at.java.module}", count=count)
    at.while_sending(program, count)
    done = program.done(180)
    found = Found(messages=count, errors=done["errors"], lost=count - done["answered"])
    found.expect(done["wrong"] == 0, f"{done['wrong']} wrong replies")
    if at.java.module == "client5":
        found.notes.append("asked with a callback: the client's blocking request ends when it is stored (its #9319)")
    return found


def trace(at: Bench) -> Found:
    count, topic = 40, at.topic("traced")
    program = at.java.start("send", topic=topic, count=count, trace=1, ids=1)
    done = program.done(90)
    there = stored(at.namesrv, "RMQ_SYS_TRACE_TOPIC")
    text = "\n".join(there.bodies)
    ids = [each["id"] for each in program.of("id")]
    found = Found(messages=done["sent"], errors=done["errors"])
    untraced = sum(1 for each in ids if each not in text)
    found.expect(untraced == 0, f"{untraced} of {count} messages left no trace")
    return found


# --- consuming


def pushing(command: str, count: int, **options: object) -> Callable[[Bench], Found]:
    def row(at: Bench) -> Found:
        topic = at.topic(command)
        consumer = at.java.start(
            command, topic=topic, group=f"{topic}-readers", count=count, seconds=90, linger_ms=1500, **options
        )
        consumer.until("started", 30)
        at.send(topic, bodies(count))
        done = consumer.done(150)
        found = Found(messages=count, lost=count - done["distinct"])
        again = done["deliveries"] - done["distinct"]
        if again:
            found.notes.append(f"{again} delivered again")
        if options.get("orderly"):
            found.expect(_rising(consumer), "a queue's messages came out of order")
        return found

    return row


def _rising(consumer: Program) -> bool:
    """Per queue, what comes for the first time comes in the order of offsets."""
    newest: dict[tuple[str, int], int] = defaultdict(lambda: -1)
    for each in consumer.of("got"):
        queue = (each["broker"], each["queue"])
        if each["offset"] > newest[queue] + 1:
            return False
        newest[queue] = max(newest[queue], each["offset"])
    return True


def broadcast(at: Bench) -> Found:
    count, topic = 300, at.topic("broadcast")
    group = f"{topic}-readers"
    both = [
        at.java.start(
            "push", topic=topic, group=group, count=count, seconds=90, model="broadcast", instance=f"reader{n}"
        )
        for n in range(2)
    ]
    for each in both:
        each.until("started", 30)
    at.send(topic, bodies(count))
    done = [each.done(150) for each in both]
    return Found(messages=count, lost=sum(count - each["distinct"] for each in done))


def tags(at: Bench) -> Found:
    count, topic = 300, at.topic("tags")
    consumer = at.java.start(
        "push", topic=topic, group=f"{topic}-readers", count=count * 2 // 3, seconds=60, tags="TagA||TagC"
    )
    consumer.until("started", 30)
    at.send(topic, bodies(count), tags=("TagA", "TagB", "TagC"))
    done = consumer.done(120)
    found = Found(messages=count, lost=count * 2 // 3 - done["distinct"])
    found.expect(all(each["tag"] != "TagB" for each in consumer.of("got")), "a tag came that nobody wanted")
    return found


def sql(at: Bench) -> Found:
    count, topic = 300, at.topic("sql")
    wanted = {f"body-{n}" for n in range(count) if 10 <= n < 200 and n % 2 == 0}
    # Numbers begin at 0 again in each half that `send` sends: half is 150.
    wanted = {f"body-{n}" for n in range(count) if n % 150 >= 10 and n % 150 < 120 and n % 2 == 0}
    consumer = at.java.start(
        "push",
        topic=topic,
        group=f"{topic}-readers",
        count=len(wanted),
        seconds=60,
        sql="n BETWEEN 10 AND 119 AND TAGS IN ('TagA', 'TagC')",
    )
    consumer.until("started", 30)
    at.send(topic, bodies(count), tags=("TagA", "TagB"))
    done = consumer.done(120)
    got = {each["body"] for each in consumer.of("got")}
    found = Found(messages=count, lost=len(wanted - got))
    found.expect(not got - wanted, f"{len(got - wanted)} messages that the expression leaves out")
    found.expect(done["distinct"] == len(got), "the client counts otherwise")
    return found


def retries(at: Bench) -> Found:
    count, topic = 40, at.topic("retries")
    consumer = at.java.start(
        "push", topic=topic, group=f"{topic}-readers", count=count, attempts=2, seconds=90, later=1
    )
    consumer.until("started", 30)
    at.send(topic, bodies(count))
    consumer.done(120)
    times: dict[str, set[int]] = defaultdict(set)
    for each in consumer.of("got"):
        times[each["body"]].add(each["times"])
    found = Found(messages=count, lost=sum(1 for body in bodies(count) if 1 not in times[body]))
    found.expect(all(0 in seen for seen in times.values()), "a first delivery is missing")
    return found


def dead_letters(at: Bench) -> Found:
    count, topic = 30, at.topic("dead")
    group = f"{topic}-readers"
    consumer = at.java.start(
        "push", topic=topic, group=group, count=count, attempts=2, seconds=90, linger_ms=3000, later=99, max_times=1
    )
    consumer.until("started", 30)
    at.send(topic, bodies(count))
    consumer.done(120)
    found = Found(messages=count)
    compare(found, set(bodies(count)), stored(at.namesrv, f"%DLQ%{group}"))
    return found


def pop(at: Bench) -> Found:
    count, topic = 300, at.topic("pop")
    group = f"{topic}-readers"
    warm = at.java.start("push", topic=topic, group=group, count=1, seconds=1, linger_ms=0)  # makes the group
    warm.done(60)
    at.java.start("pop-mode", topic=topic, group=group).done(60)
    consumer = at.java.start(
        "push", topic=topic, group=group, count=count, seconds=90, pop=1, invisible_ms=10_000, linger_ms=2000
    )
    consumer.until("started", 30)
    at.send(topic, bodies(count))
    done = consumer.done(150)
    again = done["deliveries"] - done["distinct"]
    return Found(messages=count, lost=count - done["distinct"], notes=[f"{again} delivered again"] if again else [])


# --- the long rows


def long(at: Bench) -> Found:
    topic = at.topic("long")
    consumer = at.java.start(
        "push", topic=topic, group=f"{topic}-readers", count=MANY, seconds=300, threads=8, linger_ms=2000
    )
    consumer.until("started", 30)
    program = at.java.start("send", mode="sync", topic=topic, count=MANY)
    at.while_sending(program, MANY, LONG_KILLS)
    done = program.done(300)
    read = consumer.done(300)
    found = Found(messages=done["sent"], errors=done["errors"])
    compare(found, set(bodies(MANY)), stored(at.namesrv, topic))
    missed = MANY - read["distinct"]
    found.expect(missed == 0, f"{missed} messages were not pushed to the consumer")
    found.notes.append(f"{read['deliveries'] - read['distinct']} delivered again")
    return found


FEATURES: dict[str, Callable[[Bench], Found]] = {
    "send sync": sending("sync", 1000),
    "send async": sending("async", 1000),
    "send batch": sending("batch", 1000),
    "send with a queue selector": sending("ordered", 1000),
    "send oneway": sending("oneway", 600),
    "push": pushing("push", 600),
    "push, orderly": pushing("push", 600, orderly=1),
    "push, broadcast": broadcast,
    "push, tags": tags,
    "push, retries": retries,
    "push, dead letters": dead_letters,
    "lite pull, subscribe": pushing("lite-pull", 600),
    "lite pull, assign and seek": pushing("assign", 600),
    "delay levels": delay_levels,
    "transactions with check-back": transactions,
    "SQL92 filter": sql,
    "request-reply": request_reply,
    "message trace": trace,
    "send + push, 10,000": long,
}
NEWER: dict[str, Callable[[Bench], Found]] = {"timer messages": timer, "push by pop": pop}
ROWS = [(m, name) for m in ("client4", "client5") for name in (*FEATURES, *(NEWER if m == "client5" else ()))]


@pytest.fixture(scope="module")
def benches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, int], Bench]]:
    """One cluster per version and number of groups, only the newest kept running."""
    with ExitStack() as stack:
        made: dict[tuple[str, int], Bench] = {}

        def bench_of(module: str, groups: int) -> Bench:
            java_home.built()
            if (module, groups) not in made:
                stack.close()
                made.clear()
                home = tmp_path_factory.mktemp(f"{module}-{groups}")
                stack.callback(shutil.rmtree, home, ignore_errors=True)
                cluster = stack.enter_context(cluster_for_clients(home / "cluster", groups=groups, **SETTINGS))
                java = stack.enter_context(java_home.driver(module, cluster.namesrv_address, home))
                made[module, groups] = Bench(java, cluster)
            return made[module, groups]

        yield bench_of


@pytest.mark.parametrize(("module", "feature"), ROWS)
def test_a_feature_with_a_leader_killed_in_the_middle(
    module: str, feature: str, benches: Callable[[str, int], Bench]
) -> None:
    _row(module, feature, 3, {**FEATURES, **NEWER}[feature], benches)


@pytest.mark.parametrize("module", ["client4", "client5"])
def test_with_one_replica_group_nothing_is_stored_twice(module: str, benches: Callable[[str, int], Bench]) -> None:
    """Java's own retry goes to another broker; with one group there is none, and the log recognises the message."""
    _row(module, "send + push, 10,000, one group", 1, long, benches)


def _row(
    module: str, feature: str, groups: int, measure: Callable[[Bench], Found], benches: Callable[[str, int], Bench]
) -> None:
    version = java_home.VERSIONS[module]
    try:
        at = benches(module, groups)
    except NotToBeHad as reason:
        record(Row(client=CLIENT, version=version, feature=feature, result=NOT_TO_BE_HAD, note=str(reason)))
        pytest.skip(str(reason))
    kills = at.killer.kills
    found = Found()
    try:
        found = measure(at)
    except BaseException as problem:  # whatever ended it: a row that did not come to its end has not passed
        found.problems.append(f"{type(problem).__name__}: {problem}".partition("\n")[0])
        raise
    finally:
        at.java.stop()
        at.killer.healed()
        found.expect(found.lost == 0, f"{found.lost} lost")
        found.expect(found.twice == 0, f"{found.twice} stored twice in one replica group")
        record(
            Row(
                client=CLIENT,
                version=version,
                feature=feature,
                result=FAILED if found.problems else PASSED,
                messages=found.messages,
                kills=at.killer.kills - kills,
                lost=found.lost,
                twice=found.twice,
                errors=found.errors,
                note="; ".join((*found.problems, *found.notes)),
            )
        )
    assert not found.problems, found.problems


def test_the_pinned_versions_are_those_of_the_modules() -> None:
    for module, version in java_home.VERSIONS.items():
        assert f"<rocketmq.version>{version}</rocketmq.version>" in (
            Path(java_home.PROJECT) / module / "pom.xml"
        ).read_text(encoding="utf-8")
