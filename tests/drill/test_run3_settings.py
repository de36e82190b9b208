"""`run3.sh up --set`: settings of a new cluster, checked before anything is started."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from trimq.testing.local_cluster import ClusterError, LocalCluster
from trimq.testing.run3 import run3


def test_settings_reach_every_broker_and_those_in_common_the_name_server(tmp_path: Path) -> None:
    settings = {"webSocketAllowedOrigins": "http://127.0.0.1:8000", "vipChannelEnable": "true"}
    cluster = LocalCluster.create(tmp_path, base_port=0, groups=1, extra=settings)
    for node in cluster.nodes:
        text = cluster.configuration_path(node, "broker-a").read_text()
        assert "webSocketAllowedOrigins=http://127.0.0.1:8000\n" in text
        assert "vipChannelEnable=true\n" in text
    text = (tmp_path / "conf" / "namesrv.conf").read_text()
    assert "webSocketAllowedOrigins=http://127.0.0.1:8000\n" in text
    assert "vipChannelEnable" not in text
    assert cluster.websocket_address == f"ws://127.0.0.1:{cluster.layout.namesrv + 4}"


@pytest.mark.parametrize("setting", ["webSocketEnable", "=true", "webSocketEnable="])
def test_a_setting_without_key_or_value_starts_nothing(setting: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(run3, ["up", "--dir", str(tmp_path / "c"), "--set", setting], obj=None)
    assert isinstance(result.exception, ClusterError | SystemExit)
    assert not (tmp_path / "c").exists()
