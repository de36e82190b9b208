"""What is measured: scenarios, and the steps in which subjects take them in turn.

A step starts its subjects side by side (ours and one peer, so that no idle third party takes the cores), then goes
round: every scenario, every subject, in an order that turns with the round. Steps stand in the order of what they tell,
since a run ends when its time is up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from bench import consume, processes, scale
from bench.peers import kafka, nats, rabbitmq, rocketmq, trimq
from bench.peers.base import Open

__all__ = ["SCENARIOS", "STEPS", "Scenario", "Step"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One workload for any subject."""

    name: str
    kind: str
    """`thin`, `pull`, `library`, or a fault: `kill`, `pause`."""
    body_bytes: int = 1024
    window: int = 256
    batch: int = 1
    queues: int = 1
    rate: float = 0.0
    """Messages a second of an open loop; 0 for a closed one."""
    seconds: float = 0.0
    """Instead of the run's own."""
    messages: int = 100_000
    """How many a pull reads in all."""

    @property
    def is_fault(self) -> bool:
        return self.kind in ("kill", "pause")


def _produce() -> list[Scenario]:
    found = []
    for size, called in ((100, "100 B"), (1024, "1 KiB")):
        for window in (1, 64, 256, 512, 2048):
            how = "one by one" if window == 1 else f"{window:,} in flight"
            found.append(Scenario(name=f"{called}, {how}", kind="thin", body_bytes=size, window=window))
        for batch in (32, 256):
            name = f"{called}, batches of {batch}, 16 in flight"
            found.append(Scenario(name=name, kind="thin", body_bytes=size, window=16, batch=batch))
    for queues in (8, 64):
        found.append(Scenario(name=f"1 KiB, 256 in flight, {queues} queues", kind="thin", queues=queues))
    return found


