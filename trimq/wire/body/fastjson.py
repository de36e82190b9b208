"""Read the JSON that Java programs really write: fastjson 1.x leaves the standard in three places.

* Integer map keys stand without quotes: `{0:"10.0.0.1:10911"}`; names too, in programs that switched them off.
* A map whose keys are objects has raw objects as keys: `{{"queueId":3,"topic":"T"}:{...}}`.
* The second appearance of one object is a reference: `{"$ref":"$.brokerAddrTable.a"}`, also as a key.

`parse` reads all of that, and plain JSON, into dicts with text keys: an integer key becomes its decimal text, an object
key its compact JSON with sorted names. So does a key that was written as a string holding an object's JSON, the form
that this project writes; after parsing the two look alike. It is the second try of `decode_body`, not a hot path.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from trimq.errors import ProtocolError
from trimq.wire.header_json import DECODE_ERRORS

__all__ = ["Value", "object_key", "parse"]

Value = dict[str, "Value"] | list["Value"] | str | int | float | bool | None

_MAX_DEPTH: Final = 64
_MAX_INT_DIGITS: Final = 19
_SPACE: Final = re.compile(r"[ \t\r\n]*")
_NUMBER: Final = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?", re.ASCII)
_STRING: Final = re.compile(r'"(?:[^"\\\x00-\x1f]|\\.)*"')
_NAME: Final = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*", re.ASCII)
_PATH_STEP: Final = re.compile(r"\.([^.\[\]]+)|\[([0-9]{1,6})\]")
_WORDS: Final[dict[str, Value]] = {"true": True, "false": False, "null": None}


def parse(data: bytes) -> Value:
    """Read a body. Raises `ProtocolError` for anything that neither JSON nor fastjson would write."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ProtocolError(f"JSON body is not UTF-8: {error}") from None
    reader = _Reader(text)
    value = reader.value(0)
    reader.end()
    return _resolve(value, value, 0) if reader.references else value


def object_key(value: object) -> str:
    """The text that stands for an object used as a key: compact JSON, names sorted."""
    return msgspec.json.encode(value, order="sorted").decode()


class _Reader:
    """Recursive descent over the text; `at` is where the next token begins."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.references = False

    def fail(self, what: str) -> ProtocolError:
        return ProtocolError(f"JSON body: {what} at character {self.at}: {self.text[self.at : self.at + 20]!r}")

    def skip(self) -> str:
        """Step over white space; the character found, or "" at the end."""
        match = _SPACE.match(self.text, self.at)
        assert match is not None
        self.at = match.end()
        return self.text[self.at : self.at + 1]

    def end(self) -> None:
        if self.skip():
            raise self.fail("trailing characters")

    def expect(self, wanted: str) -> None:
        if self.skip() != wanted:
            raise self.fail(f"{wanted!r} wanted")
        self.at += 1

    def value(self, depth: int) -> Value:
        if depth > _MAX_DEPTH:
            raise self.fail(f"more than {_MAX_DEPTH} levels")
        first = self.skip()
        if first == "{":
            return self.object(depth)
        if first == "[":
            return self.array(depth)
        if first == '"':
            return self.string()
        for word, meaning in _WORDS.items():
            if self.text.startswith(word, self.at):
                self.at += len(word)
                return meaning
        return self.number()

    def string(self) -> str:
        match = _STRING.match(self.text, self.at)
        if match is None:
            raise self.fail("a string that does not end")
        try:
            value = msgspec.json.decode(match.group().encode(), type=str)
        except DECODE_ERRORS:
            raise self.fail("a bad string") from None
        self.at = match.end()
        return value

    def number(self) -> int | float:
        match = _NUMBER.match(self.text, self.at)
        if match is None:
            raise self.fail("a value wanted")
        self.at = match.end()
        digits = match.group()
        if match.group(1) is None and match.group(2) is None and len(digits.lstrip("-")) <= _MAX_INT_DIGITS:
            return int(digits)
        number = float(digits)
        if number in (float("inf"), float("-inf")):
            raise self.fail("a number out of range")
        return number

    def array(self, depth: int) -> Value:
        self.at += 1
        items: list[Value] = []
        if self.skip() == "]":
            self.at += 1
            return items
        while True:
            items.append(self.value(depth + 1))
            if self.skip() == ",":
                self.at += 1
                continue
            self.expect("]")
            return items

    def object(self, depth: int) -> Value:
        self.at += 1
        pairs: dict[str, Value] = {}
        if self.skip() == "}":
            self.at += 1
            return pairs
        while True:
            key = self.key(depth)
            self.expect(":")
            pairs[key] = self.value(depth + 1)
            if key == "$ref":
                self.references = True
            if self.skip() == ",":
                self.at += 1
                continue
            self.expect("}")
            return pairs

    def key(self, depth: int) -> str:
        first = self.skip()
        if first == '"':
            return _canonical(self.string())
        if first == "{":
            return object_key(self.value(depth + 1))
        name = _NAME.match(self.text, self.at)
        if name is not None:
            self.at = name.end()
            return name.group()
        number = self.number()
        if isinstance(number, float):
            raise self.fail("a fraction as a key")
        return str(number)


def _canonical(key: str) -> str:
    """A string key that holds an object's JSON, in the same form as a raw object key."""
    if not key.startswith("{"):
        return key
    try:
        value = msgspec.json.decode(key)
    except DECODE_ERRORS:
        return key
    return object_key(value) if isinstance(value, dict) else key


def _resolve(value: Value, root: Value, depth: int) -> Value:
    """Put in what references point to. A reference that leads nowhere, or to another one, is left as it is."""
    if depth > _MAX_DEPTH:
        raise ProtocolError("JSON body: references nest too deeply")
    if isinstance(value, list):
        return [_resolve(item, root, depth + 1) for item in value]
    if not isinstance(value, dict):
        return value
    path = value.get("$ref")
    if len(value) == 1 and isinstance(path, str):
        found = _follow(path, root)
        return value if found is None else found
    return {key: _resolve(item, root, depth + 1) for key, item in value.items()}


def _follow(path: str, root: Value) -> Value:
    """What `$.a.b[0]` names, or None. Nothing that contains further references is handed out: it could be a circle."""
    if not path.startswith("$"):
        return None
    at, value = 1, root
    while at < len(path):
        step = _PATH_STEP.match(path, at)
        if step is None:
            return None
        name, number = step.groups()
        if name is not None and isinstance(value, dict) and name in value:
            value = value[name]
        elif number is not None and isinstance(value, list) and int(number) < len(value):
            value = value[int(number)]
        elif number is not None and isinstance(value, dict) and number in value:
            value = value[number]
        else:
            return None
        at = step.end()
    return None if _has_reference(value) else value


def _has_reference(value: Value) -> bool:
    if isinstance(value, dict):
        return "$ref" in value or any(_has_reference(item) for item in value.values())
    return isinstance(value, list) and any(_has_reference(item) for item in value)
