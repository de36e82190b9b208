"""Every error that trimq raises on purpose: one tree, few leaves, each saying whose fault it was and what to do.

    TrimqError                  .advice, .retriable, .refresh_route
    ├── BadInput                bytes or text from outside that nobody can use: the peer's fault
    │   └── ProtocolError       a frame, header or body that breaks the wire format; ends that connection
    │       ├── FrameTooLarge
    │       └── RecordError     a stored message, batch body, id or compressed body that breaks its format
    ├── BadRequest (ValueError) our caller's fault: wrong name, too large, contradictory arguments
    │   └── BadName
    ├── BrokerError             the server refused: .code and .remark as it sent them
    ├── NoRoute                 a link is missing: name server, topic, permission or broker
    ├── NotStored               a send that surely was not stored: anything may be sent again, anywhere
    ├── SendUnknown             a send without an answer: .id; send the same Message again
    ├── NoReply                 a request that nobody answered in time: .id; it may be or have been processed
    ├── Busy                    the server asks for patience: .retry_after seconds
    ├── Denied                  credentials or permissions
    └── Disconnected            a connection ended while it was needed: the request may have arrived
        └── ConnectFailed       it could not even be made: nothing was sent

Applications catch leaves; servers catch `BadInput` at the edge of a connection. Errors are translated once, where a
refusal or a lost connection becomes one of these; the cause stays attached (`raise ... from`).
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "BadInput",
    "BadName",
    "BadRequest",
    "BrokerError",
    "Busy",
    "ConnectFailed",
    "Denied",
    "Disconnected",
    "FrameTooLarge",
    "NoReply",
    "NoRoute",
    "NotStored",
    "ProtocolError",
    "RecordError",
    "SendUnknown",
    "TrimqError",
]


class TrimqError(Exception):
    """The root. `str()` is the message followed by the advice, so that a bare traceback already helps."""

    default_advice: ClassVar[str] = ""
    retriable: ClassVar[bool] = False
    """The same call may succeed if it is simply made again."""
    refresh_route: ClassVar[bool] = False
    """The route should be asked for again before the next try."""

    def __init__(self, message: str = "", *, advice: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.advice: str = self.default_advice if advice is None else advice

    def __str__(self) -> str:
        return f"{self.message} ({self.advice})" if self.advice else self.message


class BadInput(TrimqError):
    """Bytes or text from outside that cannot be understood. Never an assertion: the message carries the value."""


class ProtocolError(BadInput):
    """A peer broke the wire format. Whoever reads that connection closes it with one log line."""


class FrameTooLarge(ProtocolError):
    """The length word announces more than the limit; raised before anything of the frame is kept."""


class RecordError(ProtocolError):
    """A stored message, a batch body, a message id or a compressed body is damaged or cut short."""


class BadRequest(TrimqError, ValueError):
    """The call itself cannot work, whatever the cluster does."""

    default_advice = "correct the arguments; trying again cannot help"


class BadName(BadRequest):
    """A topic or group name that cannot exist."""

    default_advice = "use letters, digits, '-', '_', '%' and '|'"


class BrokerError(TrimqError):
    """A server answered with a code other than success that has no leaf of its own."""

    def __init__(self, code: int, remark: str = "", *, address: str = "", advice: str | None = None) -> None:
        where = f" from {address}" if address else ""
        super().__init__(f"code {code}{where}: {remark or 'no remark'}", advice=advice)
        self.code = code
        self.remark = remark
        self.address = address


class NoRoute(TrimqError):
    """There is no way to a broker for this topic; the message names the link that is missing."""

    default_advice = "check the name server address, that the topic exists, and that its brokers are up"
    retriable = True
    refresh_route = True


class NotStored(TrimqError):
    """The message surely was not stored."""

    default_advice = "nothing was stored: the message may be sent again, to any queue"
    retriable = True
    refresh_route = True


class SendUnknown(TrimqError):
    """No answer came before the deadline, so the message may or may not have been stored."""

    default_advice = "send the same Message object again: it is stored once"
    retriable = True
    refresh_route = True

    def __init__(self, message: str = "", *, id: str = "", advice: str | None = None) -> None:
        super().__init__(message, advice=advice)
        self.id = id


class NoReply(TrimqError):
    """A request was stored and no reply came before the deadline: it may be processed all the same."""

    default_advice = "check that somebody consumes the topic and replies; ask again if asking twice is harmless"
    retriable = True

    def __init__(self, message: str = "", *, id: str = "", advice: str | None = None) -> None:
        super().__init__(message, advice=advice)
        self.id = id


class Busy(TrimqError):
    """The server is over a limit and sheds load before doing anything."""

    default_advice = "wait retry_after seconds, then try again"
    retriable = True

    def __init__(self, message: str = "", *, retry_after: float = 0.1, advice: str | None = None) -> None:
        super().__init__(message, advice=advice)
        self.retry_after = retry_after


class Denied(TrimqError):
    """The credentials or the permissions of the topic, the group or the broker forbid it."""

    default_advice = "check the credentials and the permissions of topic and group"


class Disconnected(TrimqError):
    """A connection could not be opened, or ended while an answer was awaited."""

    default_advice = "check that the address answers; the call may be repeated"
    retriable = True
    refresh_route = True


class ConnectFailed(Disconnected):
    """No connection could be made, so nothing was sent."""
