"""The fuzzer of searches runs, and finds nothing in a few seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def test_no_body_is_answered_wrongly(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris has no wheel for this Python or machine")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.fuzz.hits"),
            *("--seconds=5", "--seed=1", f"--crashes={tmp_path}"),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    assert "Done " in done.stderr
    assert list(tmp_path.iterdir()) == []
