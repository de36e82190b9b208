"""The words of a SQL92 subscription, each with its place in the text.

The lexical rules are those of RocketMQ's filter module (its `SelectorParser` grammar): keywords in any case, property
names of letters, digits, `_` and `$` whose case counts, strings in single quotes with `''` for a quote, decimal and
floating literals, `--` and `/* */` comments. Unlike there, whatever is no word is an error with its place, also behind
a complete condition: RocketMQ stops reading there, so `a LIKE 'x'` quietly becomes `a`, which no message matches.

Linear in the length of the text, whatever the text: no pattern here can be matched in two ways.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from broker.filter.tags import FilterError

__all__ = ["END", "KEYWORDS", "SqlError", "Token", "tokens"]

END: Final = "end"

KEYWORDS: Final = frozenset(
    ["NOT", "AND", "OR", "BETWEEN", "IN", "TRUE", "FALSE", "NULL", "IS", "CONTAINS", "STARTSWITH", "ENDSWITH"]
)  # also words that cannot be property names


class Token(NamedTuple):
    """One word."""

    kind: str
    """A keyword, an operator, or one of `name`, `string`, `integer`, `float`, `end`."""
    text: str
    """As it was written; of a string what it means."""
    at: int
    """Index of its first character."""


class SqlError(FilterError):
    """An expression that cannot be used; says where and what to write instead."""

    def __init__(self, text: str, at: int, problem: str) -> None:
        line = text.count("\n", 0, at) + 1
        column = at - (text.rfind("\n", 0, at) + 1) + 1
        near = " ".join(text[max(0, at - 12) : at + 20].split())
        super().__init__(f"line {line}, column {column}: {problem}" + (f" (near: {near})" if near else ""))
        self.at = at


_WORD: Final = re.compile(
    r"(?P<space>[ \t\n\r\f]+)"
    r"|(?P<float>[0-9]+(?:\.[0-9]*(?:[eE][+-]?[0-9]+)?|[eE][+-]?[0-9]+)|\.[0-9]+(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<integer>(?:0|[1-9][0-9]*[lL]?))"
    r"|(?P<name>[A-Za-z_$][A-Za-z0-9_$]*)"
    r"|(?P<operator><>|<=|>=|[=<>(),+-])",
    re.ASCII,
)


def tokens(text: str) -> list[Token]:
    """All words of the text, `end` last. Raises `SqlError` at the first character that begins none."""
    found: list[Token] = []
    at, end = 0, len(text)
    while at < end:
        if text.startswith(("--", "/*"), at):
            at = _comment(text, at)
            continue
        if text[at] == "'":
            token, at = _string(text, at)
            found.append(token)
            continue
        match = _WORD.match(text, at)
        if match is None:
            raise SqlError(text, at, f"{text[at]!r} has no meaning here{_ADVICE.get(text[at], '')}")
        kind, word = match.lastgroup or "", match[0]
        if kind == "name" and word.upper() in KEYWORDS:
            kind = word.upper()
        elif kind == "operator":
            kind = word
        if kind != "space":
            found.append(Token(kind, word, at))
        at = match.end()
    found.append(Token(END, "", end))
    return found


_ADVICE: Final = {
    '"': ": strings stand in single quotes",
    "!": ": write <> for not equal",
    "&": ": write AND",
    "|": ": write OR",
    ".": ": a property name has letters, digits, _ and $",
    "*": ": there is no arithmetic in a filter",
    "/": ": there is no arithmetic in a filter",
    "%": ": there is no arithmetic in a filter",
}


def _comment(text: str, at: int) -> int:
    """Where the text goes on behind a comment; one that begins with `--` may end with the text."""
    if text[at] == "-":
        stops = [stop for stop in (text.find("\n", at), text.find("\r", at)) if stop >= 0]
        return min(stops) + 1 if stops else len(text)
    stop = text.find("*/", at + 2)
    if stop < 0:
        raise SqlError(text, at, "the comment that begins here has no end: close it with */")
    return stop + 2


def _string(text: str, at: int) -> tuple[Token, int]:
    stop = text.find("'", at + 1)
    while stop >= 0 and text.startswith("'", stop + 1):
        stop = text.find("'", stop + 2)
    if stop < 0:
        raise SqlError(text, at, "the string that begins here has no end: close it with '")
    return Token("string", text[at + 1 : stop].replace("''", "'"), at), stop + 1
