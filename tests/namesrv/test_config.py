"""namesrv.conf: RocketMQ's keys, clear errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from namesrv.config import ConfigError, NamesrvConfig, parse, read, to_properties


def test_rocketmqs_keys_are_read_and_unknown_ones_named() -> None:
    config, ignored = parse("# a comment\nlistenPort = 9877\norderMessageEnable=true\n\nserverWorkerThreads=8\n")
    assert config.listen_port == 9877
    assert config.order_message_enable
    assert ignored == ["serverWorkerThreads"]
    assert config.bind_address == NamesrvConfig().bind_address


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("listenPort=70000", "listenPort=70000: allowed is a whole number from 0 to 65535"),
        ("listenPort=abc", "listenPort=abc: allowed is"),
        ("enableTopicList=yes", "enableTopicList=yes: allowed is true or false"),
        ("bindAddress=", "bindAddress='': a printable text is needed"),
        ("just words", "line 1: 'just words' is not key=value"),
        ("scanNotActiveBrokerInterval=1", "from 100 to 60000"),
    ],
)
def test_a_bad_value_names_key_value_and_what_is_allowed(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(text)


def test_file_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*missing.conf: No such file"):
        read(tmp_path / "missing.conf")
    (tmp_path / "bad.conf").write_text("listenPort=x")
    with pytest.raises(ConfigError, match=r"bad.conf: listenPort=x"):
        read(tmp_path / "bad.conf")
    (tmp_path / "binary.conf").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="no text file"):
        read(tmp_path / "binary.conf")


def test_what_is_shown_can_be_read_again() -> None:
    config = NamesrvConfig(listen_port=1, enable_topic_list=False)
    assert parse(to_properties(config)) == (config, [])
