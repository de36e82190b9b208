"""Transactions: end a half message (37), ask its producer (39), ask again for one that was given up (323)."""

from __future__ import annotations

from trimq.wire.headers.base import I32, I64, Header

__all__ = ["CheckTransactionHeader", "EndTransactionHeader", "ResumeCheckHeader"]


class EndTransactionHeader(Header, frozen=True, kw_only=True):
    """Code 37. Java and C++ send it oneway; ours waits for the answer, which says where the message lies."""

    producer_group: str
    tran_state_table_offset: I64
    """Offset of the half message in its queue."""
    commit_log_offset: I64
    """Its position in the log, taken from its offset id."""
    commit_or_rollback: I32
    """8 commit, 12 rollback, 0 unknown."""
    from_transaction_check: bool = False
    msg_id: str = ""
    transaction_id: str = ""
    topic: str = ""
    bname: str = ""


class CheckTransactionHeader(Header, frozen=True, kw_only=True):
    """Code 39, broker to a producer, oneway; the body is the half message as it would be delivered."""

    topic: str = ""
    tran_state_table_offset: I64
    commit_log_offset: I64
    msg_id: str = ""
    transaction_id: str = ""
    offset_msg_id: str = ""
    bname: str = ""


class ResumeCheckHeader(Header, frozen=True, kw_only=True):
    """Code 323: a half message that was given up is checked again."""

    topic: str = ""
    msg_id: str
    """Its offset id."""
