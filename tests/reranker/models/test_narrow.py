"""Networks with narrower feed-forward layers, against least squares by brute force."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reranker.models.narrow import narrow, second_moments, without_units
from tests.reranker.conftest import SMALL, random_encoder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

DAMPING = 1e-4


def samples(count: int = 40) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    for number in range(count):
        query = torch.randint(4, 64, (1, 4 + number % 5), generator=generator)
        yield query, torch.randint(4, 64, (6, 3 + number % 4), generator=generator)


def units_of(rng: np.random.Generator, rows: int, units: int) -> np.ndarray:
    """What units say of some tokens: related to each other, and not 0 on average."""
    return rng.normal(size=(rows, 3)) @ rng.normal(size=(3, units)) + rng.normal(
        size=(rows, units), loc=0.5
    )


def best_map(
    said: np.ndarray, weight: np.ndarray, bias: np.ndarray, kept: list[int]
) -> tuple[np.ndarray, float]:
    """The best map (kept + 1, H) from the kept units, and what it loses: ridge regression."""
    ones = np.ones((len(said), 1))
    wanted = said @ weight.T + bias
    damping = DAMPING * np.square(said).mean()
    # As many further tokens as units, each of which only one unit speaks of, however little.
    units = said.shape[1]
    extra = np.sqrt(damping * len(said)) * np.eye(units)
    rows = np.vstack([np.hstack([said, ones]), np.hstack([extra, np.zeros((units, 1))])])
    targets = np.vstack([wanted, extra @ weight.T])
    found, *_ = np.linalg.lstsq(rows[:, [*kept, units]], targets, rcond=None)
    lost = np.square(rows[:, [*kept, units]] @ found - targets).sum()
    return found, lost


@given(st.integers(0, 1000), st.integers(1, 4))
def test_the_cheapest_units_go_and_the_others_make_up_for_them(seed, number):
    rng = np.random.default_rng(seed)
    said, weight, bias = units_of(rng, 200, 6), rng.normal(size=(3, 6)), rng.normal(size=3)
    left = list(range(6))
    for _ in range(number):
        losses = [best_map(said, weight, bias, [u for u in left if u != gone])[1] for gone in left]
        left.pop(int(np.argmin(losses)))
    expected, _ = best_map(said, weight, bias, left)
    whole = np.hstack([said, np.ones((200, 1))])
    moments = torch.from_numpy(whole.T @ whole / 200)
    kept, narrower, shift = without_units(
        moments, torch.from_numpy(weight), torch.from_numpy(bias), number
    )
    assert kept.tolist() == left
    assert np.allclose(narrower.T, expected[:-1], atol=1e-6)
    assert np.allclose(shift, expected[-1], atol=1e-6)


def test_moments_are_of_all_that_the_network_read():
    model = random_encoder(SMALL)
    layers = list(model.layers)
    found = second_moments(model, samples(3))
    seen: list[Tensor] = []
    watching = layers[1].down.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    for query, texts in samples(3):
        read = model.encode_query(query, torch.ones_like(query, dtype=torch.bool))
        model.score(read, texts, torch.ones_like(texts, dtype=torch.bool))
    watching.remove()
    rows = torch.cat([one.reshape(-1, SMALL.intermediate) for one in seen]).double()
    assert torch.allclose(found[1][:-1, :-1], rows.T @ rows / len(rows), atol=1e-5)
    assert torch.allclose(found[1][-1, :-1], rows.mean(0), atol=1e-5)
    second_moments(model, [])
    assert not layers[1].down._forward_pre_hooks


def test_units_that_say_what_others_say_are_not_missed():
    model = random_encoder(SMALL)
    half = SMALL.intermediate // 2
    with torch.no_grad():
        for layer in model.layers:
            layer.up.weight[half:] = layer.up.weight[:half]
            layer.up.bias[half:] = layer.up.bias[:half]
    narrower = narrow(model, half, samples())
    assert narrower.config.intermediate == half
    query, texts = next(iter(samples()))

    def scores(network):
        read = network.encode_query(query, torch.ones_like(query, dtype=torch.bool))
        return network.score(read, texts, torch.ones_like(texts, dtype=torch.bool))

    assert torch.allclose(scores(narrower), scores(model), atol=0.02)
    assert torch.equal(narrower.words.weight, model.words.weight)
    assert not narrower.training


@pytest.mark.parametrize("width", [0, -1, SMALL.intermediate, SMALL.intermediate + 1])
def test_a_network_has_to_become_narrower(width):
    with pytest.raises(ValueError, match="give a smaller number"):
        narrow(random_encoder(SMALL), width, samples(1))
