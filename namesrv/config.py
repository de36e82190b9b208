"""The name server's settings: RocketMQ's own keys, in a `.conf`/`.properties` file (`key=value` lines).

A bad value stops the start with key, value and allowed range. A key that we do not have (RocketMQ's thread counts, or
a typing mistake) is reported once by name: sample files start unchanged, and a mistake does not stay unnoticed.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

__all__ = ["ConfigError", "NamesrvConfig", "parse", "read", "to_properties"]


class ConfigError(Exception):
    """A setting that cannot be used; the text names key, value and what is allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamesrvConfig:
    """Defaults are RocketMQ's."""

    listen_port: int = 9876
    """0 takes a free one."""
    bind_address: str = "0.0.0.0"  # noqa: S104  (a server for a network)
    kv_config_path: str = "~/namesrv/kvConfig.json"
    order_message_enable: bool = False
    """Routes carry `orderTopicConf` from the key-value settings."""
    return_order_topic_config_to_broker: bool = True
    enable_all_topic_list: bool = True
    """Answer 206; off: "disable"."""
    enable_topic_list: bool = True
    """Answer 224, 304, 311-313."""
    scan_not_active_broker_interval: int = 5000
    """Milliseconds between two looks for brokers that fell silent."""
    admin_allow_from: str = ""
    """Addresses and networks (`10.0.0.7;10.1.0.0/16`), besides this machine, that may change what clients are told."""
    web_socket_enable: bool = True
    """The WebSocket gateway on listenPort + 4, where browsers ask for routes. Ours, as the next one."""
    web_socket_allowed_origins: tuple[str, ...] = ()
    """Web pages that may connect, besides those that this very address serves: `http://host:port;...` or `*`."""
    delete_topic_with_broker_registration: bool = False
    """Every broker's topic table is whole: what is missing from it is gone. Ours say so themselves."""


KEYS: Mapping[str, str] = {
    re.sub(r"_(.)", lambda found: found[1].upper(), field.name): field.name for field in fields(NamesrvConfig)
}
"""Key in the file -> field."""


def _integer(lowest: int, highest: int) -> Callable[[str, str], int]:
    def convert(key: str, text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = lowest - 1
        if not lowest <= value <= highest:
            raise ConfigError(f"{key}={text}: allowed is a whole number from {lowest} to {highest}")
        return value

    return convert


def _boolean(key: str, text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ConfigError(f"{key}={text}: allowed is true or false")
    return text.lower() == "true"


def _networks(key: str, text: str) -> str:
    try:
        return ";".join(str(ipaddress.ip_network(part.strip())) for part in text.split(";") if part.strip())
    except ValueError as error:
        raise ConfigError(f"{key}={text}: allowed are addresses and networks, joined by ; ({error})") from None


def _text(key: str, text: str) -> str:
    if not text or not text.isprintable():
        raise ConfigError(f"{key}={text!r}: a printable text is needed")
    return text


def _origins(key: str, text: str) -> tuple[str, ...]:
    found = tuple(part.strip() for part in text.replace(",", ";").split(";") if part.strip())
    for part in found:
        if part not in ("*", "null") and not re.fullmatch(r"https?://[^/\s]+/?", part):
            raise ConfigError(
                f"{key}={text}: allowed is http://host:port or https://host, several separated by ;, or *"
            )
    return found


_CONVERT: Mapping[str, Callable[[str, str], Any]] = {  # Any: the type of the field
    "listen_port": _integer(0, 65535),
    "bind_address": _text,
    "kv_config_path": _text,
    "order_message_enable": _boolean,
    "return_order_topic_config_to_broker": _boolean,
    "enable_all_topic_list": _boolean,
    "enable_topic_list": _boolean,
    "admin_allow_from": _networks,
    "scan_not_active_broker_interval": _integer(100, 60_000),
    "web_socket_enable": _boolean,
    "web_socket_allowed_origins": _origins,
    "delete_topic_with_broker_registration": _boolean,
}
assert _CONVERT.keys() == set(KEYS.values())


def parse(text: str, base: NamesrvConfig | None = None) -> tuple[NamesrvConfig, list[str]]:
    """Read `key=value` lines; returns the settings and the keys that were ignored. Raises `ConfigError`."""
    values: dict[str, Any] = {}
    ignored: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line[0] in "#!":
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not key:
            raise ConfigError(f"line {number}: {line!r} is not key=value")
        field = KEYS.get(key)
        if field is None:
            ignored.append(key)
        else:
            values[field] = _CONVERT[field](key, value)
    return replace(base or NamesrvConfig(), **values), ignored


def read(path: Path, base: NamesrvConfig | None = None) -> tuple[NamesrvConfig, list[str]]:
    """As `parse`, from a file; the error names the file."""
    try:
        return parse(path.read_text("utf-8"), base)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no text file: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def to_properties(config: NamesrvConfig) -> str:
    """The settings as text, as `getNamesrvConfig` shows them."""
    lines = []
    for key, field in sorted(KEYS.items()):
        value = getattr(config, field)
        text = str(value).lower() if isinstance(value, bool) else ";".join(value) if isinstance(value, tuple) else value
        lines.append(f"{key}={text}\n")
    return "".join(lines)
