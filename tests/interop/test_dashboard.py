"""rocketmq-dashboard and rocketmq-exporter: programs that are built from source, not published.

Should they appear on Maven Central, this test says so, and their pages and metrics want rows of their own. Until then
what they ask is covered by mqadmin, whose admin library (5.x) the dashboard uses: `test_mqadmin.py`.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.interop.table import NOT_TO_BE_HAD, Row, record

PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:get"


@pytest.mark.interop
@pytest.mark.timeout(180)
@pytest.mark.parametrize("artifact", ["rocketmq-dashboard", "rocketmq-exporter"])
def test_it_is_published(artifact: str, tmp_path: Path) -> None:
    if shutil.which("mvn") is None:
        why = "no mvn on this machine"
    else:
        asked = f"org.apache.rocketmq:{artifact}:RELEASE"
        done = subprocess.run(
            ["mvn", "-B", "-q", PLUGIN, f"-Dartifact={asked}", "-Dtransitive=false"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
        assert done.returncode != 0, f"{asked} is to be had now: run it"
        why = f"Maven Central has no org.apache.rocketmq:{artifact}"
    record(
        Row(
            client=artifact,
            version="",
            feature="pages" if artifact.endswith("dashboard") else "metrics",
            result=NOT_TO_BE_HAD,
            note=why,
        )
    )
    pytest.skip(why)
