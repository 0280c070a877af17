"""`titlecast pipeline`: what is asked for without doubt, and nothing else."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

import plugin.cli.pipeline as command
from plugin.cli.main import app
from plugin.cli.options import CommandError


def test_what_is_removed_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(_: str) -> None:
        raise AssertionError("nothing is asked of the cluster")

    monkeypatch.setattr(command, "connect", connect)
    arguments = ["pipeline", "remove", "--index", "docs", "--name", "titlecast-more"]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, CommandError), result.output
    assert "not both" in str(result.exception)
