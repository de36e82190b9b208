"""Tags and the hash that an index unit carries for them.

The hash is Java's `String.hashCode` over UTF-16 units, sign-extended to 64 bits; 0 without a tag. It only preselects:
different tags may share it, so a consumer compares the tag itself. Codes in foreign heartbeats are not to be trusted
(C++ sends zeros, Go hashes UTF-8 bytes): compute them from the expression with `codes_of`.
"""

from __future__ import annotations

from functools import lru_cache

__all__ = ["codes_of", "java_hash", "tags_code", "tags_in"]


def java_hash(text: str) -> int:
    """`String.hashCode`: a signed 32-bit number."""
    h = 0
    if text.isascii():
        for unit in text.encode():
            h = (h * 31 + unit) & 0xFFFFFFFF
    else:
        data = text.encode("utf-16-be", "surrogatepass")
        for i in range(0, len(data), 2):
            h = (h * 31 + ((data[i] << 8) | data[i + 1])) & 0xFFFFFFFF
    return h - 0x1_0000_0000 if h >= 0x8000_0000 else h


@lru_cache(maxsize=4096)
def tags_code(tag: str | bytes | None) -> int:
    """The code of a message's TAGS value; 0 for none. Cached: real topics have few tags."""
    if not tag:
        return 0
    return java_hash(tag if isinstance(tag, str) else tag.decode("utf-8", "replace"))


def tags_in(expression: str) -> tuple[str, ...]:
    """The tags of a subscription expression such as `A || B`; empty means all (`*` or nothing)."""
    if expression.strip() in ("", "*"):
        return ()
    tags = [tag.strip() for tag in expression.split("||")]
    return tuple(dict.fromkeys(tag for tag in tags if tag))


def codes_of(expression: str) -> frozenset[int] | None:
    """The codes that a subscription expression lets through, or None when it lets everything through."""
    tags = tags_in(expression)
    return frozenset(tags_code(tag) for tag in tags) if tags else None
