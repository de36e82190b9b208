"""`python -m broker` as a real process."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from broker.__main__ import _defaults, main
from broker.config_file import load_config


def config_file(tmp_path: Path, **settings: object) -> Path:
    path = tmp_path / "broker.conf"
    given = {
        "brokerName": "broker-a",
        "listenPort": 0,
        "metricsPort": -1,
        "storePathRootDir": tmp_path / "store",
        "mapedFileSizeCommitLog": "64MiB",
        "brokerIP1": "127.0.0.1",
        **settings,
    }
    path.write_text("".join(f"{key}={value}\n" for key, value in given.items()))
    return path


def test_it_says_ready_and_ends_with_status_0_on_sigterm(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "broker", "-c", str(config_file(tmp_path, brokerNmae="typo"))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("The broker is ready: broker-a at 127.0.0.1:"), process.communicate(timeout=20)[1]
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert process.returncode == 0
    assert out == ""
    assert err.count("unknown setting, ignored: brokerNmae") == 1


def stopped(arguments: list[str]) -> str:
    """The sentence with which the process refuses to start, its exit status being 1."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert isinstance(caught.value.code, str), "a text means status 1"
    return caught.value.code


def test_name_servers_come_from_the_environment_when_the_file_names_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAMESRV_ADDR", "10.0.0.1:9876;10.0.0.2:9876")
    found = load_config(config_file(tmp_path), defaults=_defaults()).config
    assert found.namesrv == ("10.0.0.1:9876", "10.0.0.2:9876")
    found = load_config(config_file(tmp_path, namesrvAddr="10.0.0.3:9876"), defaults=_defaults()).config
    assert found.namesrv == ("10.0.0.3:9876",)


def test_a_bad_value_stops_the_start_with_key_value_and_allowed_range(tmp_path: Path) -> None:
    reason = stopped(["-c", str(config_file(tmp_path, flushDiskType="SOMETIMES"))])
    assert "flushDiskType = 'SOMETIMES'" in reason
    assert "SYNC_FLUSH or ASYNC_FLUSH" in reason
    assert "missing.conf: cannot be read" in stopped(["-c", str(tmp_path / "missing.conf")])


def test_a_port_in_use_stops_the_start(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        reason = stopped(["-c", str(config_file(tmp_path, listenPort=port))])
    assert f"port {port} (listenPort)" in reason
    assert "is in use: stop what listens there" in reason
    assert "\n" not in reason


def test_a_store_of_another_cluster_stops_the_start(tmp_path: Path) -> None:
    test_it_says_ready_and_ends_with_status_0_on_sigterm(tmp_path)
    reason = stopped(["-c", str(config_file(tmp_path, brokerClusterName="Elsewhere"))])
    assert "Elsewhere" in reason
    assert "\n" not in reason


def test_a_store_in_use_stops_the_start(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "broker", "-c", str(config_file(tmp_path))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("The broker is ready")
        assert "in use by another process" in stopped(["-c", str(config_file(tmp_path))])
    finally:
        process.kill()
        process.communicate()
