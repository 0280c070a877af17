"""The training loop, from top to bottom: one for titles and passages, broadcast and pairwise.

A training lives in a folder: `recipe.toml`, `train/` and `dev/` examples, `checkpoint.pt`
(model, optimiser and step: all that a resumed training needs to go on bit for bit), `log.jsonl`
and, at the end, `best.pt`.
"""

from __future__ import annotations

import json
import logging
import math
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from reranker.models.backbone import load_backbone
from reranker.models.broadcast import BroadcastEncoder, from_bert
from reranker.models.pair import PairEncoder
from reranker.training import losses
from reranker.training.augment import Augmenter
from reranker.training.examples import Example, load
from reranker.training.lists import (
    Batch,
    Tokens,
    draw_examples,
    draw_list,
    make_batch,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from reranker.models.backbone import Backbone
    from reranker.training.config import Recipe

log = logging.getLogger(__name__)

Model = BroadcastEncoder | PairEncoder


class Data(NamedTuple):
    """What a training reads; trainings of the same limits and dev sample may share it."""

    pool: list[str]  # texts there are to choose from
    items: list[Example]
    texts: Tokens
    queries: Tokens
    dev: list[Example]
    dev_queries: Tokens


def train(
    recipe: Recipe, folder: Path, stop_at: int | None = None, data: Data | None = None
) -> Path:
    """Train until the recipe's steps (or `stop_at`) are done; resumes from the checkpoint.

    `folder` holds what `prepare` wrote, unless `data` is given. Returns the path of the best
    weights on the dev split.
    """
    torch.manual_seed(recipe.seed)
    backbone = load_backbone(recipe.backbone)
    model = new_model(recipe, backbone.state, backbone.config)
    # The weight of the first stage's score beside the model's logit, learned on the way.
    first_stage = nn.Parameter(torch.tensor(1.0))
    optimiser = torch.optim.AdamW(
        parameter_groups(recipe, model, first_stage), betas=(0.9, 0.98), fused=True
    )
    rates = [group["lr"] for group in optimiser.param_groups]

    pool, items, texts, queries, dev, dev_queries = data or load_data(recipe, folder, backbone)

    kept = folder / "checkpoint.pt"
    step, best = 0, -1.0
    if kept.exists():
        state = torch.load(kept, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        first_stage.data.copy_(state["first_stage"])
        step, best = state["step"], state["best"]
        log.info("resumed at step %d", step)

    def save() -> None:
        state = {
            "model": model.state_dict(),
            "optimiser": optimiser.state_dict(),
            "first_stage": first_stage.detach(),
            "step": step,
            "best": best,
        }
        write(state, kept)

    augmenter = None
    if recipe.augment:
        tokenizer = Tokenizer.from_str(backbone.tokenizer_json)
        augmenter = Augmenter(recipe, folder, pool, texts, items, tokenizer)

    last = min(recipe.steps, stop_at or recipe.steps)
    started, tokens_seen = time.monotonic(), 0
    while step < last:
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * schedule(recipe, step)
        if augmenter:
            augmenter.advance(step, model)
        total = 0.0
        for part in range(recipe.accumulate):
            draw = step * recipe.accumulate + part
            chosen = draw_examples(len(items), recipe.queries_per_step, draw, recipe.seed)
            rng = np.random.default_rng([recipe.seed, 1, draw])
            lists = [draw_list(items[i], recipe.lists, len(pool), rng) for i in chosen]
            asked, golds = [queries[i] for i in chosen], [set(items[i].golds) for i in chosen]
            if augmenter:
                augmenter.replace(rng, asked, lists, golds)
            batch = make_batch(
                asked,
                lists,
                golds,
                augmenter.texts if augmenter else texts,
                chunks=passes(recipe, lists),
            )
            added = torch.from_numpy(rng.random(len(chosen)) < recipe.with_first_stage)
            dual = draw % recipe.dual_every == 0
            loss = batch_loss(recipe, model, batch, first_stage, added, dual) / recipe.accumulate
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
            tokens_seen += sum(chunk.mask.numel() for chunk in batch.chunks)
        norm = nn.utils.clip_grad_norm_(
            [p for group in optimiser.param_groups for p in group["params"]], recipe.clip
        )
        if math.isfinite(total) and bool(torch.isfinite(norm)):
            optimiser.step()
        else:
            log.warning("step %d skipped: loss %s, gradient norm %s", step, total, float(norm))
        optimiser.zero_grad(set_to_none=True)
        step += 1

        line: dict[str, Any] = {
            "step": step,
            "loss": round(total, 4),
            "norm": round(float(norm), 3),
        }
        if step % recipe.check_every == 0 or step == recipe.steps:
            scores = check(recipe, model, float(first_stage.detach()), dev, dev_queries, texts)
            line.update(scores)
            quality = (scores["alone"] + scores["fused"]) / 2
            if quality >= best:
                best = quality
                write({"model": model.state_dict(), "step": step, **scores}, folder / "best.pt")
            log.info("step %d: %s", step, scores)
        if step % 10 == 0 or "fused" in line:
            seconds = time.monotonic() - started
            line["tokens_per_second"] = round(tokens_seen / seconds)
            line["first_stage"] = round(float(first_stage.detach()), 4)
            with (folder / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        if step % recipe.save_every == 0 or step == last:
            save()
    return folder / "best.pt"


def load_data(recipe: Recipe, folder: Path, backbone: Backbone, every: int = 1) -> Data:
    """Read and tokenize what `prepare` wrote; of the training examples, one in `every`."""
    pool, items = load(folder / "train", every)
    dev_pool, dev_items = load(folder / "dev")
    if not items or dev_pool != pool:
        raise ValueError(f"{folder} holds no training examples; prepare it first.")
    tokenizer = Tokenizer.from_str(backbone.tokenizer_json)
    limits = recipe.lists
    dev = dev_sample(dev_items, recipe)
    return Data(
        pool=pool,
        items=items,
        texts=Tokens(tokenizer, pool, limits.max_text_tokens),
        queries=Tokens(tokenizer, [item.query for item in items], limits.max_query_tokens),
        dev=dev,
        dev_queries=Tokens(tokenizer, [item.query for item in dev], limits.max_query_tokens),
    )


def new_model(recipe: Recipe, state: dict[str, Tensor], bert: dict[str, Any]) -> Model:
    """The untrained network of a recipe, started from the backbone's weights."""
    broadcast = from_bert(state, bert, **recipe.model)
    return broadcast if recipe.architecture == "broadcast" else PairEncoder(broadcast)


def schedule(recipe: Recipe, step: int) -> float:
    """The factor on every learning rate: linear up, constant, linear down to nothing."""
    up = recipe.warm_up * recipe.steps
    down = recipe.cool_down * recipe.steps
    return max(0.0, min(1.0, (step + 1) / (up + 1), (recipe.steps - step) / (down + 1)))


def parameter_groups(
    recipe: Recipe, model: Model, first_stage: nn.Parameter
) -> list[dict[str, Any]]:
    """Parameters by learning rate: deeper layers less, heads and biases more, frozen ones not."""
    encoder = model.encoder if isinstance(model, PairEncoder) else model
    groups: list[dict[str, Any]] = []
    for name, parameter in model.named_parameters():
        rate, decay = recipe.learning_rate, recipe.weight_decay
        short = name.removeprefix("encoder.")
        if short.startswith("layers."):
            depth = int(short.split(".")[1])
            if depth < recipe.frozen_layers:
                parameter.requires_grad_(False)
                continue
            rate *= recipe.layer_decay ** (encoder.config.layers - 1 - depth)
        elif short.startswith(("words", "positions", "types", "embedding_norm")):
            if not recipe.train_embeddings:
                parameter.requires_grad_(False)
                continue
            rate *= recipe.layer_decay**encoder.config.layers
        elif short == "query_bias":
            rate, decay = recipe.bias_learning_rate, 0.0
        else:  # the head and the scale
            rate, decay = recipe.head_learning_rate, 0.0
        if parameter.ndim < 2:
            decay = 0.0
        groups.append({"params": [parameter], "lr": rate, "weight_decay": decay})
    groups.append({"params": [first_stage], "lr": recipe.head_learning_rate, "weight_decay": 0.0})
    return groups


def passes(recipe: Recipe, lists: Sequence[tuple[list[int], list[float]]]) -> int:
    """In how many chunks a batch's texts are read."""
    texts = sum(len(places) for places, _ in lists)
    return max(4, -(-texts // recipe.texts_per_pass)) if recipe.texts_per_pass else 4


def list_logits(model: Model, batch: Batch) -> Tensor:
    """The model's logits over the lists, (B, N)."""
    return _list_logits(model, batch, model.encode_query(batch.query_ids, batch.query_mask))


def _list_logits(model: Model, batch: Batch, read: Any, again: bool = False) -> Tensor:
    parts = [_run(again, model.score, read, c.ids, c.mask, c.owner) for c in batch.chunks]
    return _at_their_places(batch, parts).view(batch.valid.shape)


def _dual_logits(model: BroadcastEncoder, batch: Batch, read: Any, again: bool = False) -> Tensor:
    """The dual encoder's logits of every query (B) against every list's texts, (B, B * N)."""
    parts = [_run(again, model.dual_scores, read, c.ids, c.mask) for c in batch.chunks]
    return _at_their_places(batch, parts).T


def _run(again: bool, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """Call a function; `again`: compute its states a second time for the gradients.

    Only the scores of a chunk are kept until then, as in gradient caching (Gao et al. 2021,
    arXiv 2101.06983): the loss over whole lists and batches is exact, and no more than one
    chunk's states are in memory at a time.
    """
    if not again:
        return function(*inputs)
    scores: Tensor = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    return scores


def _at_their_places(batch: Batch, parts: Sequence[Tensor]) -> Tensor:
    """The chunks' rows in the order of the flattened lists; zeros where there is no text."""
    order = torch.cat([chunk.place for chunk in batch.chunks])
    rows = torch.cat(list(parts))
    return rows.new_zeros(batch.valid.numel(), *rows.shape[1:]).index_put((order,), rows)


def batch_loss(
    recipe: Recipe,
    model: Model,
    batch: Batch,
    first_stage: Tensor,
    added: Tensor,
    dual: bool = True,
) -> Tensor:
    """The recipe's loss of one batch; `added` (B,) says which lists add the first stage.

    `dual` False leaves the dual encoder's part out.
    """
    read = model.encode_query(batch.query_ids, batch.query_mask)
    again = recipe.texts_per_pass > 0
    logits = _list_logits(model, batch, read, again)
    fused = logits + first_stage * batch.first_stage * added[:, None]
    if recipe.loss == "softmax":
        loss = losses.listwise_softmax(fused, batch.gold, batch.valid)
    elif recipe.loss == "sigmoid-trick":
        loss = losses.sigmoid_trick(
            fused, batch.gold, batch.valid, recipe.margin, recipe.temperature
        )
    else:
        loss = losses.pairwise_logistic(fused, batch.gold, batch.valid)
    if not dual or not (recipe.distillation or recipe.in_batch):
        return loss
    if not isinstance(model, BroadcastEncoder):
        raise ValueError("distillation needs the broadcast architecture, which has a dual encoder")
    scores = _dual_logits(model, batch, read, again)  # (B, B * N)
    rows = torch.arange(len(scores))
    student = scores.view(len(scores), *batch.valid.shape)[rows, rows]  # (B, N)
    if recipe.distillation:
        teacher = logits.detach() if recipe.teacher == "static" else logits
        distance = losses.dynamic_distillation(student, teacher, batch.valid)
        loss = loss + recipe.distillation * distance
    if recipe.in_batch:
        own = losses.in_batch_softmax(scores, batch.gold, batch.valid, batch.elsewhere)
        loss = loss + recipe.in_batch * own
    return loss


def dev_sample(items: Sequence[Example], recipe: Recipe) -> list[Example]:
    """The dev examples that are looked at: as many of every source, always the same.

    A source that has fewer gives all it has, and the others more.
    """
    order = np.random.default_rng(recipe.seed).permutation(len(items)).tolist()
    turns: dict[str, int] = {}
    ranked = []
    for place in order:
        turn = turns[items[place].source] = turns.get(items[place].source, 0) + 1
        ranked.append((turn, place))
    ranked.sort(key=lambda pair: pair[0])  # stable: in the drawn order within a turn
    return [items[i] for i in sorted(place for _, place in ranked[: recipe.check_queries])]


def check(
    recipe: Recipe,
    model: Model,
    first_stage: float,
    dev: Sequence[Example],
    queries: Tokens,
    texts: Tokens,
) -> dict[str, float]:
    """Quality on the dev split: the mean over its sources, so that none of them is forgotten."""
    values = reciprocal_ranks(recipe, model, first_stage, dev, queries, texts)
    sources = np.array([item.source for item in dev])
    return {
        name: round(float(np.mean([v[sources == one].mean() for one in np.unique(sources)])), 4)
        for name, v in values.items()
    }


@torch.no_grad()
def reciprocal_ranks(
    recipe: Recipe,
    model: Model,
    first_stage: float,
    dev: Sequence[Example],
    queries: Tokens | Sequence[NDArray[np.int32]],
    texts: Tokens,
    depth: int = 40,
) -> dict[str, NDArray[np.float64]]:
    """1 / rank of the first gold text among the window's head, (queries,) each.

    `first` is the first stage, `alone` the model, `fused` both.
    """
    model.eval()
    found = np.zeros((3, len(dev)))
    for place, item in enumerate(dev):
        pairs = zip(item.candidates[:depth], item.first_stage[:depth], strict=True)
        window = [*zip(item.golds, item.gold_first_stage, strict=True), *pairs]
        lists = [([text for text, _ in window], [score for _, score in window])]
        batch = make_batch([queries[place]], lists, [set(item.golds)], texts, chunks=3)
        logits = list_logits(model, batch)[0]
        first = batch.first_stage[0]
        for row, scores in enumerate((first, logits, logits + first_stage * first)):
            found[row, place] = reciprocal_rank(scores, batch.gold[0])
    model.train()
    return dict(zip(("first", "alone", "fused"), found, strict=True))


def reciprocal_rank(scores: Tensor, gold: Tensor) -> float:
    """1 / rank of the best gold text; a tie with a negative counts as lost."""
    best = scores[gold].max()
    return 1.0 / (1 + int((scores[~gold] >= best).sum()))


def write(state: dict[str, Any], path: Path) -> None:
    """Save so that a crash leaves the old file or the new one, never half of one."""
    part = path.with_suffix(".tmp")
    torch.save(state, part)
    part.replace(path)
