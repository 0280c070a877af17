"""Networks with narrower feed-forward layers, against least squares by brute force."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reranker.models.broadcast import without_special
from reranker.models.narrow import Moments, moments, narrow, without_units
from tests.reranker.conftest import SMALL, random_encoder

if TYPE_CHECKING:
    from torch import Tensor

    from reranker.models.broadcast import List

DAMPING = 0.01


def some_lists(count: int = 40) -> list[List]:
    generator = torch.Generator().manual_seed(2)
    lists = []
    for number in range(count):
        query = torch.randint(4, 64, (1, 4 + number % 5), generator=generator)
        ids = torch.randint(4, 64, (6, 3 + number % 4), generator=generator)
        lengths = torch.randint(3, ids.shape[1] + 1, (6, 1), generator=generator)
        lists.append((query, ids, torch.arange(ids.shape[1]) < lengths))
    return lists


def scores(network, one: List) -> Tensor:
    query, ids, mask = one
    read = network.encode_query(query, torch.ones_like(query, dtype=torch.bool))
    return network.score(read, ids, mask)


def units_of(rng: np.random.Generator, rows: int, units: int) -> np.ndarray:
    """What units say of some tokens: related to each other, and not 0 on average."""
    return rng.normal(size=(rows, 3)) @ rng.normal(size=(3, units)) + rng.normal(
        size=(rows, units), loc=0.5
    )


def best_map(
    said: np.ndarray, wanted: np.ndarray, weight: np.ndarray, kept: list[int]
) -> tuple[np.ndarray, float]:
    """The best map (kept + 1, H) from the kept units, and what it loses: ridge regression."""
    damping = DAMPING * np.square(said).mean()
    # As many further tokens as units, each of which only one unit speaks of, however little.
    units = said.shape[1]
    extra = np.sqrt(damping * len(said)) * np.eye(units)
    ones = np.ones((len(said), 1))
    rows = np.vstack([np.hstack([said, ones]), np.hstack([extra, np.zeros((units, 1))])])
    targets = np.vstack([wanted, extra @ weight.T])
    found, *_ = np.linalg.lstsq(rows[:, [*kept, units]], targets, rcond=None)
    lost = np.square(rows[:, [*kept, units]] @ found - targets).sum()
    return found, lost


@given(st.integers(0, 1000), st.integers(1, 4), st.sampled_from([0.0, 0.5]))
def test_the_cheapest_units_go_and_the_others_make_up_for_them(seed, number, astray):
    """Also for what is wanted otherwise than the map says: what was lost in a layer below."""
    rng = np.random.default_rng(seed)
    said, weight, bias = units_of(rng, 200, 6), rng.normal(size=(3, 6)), rng.normal(size=3)
    wanted = said @ weight.T + bias + astray * rng.normal(size=(200, 3)) * said[:, :3]
    left = list(range(6))
    for _ in range(number):
        rests = [[u for u in left if u != gone] for gone in left]
        left.pop(int(np.argmin([best_map(said, wanted, weight, rest)[1] for rest in rests])))
    expected, _ = best_map(said, wanted, weight, left)
    whole = np.hstack([said, np.ones((200, 1))])
    means = Moments(
        torch.from_numpy(whole.T @ whole / 200), torch.from_numpy(whole.T @ wanted / 200)
    )
    kept, narrower, shift = without_units(
        means, torch.from_numpy(weight), torch.from_numpy(bias), number
    )
    assert kept.tolist() == left
    assert np.allclose(narrower.T, expected[:-1], atol=1e-6)
    assert np.allclose(shift, expected[-1], atol=1e-6)


@pytest.mark.parametrize("sinks", [False, True])
def test_moments_are_of_all_that_was_read_but_padding(sinks):
    config = replace(SMALL, sinks=sinks)
    model, other = random_encoder(config), random_encoder(config, seed=1)
    found = moments(model, other, 1, some_lists(3))
    rows, goals = [], []
    for query, ids, mask in some_lists(3):
        asked = torch.ones_like(query, dtype=torch.bool)
        seen: dict[str, list[Tensor]] = {"units": [], "goal": [], "past": []}
        theirs, ours = model.layers[1], other.layers[1]
        watching = [
            ours.down.register_forward_pre_hook(lambda _, x, to=seen: to["units"].append(x[0])),
            theirs.norm.register_forward_pre_hook(lambda _, x, to=seen: to["goal"].append(x[0])),
            ours.up.register_forward_pre_hook(lambda _, x, to=seen: to["past"].append(x[0])),
        ]
        for network in (model, other):
            scores(network, (query, ids, mask))
        for one in watching:
            one.remove()
        text = without_special(ids, mask)[1] if sinks else mask
        for place, where in enumerate((asked, text)):
            rows.append(seen["units"][place][where])
            goals.append((seen["goal"][place] - seen["past"][place])[where])
    units, wanted = torch.cat(rows).double(), torch.cat(goals).double()
    units = torch.cat([units, units.new_ones(len(units), 1)], 1)
    assert torch.allclose(found.units, units.T @ units / len(units), atol=1e-5)
    assert torch.allclose(found.wanted, units.T @ wanted / len(units), atol=1e-5)
    assert not other.layers[1].down._forward_pre_hooks


def test_units_that_say_what_others_say_are_not_missed():
    model = random_encoder(SMALL)
    half = SMALL.intermediate // 2
    with torch.no_grad():
        for layer in model.layers:
            layer.up.weight[half:] = layer.up.weight[:half]
            layer.up.bias[half:] = layer.up.bias[:half]
    narrower = narrow(model, half, some_lists())
    assert narrower.config.intermediate == half
    one = some_lists(1)[0]
    assert torch.allclose(scores(narrower, one), scores(model, one), atol=0.1)
    assert torch.equal(narrower.words.weight, model.words.weight)
    assert not narrower.training
    assert model.layers[0].up.out_features == SMALL.intermediate


def test_a_layer_makes_up_for_what_was_lost_below():
    """States come nearer to the wide network's than where every layer is narrowed by itself."""
    model, lists = random_encoder(SMALL), some_lists(60)
    half = SMALL.intermediate // 2
    narrower = narrow(model, half, lists)
    alone = narrow(model, half, lists)
    with torch.no_grad():
        for depth, layer in enumerate(alone.layers):
            wide = model.layers[depth]
            means = moments(model, model, depth, lists)
            kept, weight, bias = without_units(means, wide.down.weight, wide.down.bias, half)
            layer.up.weight.copy_(wide.up.weight[kept])
            layer.up.bias.copy_(wide.up.bias[kept])
            layer.down.weight.copy_(weight)
            layer.down.bias.copy_(bias)

    @torch.no_grad()
    def states(network, one: List) -> Tensor:
        query, ids, mask = one
        read = network.encode_query(query, torch.ones_like(query, dtype=torch.bool))
        return network.text_states(read, ids, mask)[0][mask]

    def lost(network) -> float:
        far = [states(network, one) - states(model, one) for one in lists]
        return float(torch.cat(far).square().sum())

    assert lost(narrower) < lost(alone)


@pytest.mark.parametrize("width", [0, -1, SMALL.intermediate, SMALL.intermediate + 1])
def test_a_network_has_to_become_narrower(width):
    with pytest.raises(ValueError, match="give a smaller number"):
        narrow(random_encoder(SMALL), width, some_lists(1))
