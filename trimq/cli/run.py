"""Run an async command: one clear line and an exit status for what went wrong, no traceback.

Exit statuses: 0 done, 1 it failed (the line says why and what to do), 2 wrong usage (click's), 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import NoReturn

import click

__all__ = ["fail", "run_async"]

INTERRUPTED = 130


def fail(message: str, status: int = 1) -> NoReturn:
    """Print one line on standard error and end the command."""
    click.echo(f"trimq: {message}", err=True)
    sys.exit(status)


def run_async(command: Callable[[], Awaitable[None]]) -> None:
    """Run under Trio until it is done."""
    import trio

    from trimq.errors import TrimqError

    try:
        trio.run(command)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # our reader (`| head`) has seen enough; click ends the command quietly
        raise
    except (TrimqError, OSError) as error:
        fail(_line(error))
    except BaseExceptionGroup as group:
        leaves = list(_leaves(group))
        if any(isinstance(leaf, KeyboardInterrupt) for leaf in leaves):
            sys.exit(INTERRUPTED)
        if not all(isinstance(leaf, TrimqError | OSError) for leaf in leaves):
            raise
        if isinstance(leaves[0], BrokenPipeError):
            raise leaves[0] from None
        fail(_line(leaves[0]))


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _line(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).split())
