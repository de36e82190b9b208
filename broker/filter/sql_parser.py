"""SQL92 subscriptions: from text to a closure over the properties of a message.

The grammar is that of RocketMQ's filter module, with its peculiarities: NOT and signs bind tighter than comparisons,
IN and the text operators take literals only, `<`, `>` and BETWEEN take numbers and properties, there is no arithmetic.

    condition  = and { OR and }
    and        = equality { AND equality }
    equality   = comparison { ( "=" | "<>" ) comparison | IS [ NOT ] NULL }
    comparison = unary { ( ">" | ">=" | "<" | "<=" ) unary
                       | [ NOT ] BETWEEN unary AND unary
                       | [ NOT ] IN "(" string { "," string } ")"
                       | [ NOT ] ( CONTAINS | STARTSWITH | ENDSWITH ) string }
    unary      = [ "+" | "-" | NOT ] unary | literal | property | "(" condition ")"

A condition is *compiled once* into nested closures; AND and OR chains are flat loops, so that neither parsing nor
evaluating recurses deeper than `DEPTH_MAX` levels of nesting. What an expression may cost is bounded by its length,
its nesting and the number of properties it looks at; nothing in it is a pattern that could be matched in two ways.

Written by hand: a grammar tool was measured and costs a broker's start more than the rest of its imports together
(docs/decisions), and these errors say what to write instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias, cast

from broker.filter.sql_lexer import END, SqlError, Token, tokens
from broker.filter.sql_values import Long, NoMatch, Value, compare, equal, order

__all__ = ["DEPTH_MAX", "LENGTH_MAX", "LOOKS_MAX", "Condition", "Look", "compile_sql"]

LENGTH_MAX: Final = 8_192
"""Characters of one expression."""
DEPTH_MAX: Final = 32
"""Nested parentheses, NOTs, signs, and comparisons of comparisons."""
LOOKS_MAX: Final = 256
"""Times that one evaluation may look at a property."""

_DOUBLE_MAX: Final = 1.7976931348623157e308
_DOUBLE_MIN: Final = 4.9e-324

Look: TypeAlias = "Callable[[str], str | None]"
"""The value of a property by name; None when the message has none."""
Evaluate: TypeAlias = "Callable[[Look], Value]"


@dataclass(frozen=True, slots=True)
class Condition:
    """A compiled expression."""

    evaluate: Callable[[Look], Value]
    """True, False or None (unknown). Raises `NoMatch` when the properties cannot be compared as the text asks."""
    names: frozenset[str]
    """The properties that it looks at."""
    looks: int
    """How often, at most."""

    def matches(self, look: Look) -> bool:
        """Whether a message with these properties is wanted: only a clear yes counts."""
        try:
            return self.evaluate(look) is True
        except NoMatch:
            return False


@dataclass(frozen=True, slots=True)
class _Part:
    """A parsed piece: how to evaluate it, and what the checks of the pieces around it need to know."""

    evaluate: Evaluate
    at: int
    depth: int = 0
    name: str | None = None
    """A property."""
    literal: bool = False
    value: Value = None
    """Of a literal."""
    boolean: bool = False
    """A condition, or TRUE, FALSE, NULL."""


def compile_sql(text: str) -> Condition:
    """Compile an expression. Raises `SqlError` with line, column and advice."""
    if len(text) > LENGTH_MAX:
        raise SqlError(text, LENGTH_MAX, f"the expression has {len(text)} characters, at most {LENGTH_MAX} are allowed")
    return _Parser(text).condition()


class _Parser:
    """Recursive descent over the tokens; bounded by `DEPTH_MAX`."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = tokens(text)
        self._next = 0
        self._depth = 0
        self._names: dict[str, None] = {}
        self._looks = 0

    def condition(self) -> Condition:
        if self._token.kind == END:
            raise self._error("the expression is empty: write a condition, such as price > 10")
        part = self._boolean(self._or())
        if self._token.kind != END:
            raise self._error(f"{_show(self._token)} is unexpected: expected AND, OR, a comparison or the end")
        return Condition(part.evaluate, frozenset(self._names), self._looks)

    # --- tokens

    @property
    def _token(self) -> Token:
        return self._tokens[self._next]

    def _take(self, *kinds: str) -> Token | None:
        token = self._tokens[self._next]
        if token.kind not in kinds:
            return None
        self._next += 1
        return token

    def _expect(self, kind: str, what: str) -> Token:
        token = self._take(kind)
        if token is None:
            raise self._error(f"expected {what}, found {_show(self._token)}")
        return token

    def _error(self, problem: str, at: int | None = None) -> SqlError:
        return SqlError(self._text, self._token.at if at is None else at, problem)

    def _boolean(self, part: _Part) -> _Part:
        if part.boolean:
            return part
        if part.name is None:
            raise self._error("this is a value, not a condition: compare it with something", part.at)
        # A property as a condition: never a boolean itself, since all properties are text.
        evaluate = part.evaluate
        return _Part(lambda look: None if evaluate(look) is None else False, part.at, part.depth, boolean=True)

    def _deeper(self, at: int, *parts: _Part) -> int:
        depth = 1 + max(part.depth for part in parts)
        if depth > DEPTH_MAX:
            raise self._error(f"nested more than {DEPTH_MAX} levels deep", at)
        return depth

    # --- grammar

    def _or(self) -> _Part:
        return self._chain("OR", self._and, _any_of)

    def _and(self) -> _Part:
        return self._chain("AND", self._equality, _all_of)

    def _chain(
        self, word: str, operand: Callable[[], _Part], joined: Callable[[Sequence[Evaluate]], Evaluate]
    ) -> _Part:
        first = operand()
        if self._token.kind != word:
            return first
        parts = [self._boolean(first)]
        while self._take(word):
            parts.append(self._boolean(operand()))
        depth = max(part.depth for part in parts) + 1
        return _Part(joined([part.evaluate for part in parts]), first.at, depth, boolean=True)

    def _equality(self) -> _Part:
        left = self._comparison()
        while True:
            token = self._take("=", "<>", "IS")
            if token is None:
                return left
            if token.kind == "IS":
                negated = self._take("NOT") is not None
                self._expect("NULL", "NULL or NOT NULL behind IS")
                evaluate = _is_null(left.evaluate, negated)
                left = _Part(evaluate, left.at, self._deeper(token.at, left), boolean=True)
            else:
                left = self._equal(left, self._comparison(), token)

    def _equal(self, left: _Part, right: _Part, token: Token) -> _Part:
        for part in (left, right):
            if part.literal and part.value is None:
                raise self._error(f"NULL cannot be compared by {token.text}: write IS NULL or IS NOT NULL", part.at)
        if left.literal and left.boolean and right.literal and not right.boolean:
            raise self._error("a boolean cannot be compared with a number or a string", right.at)
        evaluate = _equals(left, right)
        if token.kind == "<>":
            evaluate = _negated(evaluate)
        return _Part(evaluate, left.at, self._deeper(token.at, left, right), boolean=True)

    def _comparison(self) -> _Part:
        left = self._unary()
        while True:
            token = self._token
            if token.kind in _ORDERS:
                self._next += 1
                left = self._ordered(left, self._unary(), token)
                continue
            negated = token.kind == "NOT"
            word = self._tokens[self._next + 1].kind if negated else token.kind
            if word not in _WORDS:
                return left
            self._next += 2 if negated else 1
            left = self._worded(left, word, token, negated)

    def _ordered(self, left: _Part, right: _Part, token: Token) -> _Part:
        self._check_order(token.text, left, right)
        evaluate = _ordered(left, right, token.kind)
        return _Part(evaluate, left.at, self._deeper(token.at, left, right), boolean=True)

    def _check_order(self, word: str, *parts: _Part) -> None:
        for part in parts:
            if part.boolean or (part.literal and not _is_number(part.value)):
                raise self._error(
                    f"{word} compares numbers and properties only: use = or <> for anything else", part.at
                )

    def _worded(self, left: _Part, word: str, token: Token, negated: bool) -> _Part:
        if word == "BETWEEN":
            return self._between(left, token, negated)
        if word == "IN":
            wanted = self._strings()
            if left.name is None:
                raise self._error("IN wants a property on its left side", left.at)
            evaluate = _in(left.evaluate, wanted, negated)
        else:
            text = self._expect("string", f"a string in single quotes behind {word}").text
            evaluate = _TEXT_TESTS[word](left.evaluate, text, negated)
        return _Part(evaluate, left.at, self._deeper(token.at, left), boolean=True)

    def _strings(self) -> frozenset[str]:
        self._expect("(", "'(' behind IN")
        found = [self._expect("string", "a string in single quotes: IN lists hold strings only").text]
        while self._take(","):
            found.append(self._expect("string", "a string in single quotes: IN lists hold strings only").text)
        self._expect(")", "',' or ')'")
        return frozenset(found)

    def _between(self, value: _Part, token: Token, negated: bool) -> _Part:
        low = self._unary()
        self._expect("AND", "AND between the two limits of BETWEEN")
        high = self._unary()
        if not negated and low.literal and high.literal:
            if low.value is None or high.value is None:
                raise self._error("the limits of BETWEEN cannot be NULL", low.at)
            if _is_number(low.value) and _is_number(high.value) and compare(high.value, low.value) < 0:
                raise self._error("the first limit of BETWEEN must not be above the second", low.at)
        self._check_order("BETWEEN", value, low, high)
        depth = self._deeper(token.at, value, low, high)
        below, above = ("<", ">") if negated else (">=", "<=")
        sides = [_ordered(value, low, below), _ordered(value, high, above)]
        return _Part((_any_of if negated else _all_of)(sides), value.at, depth, boolean=True)

    def _unary(self) -> _Part:
        token = self._take("+", "-", "NOT")
        if token is None:
            return self._primary()
        self._enter(token)
        right = self._unary()
        self._depth -= 1
        if token.kind == "+":
            return right
        depth = self._deeper(token.at, right)
        if token.kind == "NOT":
            return _Part(_negated(self._boolean(right).evaluate), token.at, depth, boolean=True)
        return _Part(_minus(right), token.at, depth)

    def _enter(self, token: Token) -> None:
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise self._error(f"nested more than {DEPTH_MAX} levels deep", token.at)

    def _primary(self) -> _Part:
        token = self._token
        self._next += 1
        match token.kind:
            case "name":
                return self._property(token)
            case "string":
                return _literal(token.text, token.at)
            case "integer":
                return _literal(self._integer(token), token.at)
            case "float":
                return _literal(self._double(token), token.at)
            case "TRUE" | "FALSE":
                return _literal(token.kind == "TRUE", token.at, boolean=True)
            case "NULL":
                return _literal(None, token.at, boolean=True)
            case "(":
                self._enter(token)
                inside = self._or()
                self._expect(")", "')' for the '(' before")
                self._depth -= 1
                return inside
        self._next -= 1
        raise self._error(f"expected a property, a value or '(', found {_show(token)}")

    def _property(self, token: Token) -> _Part:
        self._looks += 1
        if self._looks > LOOKS_MAX:
            raise self._error(f"looks at properties more than {LOOKS_MAX} times", token.at)
        name = token.text
        self._names[name] = None
        return _Part(lambda look: look(name), token.at, name=name)

    def _integer(self, token: Token) -> int:
        digits = token.text.rstrip("lL")
        if len(digits) > 19 or int(digits) >= 1 << 63:
            raise self._error("the number does not fit 64 bits", token.at)
        value = int(digits)
        return value if value < 1 << 31 else Long(value)

    def _double(self, token: Token) -> float:
        value = float(token.text)
        if not _DOUBLE_MIN <= value <= _DOUBLE_MAX:
            raise self._error("the number is outside 4.9E-324 to 1.8E308: write 0 for zero", token.at)
        return value


