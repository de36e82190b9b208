"""OpenTelemetry's context travels with a message, as W3C `traceparent` and `tracestate` properties.

Nothing to switch on: where the application uses OpenTelemetry (its API is imported already), a send carries the context
of the current span, and a message's block runs in the context that came with it, so that spans begun in a handler are
children of the sender's. Applications without it pay one look into a dictionary per message.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

__all__ = ["attach", "carried", "detach"]

_API = "opentelemetry.trace"
_NONE: Mapping[str, str] = {}


def carried() -> Mapping[str, str]:
    """The properties that carry the current context; empty when there is none."""
    if _API not in sys.modules:
        return _NONE
    from opentelemetry.propagate import inject

    carrier: dict[str, str] = {}
    inject(carrier)
    return carrier


def attach(properties: Mapping[str, str]) -> object:
    """Enter the context that came with a message; give what is returned to `detach`. None: there was none."""
    if "traceparent" not in properties or _API not in sys.modules:
        return None
    import opentelemetry.context as context
    from opentelemetry.propagate import extract

    return context.attach(extract(properties))


def detach(token: Any) -> None:  # Any: OpenTelemetry's own token
    """Leave a context that `attach` entered."""
    if token is not None:
        import opentelemetry.context as context

        context.detach(token)
