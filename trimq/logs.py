"""Log lines of the servers: one line per event, a constant phrase, then the facts as `key=value`.

Code logs `log.info("leader elected", extra={"term": 7})`; the standard formatter would print the phrase and swallow
the facts. Applications that embed the library keep their own logging set-up: only `__main__` modules call `setup`.
"""

from __future__ import annotations

import logging
import sys
from typing import TextIO

__all__ = ["FactsFormatter", "setup"]

_STANDARD = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {"message", "asctime", "taskName"}


class FactsFormatter(logging.Formatter):
    """`2031-05-01 12:00:00,123 INFO namesrv.server: listening  port=9876`"""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        facts = " ".join(f"{key}={_text(value)}" for key, value in vars(record).items() if key not in _STANDARD)
        line = super().formatMessage(record)
        return f"{line}  {facts}" if facts else line


def _text(value: object) -> str:
    """A value on one line; in quotes when it would not read as one word."""
    text = str(value)
    return text if text and text.isprintable() and not any(c in ' "=' for c in text) else repr(text)


def setup(level: int | str = logging.INFO, *, stream: TextIO | None = None) -> None:
    """Print the process's log to `stream` (standard error) from `level` on. Replaces an earlier set-up."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(FactsFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
