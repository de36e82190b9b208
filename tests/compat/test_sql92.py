"""SQL92 conditions against the answers of RocketMQ's own filter module: 356 expressions, 32 sets of properties each.

`sql92.json` was made by `Sql92Reference.java`: conditions written by hand for every rule and every oddity, and random
ones of the grammar. 18,000 more random ones, with six sets of properties each, agreed when this was written.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from broker.filter.sql_lexer import SqlError
from broker.filter.sql_parser import Condition, compile_sql
from broker.filter.sql_values import NoMatch

DATA: dict[str, Any] = json.loads((Path(__file__).parent / "sql92.json").read_text("utf-8"))
PROPERTIES: list[dict[str, str]] = DATA["properties"]


def letter(condition: Condition, properties: dict[str, str]) -> str:
    try:
        value = condition.evaluate(properties.get)
    except NoMatch:
        return "X"
    return {True: "T", False: "F", None: "N"}[value]  # type: ignore[index]  # anything else is a KeyError: a failure


def answers(expression: str) -> str:
    try:
        condition = compile_sql(expression)
    except SqlError:
        return "E"
    return "".join(letter(condition, properties) for properties in PROPERTIES)


def test_there_are_at_least_two_hundred_expressions_and_all_kinds_of_answers() -> None:
    letters = "".join(answer for _, answer in DATA["answers"])
    assert len(DATA["answers"]) > 200
    assert min(letters.count(each) for each in "TFNXE") > 50


def test_every_expression_gives_rocketmqs_answers() -> None:
    different = {
        expression: (expected, got)
        for expression, expected in DATA["answers"]
        if (got := answers(expression)) != expected
    }
    assert not different


@pytest.mark.parametrize(
    "expression", ["a LIKE 'x%'", "a-b = 5", "a = 5 b = 6", "a = 5)", "a = 0123", "a = 5 and b c", "a = 1 'x'"]
)
def test_what_rocketmq_silently_ignores_is_refused_here(expression: str) -> None:
    """There the text behind `a` counts for nothing, and the consumer waits for messages that never match."""
    with pytest.raises(SqlError, match="unexpected"):
        compile_sql(expression)
