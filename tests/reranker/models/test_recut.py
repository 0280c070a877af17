"""A model whose texts read the query later: the network without those layers' attention to it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from reranker.models.broadcast import BroadcastEncoder
from reranker.models.export import export
from reranker.models.recut import recut
from reranker.models.restore import restore
from reranker.runtime import load_model
from tests.reranker.conftest import SMALL, random_encoder, write_model
from tests.reranker.models.test_broadcast import fast

QUERY = [2, 5, 9, 14, 3]
TEXTS = [[2, 7, 3], [2, 8, 9, 10, 3], [2, 11, 12, 13, 14, 15, 3], [2, 3]]


@pytest.mark.parametrize("sinks", [False, True], ids=["", "sinks"])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_it_is_the_network_with_one_layer_more_below_the_query(tmp_path, precision, sinks):
    config = replace(SMALL, sinks=sinks)
    old = write_model(tmp_path / "old", "title", random_encoder(config), precision)
    recut(old, tmp_path / "new", config.first_query_layer + 1, "later")
    blind = BroadcastEncoder(replace(config, first_query_layer=config.first_query_layer + 1))
    blind.load_state_dict(restore(old).state_dict())
    with torch.no_grad():
        expected = fast(blind.eval(), QUERY, TEXTS).numpy()
        before = fast(restore(old), QUERY, TEXTS).numpy()
    model, facts = load_model(tmp_path / "new", threads=1)
    scores = model.score(model.read(np.array(QUERY)), [np.array(text) for text in TEXTS])
    close = 1e-4 if precision == "fp32" else 0.5
    assert np.abs(scores - expected).max() < close
    assert np.abs(before - expected).max() > 2 * np.abs(scores - expected).max()
    assert restore(tmp_path / "new").config.first_query_layer == config.first_query_layer + 1
    assert facts["name"] == "later"
    whole = [(folder / "weights.bin").read_bytes() for folder in (old, tmp_path / "new")]
    assert whole[0] == whole[1]
    assert json.loads((old / "config.json").read_text())["name"] != "later"


def test_what_cannot_be_done_is_refused(tmp_path):
    old = write_model(tmp_path / "old", "title", random_encoder(SMALL))
    for layer in (SMALL.first_query_layer, SMALL.layers):
        with pytest.raises(ValueError, match="give one above"):
            recut(old, tmp_path / "new", layer, "later")
    export(random_encoder(SMALL), tmp_path / "both", dual=True)
    with pytest.raises(ValueError, match="dual encoder"):
        recut(tmp_path / "both", tmp_path / "new", SMALL.layers - 1, "later")
    assert not (tmp_path / "new").exists()
    with pytest.raises(FileExistsError, match="exists already; give a folder"):
        recut(old, tmp_path / "both", SMALL.layers - 1, "later")
