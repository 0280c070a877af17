"""The benchmark itself, on small models: contenders answer, one that cannot run is named."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from tests.benchmarks.bench_rerank import ROWS, describe, flops_per_token, measure
from tests.reranker.conftest import SMALL, write_models

TITLES = ["heap queue", "merge sorted lists", "read lines of files"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


def test_the_arithmetic_of_a_token_is_that_of_all_layers_linear_maps(models):
    c = SMALL
    per_layer = 4 * c.hidden * c.hidden + 2 * c.hidden * c.intermediate
    assert flops_per_token(models / "title") == 2 * c.layers * per_layer


def test_contenders_take_turns_and_one_that_cannot_run_is_named(models, tmp_path):
    work = tmp_path / "work.json"
    texts = {"query": "merge lists", "ids": ["1", "2", "3"], "titles": TITLES}
    texts |= {"passages": ["a heap", "lists", "files"], "many": ["open a file"]}
    work.write_text(json.dumps(texts))
    told = io.StringIO()
    console = Console(file=told, width=120)
    describe(console, work, models, 1)
    # No model was made for etr-fp32.
    only = "^(etr|cascade-cached|etr-fp32|limit)$"
    measure(console, work, models, tmp_path, 1, 1, only, cpu=False)
    said = told.getvalue()
    assert "3 hits" in said
    for row in ROWS:
        if row.contender in ("etr", "cascade-cached"):
            assert row.label in said
    assert "GFLOP/s" in said
    assert "left out: etr-fp32: FileNotFoundError" in said
