"""Topics, groups and statistics: the headers of codes 17, 202, 203, 208 (21, 28, 200 and 201 have none)."""

from __future__ import annotations

from trimq.wire.headers.base import I32, Header

__all__ = [
    "ConsumeStatsHeader",
    "ConsumerConnectionHeader",
    "CreateTopicHeader",
    "GroupStatusHeader",
    "TopicStatsHeader",
]


class CreateTopicHeader(Header, frozen=True, kw_only=True):
    """Code 17: create or change a topic."""

    quiet = frozenset({"auto"})

    topic: str
    default_topic: str = "TBW102"
    read_queue_nums: I32
    write_queue_nums: I32
    perm: I32
    """Bits: 1 inherit, 2 write, 4 read."""
    topic_filter_type: str = "SINGLE_TAG"
    topic_sys_flag: I32 = 0
    order: bool = False
    attributes: str = ""
    """Changes, joined by commas: `+name=value`, `-name`."""
    force: bool | None = None
    auto: bool = False
    """Ours: create it as a send to an unknown topic would, where that is allowed; leave one that exists as it is."""


class TopicStatsHeader(Header, frozen=True, kw_only=True):
    """Code 202; the answer is a `TopicStatsTable`."""

    topic: str


class ConsumerConnectionHeader(Header, frozen=True, kw_only=True):
    """Code 203; the answer is a `ConsumerConnection`, or code 206 when nobody is connected."""

    consumer_group: str


class ConsumeStatsHeader(Header, frozen=True, kw_only=True):
    """Code 208; the answer is a `ConsumeStats`."""

    consumer_group: str
    topic: str = ""
    topic_list: str = ""
    """Topics, joined by `;`."""

    def topics(self) -> list[str]:
        """The topics asked for; empty: all that the group has offsets for."""
        names = [name for name in self.topic_list.split(";") if name]
        return names or ([self.topic] if self.topic else [])


class GroupStatusHeader(Header, frozen=True, kw_only=True):
    """Code 9001 (ours)."""

    group: str = ""
    """Replica group (brokerName); empty: the one that this address serves."""
