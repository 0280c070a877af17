"""A network with fewer units in its feed-forward layers: those go that it can best do without.

Optimal Brain Surgeon (Hassibi and Stork 1993, NIPS 5) over whole units, as Kwon et al. (2022, arXiv
2204.09656) and Kurtic et al. (2023, arXiv 2302.04089) prune: from what a layer's units say over
many tokens follows what its output would lose without one of them if the others made up for it as
well as they can. The cheapest one goes, the others make up for it, and so on.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from reranker.models.broadcast import BroadcastEncoder, Layer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn

# Added to the second moments' diagonal, of its mean: units that never spoke have no say.
_DAMPING = 1e-4


@torch.no_grad()
def narrow(
    model: BroadcastEncoder, width: int, samples: Iterable[tuple[Tensor, Tensor]]
) -> BroadcastEncoder:
    """The network with `width` units in every feed-forward layer, in evaluation mode.

    `samples` are queries' ids (1, Q), each with texts' (N, T), all without padding: what the units
    say of these decides. Raises ValueError where the network has no more units than that.
    """
    if not 0 < width < model.config.intermediate:
        raise ValueError(
            f"intermediate is {width}, of a network with {model.config.intermediate} units in its "
            "feed-forward layers: give a smaller number, or leave it out"
        )
    moments = second_moments(model, samples)
    state = model.state_dict()
    for depth, layer in enumerate(_layers(model)):
        kept, weight, bias = without_units(
            moments[depth], layer.down.weight, layer.down.bias, model.config.intermediate - width
        )
        state |= {
            f"layers.{depth}.up.weight": layer.up.weight[kept],
            f"layers.{depth}.up.bias": layer.up.bias[kept],
            f"layers.{depth}.down.weight": weight,
            f"layers.{depth}.down.bias": bias,
        }
    found = BroadcastEncoder(replace(model.config, intermediate=width))
    found.load_state_dict(state)
    return found.eval()


def _layers(model: BroadcastEncoder) -> list[Layer]:
    return list(model.layers)  # type: ignore[arg-type]


def second_moments(
    model: BroadcastEncoder, samples: Iterable[tuple[Tensor, Tensor]]
) -> list[Tensor]:
    """Of each layer's units, and of a constant 1 behind them: the mean products, (U + 1, U + 1)."""
    size = model.config.intermediate + 1
    sums = [torch.zeros(size, size, dtype=torch.float64) for _ in model.layers]

    def watch(total: Tensor) -> Any:
        def add(module: nn.Module, inputs: tuple[Tensor]) -> None:
            units = inputs[0].flatten(0, -2)
            units = torch.cat([units, units.new_ones(len(units), 1)], 1)
            total.add_(units.T @ units)

        return add

    watching = [
        layer.down.register_forward_pre_hook(watch(total))
        for layer, total in zip(_layers(model), sums, strict=True)
    ]
    try:
        for query, texts in samples:
            read = model.encode_query(query, torch.ones_like(query, dtype=torch.bool))
            model.score(read, texts, torch.ones_like(texts, dtype=torch.bool))
    finally:
        for one in watching:
            one.remove()
    return [total / total[-1, -1] for total in sums]


def without_units(
    moments: Tensor, weight: Tensor, bias: Tensor, number: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Take `number` of the U units that a linear map reads away, and let the others make up for it.

    `moments` (U + 1, U + 1) are the units' and a constant 1's, `weight` (H, U) and `bias` (H,) the
    map's. Returns the places (U - number,) of those kept, and the map from them.
    """
    units = weight.shape[1]
    damped = moments.double().clone()
    damped[:units, :units].diagonal().add_(_DAMPING * damped[:units, :units].diagonal().mean())
    inverse = torch.linalg.inv(damped)
    rows = torch.cat([weight.T, bias[None]]).double()  # (U + 1, H): what each contributes
    gone = torch.zeros(units + 1, dtype=torch.bool)
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
