"""Ops that the leader writes: what creates topics and consumer groups, and what may be written at all.

Ids are given here, out of the leader's view, in the same step that puts the op into the open batch: so an id is never
given twice. Facts about auto-creation: remoting protocol, "Send" (template TBW102, retry and dead-letter topics).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from broker.metadata.ops import LEVEL_OF, ConfigPut, GroupPut, Op, Scalar, TopicPut
from broker.metadata.settings import check_setting
from broker.metadata.tables import Overlaid
from broker.replication.requests import Refused
from trimq.wire.codes import ResponseCode

__all__ = ["TEMPLATE_TOPIC", "CreationRules", "check_ops", "create_group", "create_topic", "topic_change"]

TEMPLATE_TOPIC: Final = b"TBW102"
_RETRY: Final = "%RETRY%"
_DEAD: Final = "%DLQ%"
_INHERIT: Final = 1
_READ_WRITE: Final = 6
UNIT: Final = 1
UNIT_RETRY: Final = 2
"""Bits of a topic's sys flag (RocketMQ's TopicSysFlag): made by clients in unit mode, which name servers list apart."""


@dataclass(frozen=True, slots=True)
class CreationRules:
    """What may be created without being asked for."""

    auto_create_topic: bool = True
    auto_create_group: bool = True
    default_queues: int = 8
    """Most queues of an auto-created topic, as long as there is no template topic that says otherwise."""


def create_topic(
    tables: Overlaid,
    rules: CreationRules,
    name: bytes,
    default_topic: bytes,
    default_queues: int,
    *,
    unit: bool = False,
) -> TopicPut:
    """The op for the first message to an unknown topic. Raises `Refused` where creation is not allowed."""
    text = name.decode()
    if text.startswith(_RETRY):
        if tables.groups.get(text.removeprefix(_RETRY)) is None:
            raise Refused(
                ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST,
                f"consumer group {text.removeprefix(_RETRY)!r} does not exist",
            )
        return _new(tables, text, 1, _READ_WRITE, UNIT_RETRY if unit else 0)
    if text.startswith(_DEAD):
        return _new(tables, text, 1, _READ_WRITE)
    template = tables.topics.get(default_topic or TEMPLATE_TOPIC)
    usable = default_topic in (b"", TEMPLATE_TOPIC) if template is None else bool(template.perm & _INHERIT)
    if not rules.auto_create_topic or not usable:
        raise Refused(
            ResponseCode.TOPIC_NOT_EXIST,
            f"topic {text!r} does not exist and is not created by sending; create it first (updateTopic)",
        )
    most, perm = (rules.default_queues, _READ_WRITE | _INHERIT) if template is None else (
        template.write_queues, template.perm,
    )  # fmt: skip
    return _new(tables, text, max(1, min(default_queues, most)), perm & ~_INHERIT, UNIT if unit else 0)


def topic_change(
    tables: Overlaid,
    name: str,
    *,
    read_queues: int,
    write_queues: int,
    perm: int = _READ_WRITE,
    filter_type: int = 0,
    sys_flag: int = 0,
    order: bool = False,
    attributes: Mapping[str, str] | None = None,
) -> TopicPut:
    """The op that creates a topic or gives it these settings."""
    known = tables.topics.get(name.encode())
    tid = tables.topics.highest + 1 if known is None else known.tid
    return TopicPut(tid, name, read_queues, write_queues, perm, filter_type, sys_flag, order, dict(attributes or {}))


def create_group(
    tables: Overlaid,
    name: str,
    settings: Mapping[str, Scalar] | None = None,
    *,
    retry_queues: int = 1,
    unit: bool = False,
) -> list[Op]:
    """The ops that create a consumer group, with its retry topic, or give it these settings."""
    known = tables.groups.get(name)
    gid = tables.groups.next_id(name) if known is None else known.gid
    ops: list[Op] = [GroupPut(gid, name, dict(settings or {}))]
    retry = _RETRY + name
    if retry_queues and tables.topics.get(retry.encode()) is None:
        ops.append(_new(tables, retry, retry_queues, _READ_WRITE, UNIT_RETRY if unit else 0))
    return ops


def check_ops(ops: Sequence[Op], feature_level: int) -> None:
    """Raise `Refused` unless all of the ops may be written into this group's log."""
    for op in ops:
        if LEVEL_OF[op.code] > feature_level:
            raise Refused(
                ResponseCode.SYSTEM_ERROR,
                f"op {op.code} needs feature level {LEVEL_OF[op.code]}; the group's members know only {feature_level}",
            )
        if isinstance(op, ConfigPut):
            try:
                check_setting(op.key, op.value)
            except ValueError as problem:
                raise Refused(ResponseCode.INVALID_PARAMETER, str(problem)) from None


def _new(tables: Overlaid, name: str, queues: int, perm: int, sys_flag: int = 0) -> TopicPut:
    return TopicPut(tables.topics.highest + 1, name, queues, queues, perm, sys_flag=sys_flag)