def _show(token: Token) -> str:
    if token.kind == END:
        return "the end of the expression"
    return f"the string '{token.text}'" if token.kind == "string" else repr(token.text)


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# --- closures. Each takes `look` and gives a value; the common cases have one of their own.


def _literal(value: Value, at: int, *, boolean: bool = False) -> _Part:
    return _Part(lambda look: value, at, literal=True, value=value, boolean=boolean)


def _all_of(parts: Sequence[Evaluate]) -> Evaluate:
    def evaluate(look: Look) -> Value:
        unknown = False
        for part in parts:
            value = part(look)
            if value is False:
                return False
            if value is None:
                unknown = True
        return None if unknown else True

    return evaluate


def _any_of(parts: Sequence[Evaluate]) -> Evaluate:
    def evaluate(look: Look) -> Value:
        unknown = False
        for part in parts:
            value = part(look)
            if value is True:
                return True
            if value is None:
                unknown = True
        return None if unknown else False

    return evaluate


def _negated(part: Evaluate) -> Evaluate:
    def evaluate(look: Look) -> Value:
        value = part(look)
        return None if value is None else not value

    return evaluate


def _minus(part: _Part) -> Evaluate:
    if part.literal and _is_number(part.value):
        number = cast(float, part.value)
        value: Value = Long(-number) if isinstance(number, Long) else -number
        return lambda look: value
    inner = part.evaluate

    def evaluate(look: Look) -> Value:
        value = inner(look)
        if not _is_number(value):
            return None
        number = cast(float, value)
        return Long(-number) if isinstance(number, Long) else -number

    return evaluate


