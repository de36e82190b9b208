"""At the end of a run the compatibility table is printed, and entered in the README and `docs/compatibility.md`."""

from __future__ import annotations

import pytest

from tests.interop import table


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    rows = list(table.recorded)
    if not rows:
        return
    terminalreporter.section("compatibility")
    terminalreporter.write(table.markdown(table.read()))
    table.publish(rows)
