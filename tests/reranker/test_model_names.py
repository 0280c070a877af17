"""Shipped models are loaded by name."""

from __future__ import annotations

import pytest

from reranker import TitleReranker
from reranker.stages import find_model


def test_a_shipped_model_has_a_name(small_models, tmp_path, monkeypatch):
    monkeypatch.setattr("reranker.stages.SHIPPED", tmp_path)
    (tmp_path / "title-small").symlink_to(small_models / "title")
    assert TitleReranker.load("small", threads=1).name == "small-title"
    assert find_model("title") == tmp_path / "title"
    assert find_model("title", tmp_path) == tmp_path
    with pytest.raises(FileNotFoundError, match="large holds no model"):
        TitleReranker.load("large")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").mkdir()  # a folder that is there is meant
    with pytest.raises(FileNotFoundError, match="small holds no model"):
        TitleReranker.load("small")
