"""`python -m namesrv` as a process: ready, graceful end, clear refusals."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest


def start(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "namesrv", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={"HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])},
    )


def refused(tmp_path: Path, *arguments: str) -> str:
    with start(tmp_path, *arguments) as process:
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    lines = [line for line in errors.splitlines() if line.startswith("namesrv: ")]
    assert len(lines) == 1, errors
    assert "Traceback" not in errors
    return lines[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_when_it_is_ready_and_ends_gracefully_on_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "n.conf").write_text("bindAddress=127.0.0.1\nserverWorkerThreads=8\n")
    with start(tmp_path, "-p", "0", "-c", str(tmp_path / "n.conf")) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "name server ready" in line:
                break
        process.send_signal(number)
        lines += process.stderr.readlines()
        assert process.wait(timeout=20) == 0
    text = "".join(lines)
    assert "keys=serverWorkerThreads" in text
    assert f"signal={number.name}" in text
    assert "Traceback" not in text


def test_a_port_in_use_is_one_clear_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        (tmp_path / "n.conf").write_text("bindAddress=127.0.0.1\n")
        port = taken.getsockname()[1]
        line = refused(tmp_path, "-p", str(port), "-c", str(tmp_path / "n.conf"))
    assert f"port {port} is in use" in line
    assert "-p" in line


def test_a_bad_configuration_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "n.conf").write_text("listenPort=high\n")
    assert "listenPort=high: allowed is" in refused(tmp_path, "-c", str(tmp_path / "n.conf"))
    assert "No such file" in refused(tmp_path, "-c", str(tmp_path / "missing.conf"))


def test_a_damaged_settings_file_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "namesrv").mkdir()
    (tmp_path / "namesrv" / "kvConfig.json").write_text("{")
    line = refused(tmp_path, "-p", "0")
    assert "kvConfig.json" in line
    assert "kvConfigPath" in line
