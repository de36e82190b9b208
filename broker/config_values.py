"""Reading one configuration value: text in, typed value out, or an error that names key, value and allowed range.

Every parser comes with the sentence that an operator reads when the value is wrong, so that message and check cannot
drift apart. All of them are pure; the files they come from are read by `broker.config_file`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

__all__ = [
    "DEFAULT_DELAY_LEVELS",
    "ConfigError",
    "Parser",
    "Peer",
    "address_list",
    "boolean",
    "choice",
    "delay_levels",
    "hours",
    "integer",
    "networks",
    "peers",
    "permission",
    "text",
]

E = TypeVar("E", bound=StrEnum)

DEFAULT_DELAY_LEVELS = "1s 5s 10s 30s 1m 2m 3m 4m 5m 6m 7m 8m 9m 10m 20m 30m 1h 2h"
"""`messageDelayLevel` as RocketMQ ships it; level 1 is the first."""

_UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_LEVEL = re.compile(r"^(\d+)(ms|s|m|h|d)$")
_SIZE = re.compile(r"^(-?\d+)\s*([kKmMgG]?)(i?[bB])?$")
_SIZE_FACTOR = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


class ConfigError(ValueError):
    """A setting that cannot be used: the text says which key, which value, and what is allowed."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One entry of `dLegerPeers`: where a replica's Raft listener is."""

    id: str
    host: str
    port: int

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Parser:
    """How one value is read, and the words for what is allowed."""

    read: Callable[[str], Any]  # Any: each key has its own type; `BrokerConfig`'s fields are typed
    allowed: str

    def parse(self, key: str, value: str) -> Any:
        """The typed value. Raises `ConfigError` naming key, value and allowed range."""
        try:
            return self.read(value.strip())
        except (ValueError, KeyError) as error:
            detail = f" ({error})" if isinstance(error, _Detail) else ""
            raise ConfigError(f"{key} = {value!r}: allowed is {self.allowed}{detail}") from None


class _Detail(ValueError):
    """Says more than the allowed range does."""


def integer(low: int, high: int, *, unit: str = "", sizes: bool = False) -> Parser:
    """A whole number within [low, high]; `sizes` also reads `64MiB`, `1g`."""

    def read(value: str) -> int:
        number = _size(value) if sizes else int(value)
        if not low <= number <= high:
            raise ValueError(value)
        return number

    return Parser(read, f"a whole number from {low} to {high}{' ' + unit if unit else ''}")


def _size(value: str) -> int:
    found = _SIZE.match(value)
    if found is None:
        raise ValueError(value)
    return int(found[1]) * _SIZE_FACTOR[found[2].lower()]


def boolean() -> Parser:
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    return Parser(lambda value: words[value.lower()], "true or false")


def choice(kind: type[E]) -> Parser:
    """One name of an enumeration; upper and lower case are the same."""
    by_name = {member.value.lower(): member for member in kind}
    return Parser(lambda value: by_name[value.lower()], " or ".join(member.value for member in kind))


def text(pattern: str = r"[^\x00-\x1f]*", allowed: str = "text without control characters") -> Parser:
    compiled = re.compile(pattern)

    def read(value: str) -> str:
        if compiled.fullmatch(value) is None:
            raise ValueError(value)
        return value

    return Parser(read, allowed)


def permission() -> Parser:
    """A broker's permission: 2 write only, 4 read only, 6 both."""

    def read(value: str) -> int:
        number = int(value)
        if number not in (2, 4, 6):
            raise ValueError(value)
        return number

    return Parser(read, "2 (write only), 4 (read only) or 6 (both)")


def address_list() -> Parser:
    """`host:port;host:port`, empty allowed. Split at the last colon, so that IPv6 hosts work."""

    def read(value: str) -> tuple[str, ...]:
        found = tuple(part.strip() for part in value.replace(",", ";").split(";") if part.strip())
        for part in found:
            _host_port(part)
        return found

    return Parser(read, "host:port;host:port;...")


def networks() -> Parser:
    """`10.0.0.7;10.1.0.0/16`, empty allowed: addresses and networks."""

    def read(value: str) -> tuple[str, ...]:
        parts = [part.strip() for part in value.replace(",", ";").split(";") if part.strip()]
        return tuple(str(ipaddress.ip_network(part)) for part in parts)

    return Parser(read, "addresses and networks, such as 10.0.0.7;10.1.0.0/16")


_ORIGIN = re.compile(r"https?://[^/\s;,]+/?|null|\*", re.ASCII | re.IGNORECASE)


def origins() -> Parser:
    """Web pages' origins, separated by `;` or `,`; `*` for all."""

    def read(value: str) -> tuple[str, ...]:
        found = tuple(part.strip() for part in value.replace(",", ";").split(";") if part.strip())
        for part in found:
            if not _ORIGIN.fullmatch(part):
                raise _Detail(f"{part!r} is no origin")
        return found

    return Parser(read, "http://host:port or https://host, several separated by ;, or *")


def peers() -> Parser:
    """`n0-host:40911;n1-host:40911`: the id ends at the first hyphen, so host names may contain hyphens."""

    def read(value: str) -> tuple[Peer, ...]:
        found: dict[str, Peer] = {}
        for part in (piece.strip() for piece in value.split(";")):
            if not part:
                continue
            name, hyphen, address = part.partition("-")
            if not hyphen or not name:
                raise _Detail(f"{part!r} has no id before its first hyphen")
            if name in found:
                raise _Detail(f"id {name!r} occurs twice")
            host, port = _host_port(address)
            found[name] = Peer(name, host, port)
        return tuple(found.values())

    return Parser(
        read, "id-host:port;id-host:port;... with every id once, for example n0-10.0.0.1:40911;n1-10.0.0.2:40911"
    )


def _host_port(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    host = host.strip("[]")
    if not colon or not host or not port.isdecimal() or not 0 <= int(port) <= 65535:
        raise _Detail(f"{address!r} is not host:port")
    return host, int(port)


def delay_levels() -> Parser:
    """`1s 5s 1m ...` → milliseconds per level; index 0 is level 1."""

    def read(value: str) -> tuple[int, ...]:
        levels: list[int] = []
        for word in value.split():
            found = _LEVEL.match(word)
            if found is None:
                raise _Detail(f"{word!r}")
            levels.append(int(found[1]) * _UNIT_MS[found[2]])
        if not 1 <= len(levels) <= 64:
            raise _Detail(f"{len(levels)} levels")
        return tuple(levels)

    return Parser(read, "1 to 64 delays such as 1s 5s 1m 2h, separated by spaces")


def hours() -> Parser:
    """`04` or `04;16`: hours of the day."""

    def read(value: str) -> tuple[int, ...]:
        found = tuple(sorted({int(part) for part in value.split(";") if part.strip()}))
        if not found or not all(0 <= hour <= 23 for hour in found):
            raise ValueError(value)
        return found

    return Parser(read, "hours of the day from 00 to 23, separated by ;")
