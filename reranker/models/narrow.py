"""A network with fewer units in its feed-forward layers: those go that it can best do without.

Optimal Brain Surgeon (Hassibi and Stork 1993, NIPS 5) over whole units, as Kwon et al. (2022, arXiv
2204.09656) and Kurtic et al. (2023, arXiv 2302.04089) prune: from what a layer's units say over
many tokens follows what its output would lose without one of them if the others made up for it as
well as they can. The cheapest one goes, the others make up for it, and so on. The layers follow
each other: the units that are left make up for what was lost below, too, as in SparseGPT (Frantar
and Alistarh 2023, arXiv 2301.00774).
"""

from __future__ import annotations

import copy
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from reranker.models.broadcast import BroadcastEncoder, Layer, without_special

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from reranker.models.broadcast import List

# How much a map is held to what it was: of the mean square of what a unit says.
_DAMPING = 0.01


class Moments(NamedTuple):
    """Means over tokens, of what a layer's units say and what it should have said."""

    units: Tensor  # (U + 1, U + 1), products of the units and of a constant 1 behind them
    wanted: Tensor  # (U + 1, H), and of these with what is wanted of the map behind them


@torch.no_grad()
def narrow(model: BroadcastEncoder, width: int, lists: Sequence[List]) -> BroadcastEncoder:
    """The network with `width` units in every feed-forward layer, in evaluation mode.

    What the units say of `lists` decides. Raises ValueError where the network has no more units
    than that.
    """
    if not 0 < width < model.config.intermediate:
        raise ValueError(
            f"intermediate is {width}, of a network with {model.config.intermediate} units in its "
            "feed-forward layers: give a smaller number, or leave it out"
        )
    narrower = copy.deepcopy(model).eval()
    device = next(model.parameters()).device
    lists = [(query.to(device), ids.to(device), mask.to(device)) for query, ids, mask in lists]
    for depth, layer in enumerate(_layers(narrower)):
        kept, weight, bias = without_units(
            moments(model, narrower, depth, lists),
            layer.down.weight,
            layer.down.bias,
            model.config.intermediate - width,
        )
        layer.up = _map(layer.up.weight[kept], layer.up.bias[kept])
        layer.down = _map(weight, bias)
    found = BroadcastEncoder(replace(model.config, intermediate=width)).to(device)
    found.load_state_dict(narrower.state_dict())
    return found.eval()


def _layers(model: BroadcastEncoder) -> list[Layer]:
    return list(model.layers)  # type: ignore[arg-type]


def _lowest(model: BroadcastEncoder, layers: int) -> BroadcastEncoder:
    """The network without what comes above its lowest layers, which both share."""
    found = copy.copy(model)
    found._modules = {**model._modules, "layers": model.layers[:layers]}
    return found


def _map(weight: Tensor, bias: Tensor) -> nn.Linear:
    found = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device)
    found.load_state_dict({"weight": weight, "bias": bias})
    return found


@torch.no_grad()
def moments(
    model: BroadcastEncoder, narrower: BroadcastEncoder, depth: int, lists: Sequence[List]
) -> Moments:
    """What `narrower`'s units of a layer say, and what would give the states that `model` has.

    Both read all of every list; padding does not count.
    """
    theirs, ours = _layers(model)[depth], _layers(narrower)[depth]
    size = ours.down.in_features + 1
    device = ours.down.weight.device
    units = torch.zeros(size, size, dtype=torch.float64, device=device)
    wanted = torch.zeros(size, ours.down.out_features, dtype=torch.float64, device=device)
    tokens = 0
    networks = [_lowest(network, depth + 1) for network in (model, narrower)]
    with ExitStack() as stack:
        # What a layer's last norm reads is its map's output and what went past the map.
        norms = (theirs.norm, ours.norm, ours.down)
        goals, sums, said = (stack.enter_context(_inputs(module)) for module in norms)
        for query, ids, mask in lists:
            seen = without_special(ids, mask)[1] if model.config.sinks else mask
            asked = torch.ones_like(query, dtype=torch.bool)
            for network in networks:
                network.score(network.encode_query(query, asked), ids, mask)
            for place, where in enumerate((asked, seen)):
                x = said[place][where]  # (T, U)
                missing = (goals[place] - sums[place])[where]
                target = missing + ours.down(x)  # which adds to what was said
                x = torch.cat([x, x.new_ones(len(x), 1)], 1)
                units += x.T @ x
                wanted += x.T @ target
                tokens += len(x)
            for inputs in (goals, sums, said):
                inputs.clear()
    return Moments(units / tokens, wanted / tokens)


@contextmanager
def _inputs(module: nn.Module) -> Iterator[list[Tensor]]:
    """What a module reads during the block, call by call."""
    found: list[Tensor] = []
    watching = module.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    try:
        yield found
    finally:
        watching.remove()


def without_units(
    means: Moments, weight: Tensor, bias: Tensor, number: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Take `number` of the U units that a linear map reads away, and let the others make up for it.

    `weight` (H, U) and `bias` (H,) are the map as it is, to which the new one is held as far as
    the lists do not say what else is wanted. Returns the places (U - number,) of the units kept,
    and the map from them.
    """
    held = torch.ones_like(means.units[0]) * _DAMPING * means.units.diagonal()[:-1].mean()
    held[-1] = 0.0  # the bias is free
    before = torch.cat([weight.T, bias[None]]).double()  # (U + 1, H): what each contributes
    inverse = torch.linalg.inv(means.units + held.diag())
    rows = inverse @ (means.wanted + held[:, None] * before)  # the best with all units
    gone = torch.zeros_like(inverse[0], dtype=torch.bool)
    gone[-1] = True  # the bias is never a candidate
    for _ in range(number):
        cost = rows.square().sum(1) / inverse.diagonal()
        place = int(cost.masked_fill(gone, float("inf")).argmin())
        column = inverse[:, place] / inverse[place, place]
        rows.addr_(column, rows[place].clone(), alpha=-1)
        inverse.addr_(column, inverse[place].clone(), alpha=-1)
        gone[place] = True
        inverse[place, place] = 1.0  # it was 0, and its row of zeros costs nothing
    kept = (~gone).nonzero().squeeze(1)
    return kept, rows[kept].T.to(weight.dtype), rows[-1].to(bias.dtype)
