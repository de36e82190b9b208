"""Configuration files: Java properties (`.conf`, `.properties`) and TOML, told apart by what they contain.

A RocketMQ sample file is a Java properties file; a TOML file with the same keys at its top level works as well. Either
way the result is text by key, which `broker.config` reads and checks. Nothing here reads the environment.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path

from broker.config import ConfigError, Loaded, parse_settings

__all__ = ["load_config", "read_properties", "read_settings", "read_toml"]


def load_config(path: Path, *, defaults: Mapping[str, str] | None = None) -> Loaded:
    """Read, parse and check one file. Raises `ConfigError` that begins with the file's name."""
    try:
        return parse_settings(read_settings(path), defaults=defaults)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def read_settings(path: Path) -> dict[str, str]:
    """Key → text. `.toml` is TOML, everything else properties."""
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError("is not UTF-8 text") from None
    return read_toml(content) if path.suffix == ".toml" else read_properties(content)


def read_toml(content: str) -> dict[str, str]:
    """Top-level keys with their values as text; lists are joined by semicolons, as RocketMQ writes them."""
    try:
        table = tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"is not TOML: {error}") from None
    found: dict[str, str] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            raise ConfigError(f"[{key}]: keys stand at the top level, without tables")
        found[key] = ";".join(_text(item) for item in value) if isinstance(value, list) else _text(value)
    return found


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


_ESCAPES = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}


def read_properties(content: str) -> dict[str, str]:
    """Java's properties format: `key=value`, `key: value`, `#` and `!` comments, a backslash continues a line.

    Raises `ConfigError` for a line without a value separator, which in practice is a typing mistake.
    """
    found: dict[str, str] = {}
    pending = ""
    for number, line in enumerate(content.lstrip("\ufeff").splitlines(), start=1):
        stripped = line.strip()
        if not pending and (not stripped or stripped[0] in "#!"):
            continue
        joined = pending + stripped
        if (len(joined) - len(joined.rstrip("\\"))) % 2:
            pending = joined[:-1]
            continue
        pending = ""
        key, value = _split(joined, number)
        found[_unescape(key)] = _unescape(value)
    if pending:
        raise ConfigError("ends within a continued line")
    return found


def _split(line: str, number: int) -> tuple[str, str]:
    at = 0
    while at < len(line) and line[at] not in "=: \t":
        at += 2 if line[at] == "\\" else 1
    key, rest = line[:at], line[at:].lstrip()
    if rest[:1] in ("=", ":"):
        return key, rest[1:].strip()
    if rest:
        return key, rest
    raise ConfigError(f"line {number}: {line!r} has no value; write key=value")


def _unescape(value: str) -> str:
    if "\\" not in value:
        return value
    parts: list[str] = []
    at = 0
    while at < len(value):
        if value[at] != "\\" or at + 1 == len(value):
            parts.append(value[at])
            at += 1
            continue
        sign = value[at + 1]
        if sign == "u" and len(code := value[at + 2 : at + 6]) == 4:
            try:
                parts.append(chr(int(code, 16)))
            except ValueError:
                raise ConfigError(f"\\u{code} is not a Unicode escape") from None
            at += 6
            continue
        parts.append(_ESCAPES.get(sign, sign))
        at += 2
    return "".join(parts)
