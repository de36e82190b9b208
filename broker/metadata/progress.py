"""How far the broker's own services are: a function of op 11.

A service that moves messages (delay levels, timers, transactions) writes its cursor into the entry that carries what
it delivered. So nothing is delivered twice or skipped, whoever leads next.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

from broker.metadata.ops import Scalar

__all__ = ["ProgressTable"]


class ProgressTable:
    """(kind, key) → value, as the service that owns the kind wrote it."""

    __slots__ = ("values",)

    def __init__(self, values: MutableMapping[tuple[str, int | str], Scalar] | None = None) -> None:
        self.values: MutableMapping[tuple[str, int | str], Scalar] = {} if values is None else values

    def get(self, kind: str, key: int | str) -> Scalar | None:
        return self.values.get((kind, key))

    def of_kind(self, kind: str) -> dict[int | str, Scalar]:
        return {key: value for (each, key), value in self.values.items() if each == kind}

    def put(self, kind: str, key: int | str, value: Scalar) -> None:
        self.values[kind, key] = value

    def flat(self) -> dict[str, Any]:
        return {"values": dict(self.values)}

    @staticmethod
    def encode(flat: Mapping[str, Any]) -> dict[str, Any]:
        return {"values": [[kind, key, value] for (kind, key), value in flat["values"].items()]}

    def restore(self, data: Mapping[str, Any]) -> None:
        self.values.clear()
        for kind, key, value in data["values"]:
            self.values[kind, key] = value