def _is_null(part: Evaluate, negated: bool) -> Evaluate:
    return lambda look: (part(look) is None) is not negated


def _in(part: Evaluate, wanted: frozenset[str], negated: bool) -> Evaluate:
    def evaluate(look: Look) -> Value:
        value = part(look)
        return None if value is None else (value in wanted) is not negated

    return evaluate


def _equals(left: _Part, right: _Part) -> Evaluate:
    one, two = left.evaluate, right.evaluate
    if left.name is not None and right.literal and isinstance(right.value, str):
        wanted = right.value

        def evaluate(look: Look) -> Value:
            value = one(look)
            return None if value is None else value == wanted

        return evaluate
    return lambda look: equal(one(look), two(look))


_ORDERS: Final[dict[str, Callable[[int], bool]]] = {
    ">": lambda sign: sign > 0,
    ">=": lambda sign: sign >= 0,
    "<": lambda sign: sign < 0,
    "<=": lambda sign: sign <= 0,
}


def _ordered(left: _Part, right: _Part, word: str) -> Evaluate:
    one, two, answers = left.evaluate, right.evaluate, _ORDERS[word]

    def evaluate(look: Look) -> Value:
        sign = order(one(look), two(look))
        return None if sign is None else answers(sign)

    return evaluate


def _text_test(holds: Callable[[str, str], bool]) -> Callable[[Evaluate, str, bool], Evaluate]:
    def make(part: Evaluate, wanted: str, negated: bool) -> Evaluate:
        def evaluate(look: Look) -> Value:
            if not wanted:
                return False
            value = part(look)
            return isinstance(value, str) and holds(value, wanted) is not negated

        return evaluate

    return make


_TEXT_TESTS: Final = {
    "CONTAINS": _text_test(lambda value, wanted: wanted in value),
    "STARTSWITH": _text_test(str.startswith),
    "ENDSWITH": _text_test(str.endswith),
}

_WORDS: Final = frozenset({"BETWEEN", "IN", *_TEXT_TESTS})
