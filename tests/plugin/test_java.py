"""The OpenSearch plugin's own build: its JUnit suite, its format, and its zip."""

import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from plugin.node import ToolMissingError, plugin_sources
from plugin.node.tools import find_jdk, find_maven

CONTRACT = Path(__file__).parents[1] / "contract"


@pytest.mark.timeout(1800)
def test_the_plugins_own_suite_passes(tmp_path: Path) -> None:
    try:
        jdk, maven = find_jdk(), find_maven()
    except ToolMissingError as error:
        pytest.fail(str(error), pytrace=False)
    # A copy, laid out as the checkout is, so that nothing is built into that.
    project = tmp_path / "plugin" / "opensearch"
    shutil.copytree(plugin_sources(), project, ignore=shutil.ignore_patterns("target"))
    shutil.copytree(CONTRACT, tmp_path / "tests" / "contract")
    done = subprocess.run(
        [str(maven), "-B", "-q", "verify"],
        cwd=project,
        env={**os.environ, "JAVA_HOME": str(jdk.home)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20_000:]
    reports = list((project / "target" / "surefire-reports").glob("TEST-*.xml"))
    assert len(reports) >= len(list((project / "src" / "test").rglob("*Test.java")))
    (built,) = (project / "target").glob("titlecast-opensearch-plugin-*.zip")
    with zipfile.ZipFile(built) as archive:
        assert "plugin-descriptor.properties" in archive.namelist()