_OTHERS = (
    Scenario(name="pull 32 × 1 KiB", kind="pull", window=2, batch=32),
    Scenario(name="library, 1 KiB, 256 in flight", kind="library", seconds=2.5),
    Scenario(name="latency at 1,000/s", kind="library", rate=1_000, seconds=4.0),
    Scenario(name="latency at 5,000/s", kind="library", rate=5_000, seconds=4.0),
    Scenario(name="failover, kill -9", kind="kill", seconds=4.0),
    Scenario(name="failover, SIGSTOP", kind="pause", seconds=4.0),
)
SCENARIOS: Mapping[str, Scenario] = {each.name: each for each in (*_produce(), *_OTHERS)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    name: str
    subjects: Mapping[str, Open]
    takes: Sequence[tuple[Scenario, Sequence[str]]]
    """Which subjects take which scenario."""
    start_s: float = 8.0
    """What starting them costs, about."""
    rounds: int | None = None
    """Instead of the run's own."""
    alone: scale.Measure | None = None
    """Instead of subjects and scenarios: something about trimq that measures itself."""

    def needs_s(self, rounds: int, seconds: float) -> float:
        each = sum(len(who) * ((take.seconds or seconds) + (6.0 if take.is_fault else 0.8)) for take, who in self.takes)
        return self.start_s + (self.rounds or rounds) * each


def _opens() -> dict[str, Open]:
    durable = "fsync on a majority before the acknowledgement"
    memory = "acknowledged from a majority's page cache"
    return {
        "trimq": trimq.opener("trimq", durable),
        "trimq async": trimq.opener("trimq async", f"raftUnsafeAsyncFlush: {memory}", flush="async"),
        "NATS always": nats.opener("NATS always", f"2.15 R3, sync_interval always: {durable}", always=True),
        "NATS default": nats.opener("NATS default", f"2.15 R3: {memory}", always=False),
        "RocketMQ sync": rocketmq.opener(
            "RocketMQ sync",
            "5.3.3 SYNC_MASTER, SYNC_FLUSH, inSyncReplicas 2: master's fsync and one slave",
            dledger=False,
        ),
        "RocketMQ DLedger": rocketmq.opener("RocketMQ DLedger", f"5.3.3: {memory}", dledger=True),
        "RabbitMQ": rabbitmq.opener("RabbitMQ", f"3.10 quorum queue: {durable}"),
        "Kafka flush": kafka.opener("Kafka flush", f"3.9 acks=all, flush.messages=1: {durable}", flush=True),
        "Kafka default": kafka.opener("Kafka default", f"3.9 acks=all: {memory}", flush=False),
    }


OPENS: Mapping[str, Open] = _opens()


def _step(name: str, takes: Mapping[str, Sequence[str]], **more: float) -> Step:
    subjects = dict.fromkeys(subject for who in takes.values() for subject in who)
    made = Step(
        name=name,
        subjects={subject: OPENS[subject] for subject in subjects},
        takes=[(SCENARIOS[scenario], who) for scenario, who in takes.items()],
    )
    return replace(made, **more)  # type: ignore[arg-type]  # start_s and rounds only


def _against(peer: str, *scenarios: str, ours: str = "trimq") -> dict[str, Sequence[str]]:
    return dict.fromkeys(scenarios, (ours, peer))


def _longer(step: Step, seconds: float) -> Step:
    """A fault takes longer to show with some peers."""
    return replace(step, takes=[(replace(take, seconds=seconds), who) for take, who in step.takes])


_FULL = ("1 KiB, 256 in flight", "100 B, 256 in flight", "1 KiB, 2,048 in flight", "1 KiB, one by one")
_MORE = ("pull 32 × 1 KiB", "library, 1 KiB, 256 in flight")

STEPS: Sequence[Step] = (
    _step(
        "nats-always",
        _against("NATS always", *_FULL, *_MORE)
        | {"100 B, batches of 32, 16 in flight": ["trimq"], "100 B, 2,048 in flight": ["trimq", "NATS always"]},
    ),
    _step("nats-default", _against("NATS default", "1 KiB, 256 in flight", "1 KiB, one by one", ours="trimq async")),
    _step("rocketmq-sync", _against("RocketMQ sync", "1 KiB, 256 in flight", "1 KiB, one by one"), start_s=35),
    _step(
        "rocketmq-dledger",
        {"1 KiB, 256 in flight": ("trimq", "trimq async", "RocketMQ DLedger")}
        | _against("RocketMQ DLedger", "pull 32 × 1 KiB"),
        start_s=45,
    ),
    _step("failover", {"failover, kill -9": ["trimq"], "failover, SIGSTOP": ["trimq"]}, rounds=5),
    _step("rabbitmq", _against("RabbitMQ", *_FULL, *_MORE), start_s=40),
    _step("kafka-flush", _against("Kafka flush", "library, 1 KiB, 256 in flight"), start_s=30),
    _step("kafka-default", _against("Kafka default", "library, 1 KiB, 256 in flight", ours="trimq async"), start_s=30),
    Step(name="standalone", subjects={}, takes=[], start_s=20, alone=scale.standalone),
    Step(name="queues", subjects={}, takes=[], start_s=150, alone=scale.queues),
    Step(name="recovery", subjects={}, takes=[], start_s=100, alone=scale.recovery),
    Step(name="connections", subjects={}, takes=[], start_s=45, alone=scale.connections),
    Step(name="consume", subjects={}, takes=[], start_s=150, alone=consume.catch_up),
    Step(name="tail", subjects={}, takes=[], start_s=60, alone=consume.tail),
    Step(name="mixed", subjects={}, takes=[], start_s=40, alone=consume.mixed),
    Step(name="groups", subjects={}, takes=[], start_s=50, alone=processes.groups),
    Step(name="processes", subjects={}, takes=[], start_s=40, alone=processes.processes),
    Step(name="backlog", subjects={}, takes=[], start_s=110, alone=scale.backlog),
    _longer(_step("failover-nats", {"failover, kill -9": ["NATS always"]}, rounds=3), 12.0),
    _longer(_step("failover-rocketmq", {"failover, kill -9": ["RocketMQ DLedger"]}, rounds=2, start_s=45), 20.0),
    _step("latency", {name: ["trimq"] for name in ("latency at 1,000/s", "latency at 5,000/s")}, rounds=3),
    _step("produce", {scenario.name: ["trimq"] for scenario in _produce()}, rounds=3),
)
