"""The live client table."""

from __future__ import annotations

from broker.metadata.clients import SILENCE_S, ClientTable, Consumer, Producer, Subscription


class FakeLink:
    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.sent: list[bytes] = []

    def send(self, frame: bytes) -> None:
        self.sent.append(frame)


def consumer(
    link: FakeLink, client_id: str, topics: dict[str, str], *, version: int = 1, seen: float = 0.0
) -> Consumer:
    return Consumer(
        link=link,
        client_id=client_id,
        language="JAVA",
        version=479,
        consume_type="CONSUME_PASSIVELY",
        message_model="CLUSTERING",
        from_where="CONSUME_FROM_LAST_OFFSET",
        subscriptions={topic: Subscription.of(topic, text, "TAG", version) for topic, text in topics.items()},
        seen=seen,
    )


def test_a_first_heartbeat_changes_the_group_and_a_repeated_one_does_not() -> None:
    table = ClientTable()
    link = FakeLink("a:1")
    assert table.put_consumer("g", consumer(link, "c1", {"T": "*"}))
    assert not table.put_consumer("g", consumer(link, "c1", {"T": "*"}))
    group = table.consumer_group("g")
    assert group is not None
    assert group.client_ids == ["c1"]


def test_a_newer_version_with_the_same_words_is_no_news_but_counts_for_later_pulls() -> None:
    table = ClientTable()
    link = FakeLink("a:1")
    table.put_consumer("g", consumer(link, "c1", {"T": "A"}, version=5))
    assert not table.put_consumer("g", consumer(link, "c1", {"T": "A"}, version=9))
    group = table.consumer_group("g")
    assert group is not None
    subscription = group.subscription("T", link)
    assert subscription is not None
    assert subscription.version == 9


def test_an_older_subscription_does_not_replace_a_newer_one() -> None:
    table = ClientTable()
    link = FakeLink("a:1")
    table.put_consumer("g", consumer(link, "c1", {"T": "A"}, version=9))
    assert not table.put_consumer("g", consumer(link, "c1", {"T": "B"}, version=3))
    group = table.consumer_group("g")
    assert group is not None
    subscription = group.subscription("T", link)
    assert subscription is not None
    assert subscription.expression == "A"


def test_members_with_different_subscriptions_each_keep_their_own_and_the_table_says_so() -> None:
    table = ClientTable()
    one, two = FakeLink("a:1"), FakeLink("b:1")
    table.put_consumer("g", consumer(one, "c1", {"T": "A"}))
    table.put_consumer("g", consumer(two, "c2", {"T": "B"}, version=2))
    group = table.consumer_group("g")
    assert group is not None
    assert group.conflicts() == {"T": ("A", "B")}
    first, second = group.subscription("T", one), group.subscription("T", two)
    assert first is not None
    assert second is not None
    assert (first.expression, second.expression) == ("A", "B")
    newest = group.subscription("T", None)
    assert newest is not None
    assert newest.expression == "B"


def test_a_closed_connection_leaves_all_its_groups() -> None:
    table = ClientTable()
    link, other = FakeLink("a:1"), FakeLink("b:1")
    table.put_consumer("g2", consumer(link, "c1", {}))
    table.put_consumer("g1", consumer(link, "c1", {}))
    table.put_consumer("g1", consumer(other, "c2", {}))
    table.put_producer("p", Producer(link, "c1", "JAVA", 1, 0.0))
    assert table.closed(link) == ["g1", "g2"]
    assert table.consumer_group("g2") is None
    assert table.producers("p") == []
    assert table.producer_groups() == []
    assert table.links("g1") == [other]
    assert table.closed(link) == []


def test_silence_drops_clients() -> None:
    table = ClientTable()
    link = FakeLink("a:1")
    table.put_consumer("g", consumer(link, "c1", {}, seen=10.0))
    table.put_producer("p", Producer(link, "c1", "JAVA", 1, 10.0))
    assert table.expire(10.0 + SILENCE_S) == []
    assert table.expire(10.1 + SILENCE_S) == ["g"]
    assert table.producers("p") == []


def test_a_heartbeat_without_subscriptions_keeps_them() -> None:
    table = ClientTable()
    link = FakeLink("a:1")
    table.put_consumer("g", consumer(link, "c1", {"T": "A"}))
    assert not table.put_consumer("g", consumer(link, "c1", {}), keep_subscriptions=True)
    group = table.consumer_group("g")
    assert group is not None
    assert list(group.subscriptions()) == ["T"]
    assert table.put_consumer("g", consumer(link, "c1", {}))
    assert list(group.subscriptions()) == []


def test_unregister_names_the_group_that_changed() -> None:
    table = ClientTable()
    link = FakeLink("a:1")
    table.put_consumer("g", consumer(link, "c1", {}))
    assert table.unregister(link, consumer_group="g", producer_group="") == ["g"]
    assert table.unregister(link, consumer_group="g", producer_group="p") == []


def test_an_expression_that_cannot_be_evaluated_is_kept_with_its_problem() -> None:
    subscription = Subscription.of("T", "||", "TAG", 1)
    assert subscription.filter is None
    assert "names no tag" in subscription.problem
    later = Subscription.of("T", "a > 1", "SQL92", 1)
    assert (later.filter, later.problem) == (None, ""), "compiled by the first pull"
