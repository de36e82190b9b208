"""The table of held pulls, and tag filters."""

from __future__ import annotations

import pytest

from broker.filter.tags import ALL, FilterError, parse_tags
from broker.service.hold import HeldPull, HoldTable
from trimq.message.tags import tags_code
from trimq.wire.codes import SerializeType


class Reply:
    peer = "c:1"
    local = "b:1"

    def send(self, frame: bytes) -> None:
        raise AssertionError("the table sends nothing")


def pull(reply: Reply, key: int, deadline: float) -> HeldPull:
    return HeldPull(
        reply=reply,
        opaque=1,
        serialize=SerializeType.JSON,
        group="g",
        topic="T",
        key=key,
        offset=0,
        filter=ALL,
        max_count=32,
        max_bytes=1024,
        deadline=deadline,
    )


def test_pulls_of_touched_queues_are_released_oldest_first() -> None:
    table = HoldTable(total_max=10)
    reply = Reply()
    first, second, other = pull(reply, 7, 10.0), pull(reply, 7, 11.0), pull(reply, 8, 10.0)
    for each in (first, second, other):
        assert table.add(each)
    assert 7 in table
    assert table.take([7, 9]) == [first, second]
    assert 7 not in table
    assert len(table) == 1


def test_deadlines_release_what_is_due_and_nothing_else() -> None:
    table = HoldTable(total_max=10)
    reply = Reply()
    soon, late = pull(reply, 1, 10.0), pull(reply, 1, 20.0)
    table.add(late)
    table.add(soon)
    assert table.due(9.9) == []
    assert table.due(10.2) == [soon]
    assert table.due(10.3) == []
    assert table.due(100.0) == [late]
    assert len(table) == 0


def test_a_pull_may_be_held_again_after_a_look() -> None:
    table = HoldTable(total_max=10)
    reply = Reply()
    each = pull(reply, 1, 10.0)
    for _ in range(3):
        assert table.add(each)
        assert table.take([1]) == [each]
    assert table.add(each)
    assert table.due(10.2) == [each]


def test_limits_in_all_and_per_connection() -> None:
    table = HoldTable(total_max=3, per_link_max=2)
    one, two = Reply(), Reply()
    assert table.add(pull(one, 1, 1.0))
    assert table.add(pull(one, 1, 1.0))
    assert not table.add(pull(one, 1, 1.0))
    assert table.add(pull(two, 1, 1.0))
    assert not table.add(pull(two, 1, 1.0))
    table.closed(one)
    assert table.waiting(1) == 1
    assert len(table.take_all()) == 1
    assert len(table) == 0


@pytest.mark.parametrize("text", ["", "*", " * ", "A || *"])
def test_everything(text: str) -> None:
    assert parse_tags(text).codes is None


def test_codes_are_computed_from_the_text() -> None:
    parsed = parse_tags(" A ||B|| A ")
    assert parsed.tags == ("A", "B")
    assert parsed.codes == frozenset({tags_code("A"), tags_code("B")})


@pytest.mark.parametrize(("text", "kind"), [("||", "TAG"), ("a > 1", "SQL92")])
def test_what_is_no_tag_expression(text: str, kind: str) -> None:
    with pytest.raises(FilterError):
        parse_tags(text, kind)
