"""The `trimq` command line as such: quick, complete, clear about mistakes."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
import trio
from click.testing import CliRunner

from trimq.cli import main
from trimq.cli.output import print_table
from trimq.cli.run import run_async
from trimq.errors import NoRoute


def commands(group: click.Command, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    """Every command with its path; loads all of them."""
    found = [(path, group)]
    if isinstance(group, click.Group):
        context = click.Context(group)
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None, name
            found += commands(command, (*path, name))
    return found


def test_every_listed_command_loads_and_explains_itself() -> None:
    paths = [path for path, _ in commands(main)]
    group = {path[2] for path in paths if path[:2] == ("admin", "group") and len(path) == 3}
    assert group == {
        "list", "create", "add-replica", "promote-learner", "remove-replica", "transfer", "set-strategy", "promote",
        "trust-log",
    }  # fmt: skip
    for path in paths:
        result = CliRunner().invoke(main, [*path, "--help"])
        assert result.exit_code == 0, result.output
        assert "Usage:" in result.output


def test_every_admin_command_takes_a_name_server_and_prints_json() -> None:
    for path, command in commands(main):
        if path[:1] == ("admin",) and not isinstance(command, click.Group):
            options = {option for parameter in command.params for option in parameter.opts}
            assert {"-n", "--namesrv", "--json"} <= options, path


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; from trimq.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('trio', 'anyio', 'rich', 'asyncio', 'msgspec', 'broker', 'raft') if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "standalone" in output
    assert output.splitlines()[-1] == "[]"


@pytest.mark.parametrize("wrong", [["sned"], ["admin", "topicLst"]])
def test_a_mistyped_command_gets_a_suggestion(wrong: list[str]) -> None:
    result = CliRunner().invoke(main, wrong)
    assert result.exit_code == 2
    assert "Did you mean" in result.output


def test_a_missing_name_server_is_one_line_that_says_what_to_do() -> None:
    result = CliRunner().invoke(main, ["admin", "clusterList", "-n", "127.0.0.1:1"])
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("trimq: no name server answers: cannot connect to 127.0.0.1:1: Connection refused")
    assert "-n HOST:PORT" in lines[0]


def test_an_address_that_is_none_is_named() -> None:
    result = CliRunner().invoke(main, ["admin", "topicList", "-n", "nonsense"])
    assert result.exit_code == 1
    assert "'nonsense' is no address: host:port is needed" in result.output


def test_errors_inside_nurseries_are_still_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    async def fail() -> None:
        async with trio.open_nursery():
            raise NoRoute("first\nproblem", advice="do this")

    with pytest.raises(SystemExit) as exit_:
        run_async(fail)
    assert exit_.value.code == 1
    assert capsys.readouterr().err == "trimq: first problem (do this)\n"


def test_our_own_mistakes_keep_their_traceback() -> None:
    async def fail() -> None:
        async with trio.open_nursery():
            raise ZeroDivisionError

    with pytest.raises(ExceptionGroup):
        run_async(fail)


def test_piped_tables_are_plain_aligned_columns(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["name", "count"], [["a", 1], ["longer", 100], ["none", None]])
    assert capsys.readouterr().out == "name    count\na           1\nlonger    100\nnone\n"


def test_terminal_tables_show_markup_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", terminal)
    print_table(["topic"], [["[bold]x[/bold]"], ["%RETRY%g"]], title="topics")
    assert "[bold]x[/bold]" in terminal.getvalue()


def test_the_version_is_the_packages(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--version"])
    assert result.exit_code == 0
    assert result.output.startswith("trimq ")
    assert json.dumps(result.output)
