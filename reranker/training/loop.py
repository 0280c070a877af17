"""The training loop, from top to bottom: one for titles and passages, broadcast and pairwise.

A training lives in a folder: `recipe.toml`, `train/` and `dev/` examples, `checkpoint.pt`
(model, optimiser and step: all that a resumed training needs to go on bit for bit), `log.jsonl`
and, at the end, `best.pt`.

Started with `accelerate launch` or `torchrun`, several processes share every step: each takes its
part of the step's lists, and gradients are averaged. What is drawn is the same for any number.
"""

from __future__ import annotations

import json
import logging
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, reduce
from tokenizers import Tokenizer
from torch import Tensor, nn

from reranker.models.broadcast import BroadcastEncoder
from reranker.models.pair import PairEncoder
from reranker.training import losses
from reranker.training.augment import Augmenter
from reranker.training.draws import Draw, Draws, until
from reranker.training.examples import Example, load
from reranker.training.keep import KeepLists, known_before
from reranker.training.lists import Batch, Tokens, make_batch
from reranker.training.mining import Miner
from reranker.training.processes import find_processes
from reranker.training.scoring import list_logits, own_lists, score_all, score_lists
from reranker.training.start import Model, new_model, text_tokens, tokenizer_of, write
from reranker.training.teachers import find_teacher

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from reranker.training.config import Recipe

log = logging.getLogger(__name__)


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
    processes = find_processes()
    device, team = processes.device, processes.num_processes
    shared = {"queries_per_step": recipe.queries_per_step}
    if recipe.keep:
        shared["keep.queries_per_step"] = recipe.keep.queries_per_step
    for name, number in shared.items():
        if number % team:
            raise ValueError(
                f"{name} is {number}: {team} processes cannot share them evenly; give a multiple"
            )
    torch.manual_seed(recipe.seed)
    with processes.main_process_first():  # the others read what it has narrowed
        model = new_model(recipe, folder).to(device)
    # The weight of the first stage's score beside the model's logit, learned on the way.
    first_stage = nn.Parameter(torch.tensor(1.0, device=device))
    optimiser = torch.optim.AdamW(
        parameter_groups(recipe, model, first_stage), betas=(0.9, 0.98), fused=True
    )
    rates = [group["lr"] for group in optimiser.param_groups]

    pool, items, texts, queries, dev, dev_queries = data or load_data(recipe, folder)
    teacher = find_teacher(recipe, pool, items, device)
    miner = Miner(recipe, items, texts, queries)
    known = known_before(recipe, folder, device, teacher) if recipe.keep else None
    keep = KeepLists(recipe, folder) if recipe.keep else None

    kept = folder / "checkpoint.pt"
    step, best, since = 0, -1.0, 0  # `since`: looks at the dev split without a better result
    if kept.exists():
        state = torch.load(kept, weights_only=True, map_location="cpu")
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        first_stage.data.copy_(state["first_stage"])
        step, best, since = state["step"], state["best"], state.get("since", 0)
        miner.hardest = state.get("hardest", {})
        log.info("resumed at step %d", step)

    def save() -> None:
        state = {
            "model": model.state_dict(),
            "optimiser": optimiser.state_dict(),
            "first_stage": first_stage.detach(),
            "step": step,
            "best": best,
            "since": since,
            "hardest": miner.hardest,
        }
        if processes.is_main_process:
            write(state, kept)

    augmenter = None
    if recipe.augment:
        tokenizer = Tokenizer.from_str(tokenizer_of(recipe))
        augmenter = Augmenter(recipe, folder, pool, texts, items, tokenizer)

    last = recipe.steps if stop_at is None else min(recipe.steps, stop_at)
    draws = Draws(recipe, items, queries, texts, len(pool), miner, augmenter, processes, keep)
    coming: Iterator[Draw] = iter(())
    mined_until = step  # what is mined holds until then
    started, tokens_seen = time.monotonic(), 0
    while step < last and not (recipe.patience and since >= recipe.patience):
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * schedule(recipe, step)
        if step == mined_until:
            if augmenter:
                with processes.main_process_first():  # the others read what it mined
                    augmenter.advance(step, model)
            miner.advance(step, model, processes)
            mined_until = until(recipe, step, last)
            coming = draws.of(step * recipe.accumulate, mined_until * recipe.accumulate)
        total = 0.0
        for part in range(recipe.accumulate):
            draw = step * recipe.accumulate + part
            drawn = next(coming)
            batch = drawn.batch.to(device)
            taught = teacher.scores(batch, drawn.chosen, drawn.lists)
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
                dual = draw % recipe.dual_every == 0
                loss = batch_loss(
                    recipe, model, batch, first_stage, drawn.added.to(device), dual, taught
                )
                if known and recipe.keep and drawn.held:
                    held = drawn.held.to(device)
                    now = list_logits(model, held).float()
                    distance = losses.dynamic_distillation(known(held), now, held.valid)
                    loss = loss + recipe.keep.weight * distance
            loss = loss / recipe.accumulate
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
            tokens_seen += sum(chunk.mask.numel() for chunk in batch.chunks)
        if team > 1:
            total = average(optimiser, total, device)
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
            weight = float(first_stage.detach())
            seen: list[dict[str, float]] = [{}]
            if processes.is_main_process:
                seen = [check(recipe, model, weight, dev, dev_queries, texts)]
            scores = broadcast_object_list(seen)[0]
            line.update(scores)
            quality = (scores["alone"] + scores["fused"]) / 2
            since += 1
            if quality >= best:
                best, since = quality, 0
                if processes.is_main_process:
                    state = {"model": model.state_dict(), "step": step, **scores}
                    write(state, folder / "best.pt")
            log.info("step %d: %s", step, scores)
            if recipe.patience and since >= recipe.patience:
                log.info("stopped: no better result in the last %d looks", since)
                last = step
        if processes.is_main_process and (step % 10 == 0 or "fused" in line):
            seconds = time.monotonic() - started
            line["tokens_per_second"] = round(tokens_seen / seconds)
            line["first_stage"] = round(float(first_stage.detach()), 4)
            with (folder / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        if step % recipe.save_every == 0 or step == last:
            save()
    processes.wait_for_everyone()
    return folder / "best.pt"


def average(optimiser: torch.optim.Optimizer, total: float, device: torch.device) -> float:
    """Average the gradients over all processes; returns the average of `total`."""
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad = reduce(parameter.grad, "mean")
    return float(reduce(torch.tensor(total, device=device, dtype=torch.float64), "mean"))


def load_data(recipe: Recipe, folder: Path, every: int = 1) -> Data:
    """Read and tokenize what `prepare` wrote; of the training examples, one in `every`."""
    pool, items = load(folder / "train", every)
    dev_pool, dev_items = load(folder / "dev")
    if dev_pool != pool:
        raise ValueError(f"{folder} was not prepared to its end; prepare it again")
    for name, found in (("training", items), ("dev", dev_items)):
        if not found:
            raise ValueError(
                f"{folder} holds no {name} examples: no judged query of that side of the split "
                "has candidates; give more queries, or exclude fewer, and another --out"
            )
    tokenizer = Tokenizer.from_str(tokenizer_of(recipe))
    limits = recipe.lists
    dev = dev_sample(dev_items, recipe)
    return Data(
        pool=pool,
        items=items,
        texts=text_tokens(recipe, tokenizer, pool),
        queries=Tokens(tokenizer, [item.query for item in items], limits.max_query_tokens),
        dev=dev,
        dev_queries=Tokens(tokenizer, [item.query for item in dev], limits.max_query_tokens),
    )


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
        elif short in ("query_bias", "token_match", "mean_match"):
            rate, decay = recipe.bias_learning_rate, 0.0
        else:  # the head and the scale
            rate, decay = recipe.head_learning_rate, 0.0
        if parameter.ndim < 2:
            decay = 0.0
        groups.append({"params": [parameter], "lr": rate, "weight_decay": decay})
    groups.append({"params": [first_stage], "lr": recipe.bias_learning_rate, "weight_decay": 0.0})
    return groups


def batch_loss(
    recipe: Recipe,
    model: Model,
    batch: Batch,
    first_stage: Tensor,
    added: Tensor,
    dual: bool = True,
    taught: Tensor | None = None,
) -> Tensor:
    """The recipe's loss of one batch; `added` (B,) says which lists add the first stage.

    `dual` False leaves the dual encoder's part out. `taught` (B, N) are a teacher's scores, NaN
    where there is none.
    """
    read = model.encode_query(batch.query_ids, batch.query_mask)
    again = recipe.texts_per_pass > 0
    logits = score_lists(model, batch, read, again).float()
    # Part of the graph, also where neither labels nor a teacher say anything of these lists.
    loss = 0.0 * logits.sum()
    if recipe.labels:
        fused = logits + first_stage * batch.first_stage * added[:, None]
        loss = recipe.labels * label_loss(recipe, fused, batch)
    if taught is not None and recipe.taught_by is not None:
        known = taught.isfinite()
        heat = recipe.taught_by.temperature
        theirs = torch.where(known, taught, 0.0) / heat
        # KL(teacher || student); only the student's scores have a gradient.
        distance = losses.dynamic_distillation(theirs, logits / heat, known)
        loss = loss + recipe.taught_by.weight * distance
    if not dual or not (recipe.distillation or recipe.in_batch):
        return loss
    if not isinstance(model, BroadcastEncoder):
        raise ValueError("distillation needs the broadcast architecture, which has a dual encoder")
    scores = score_all(model, batch, read, again).float()  # (B, B * N)
    student = own_lists(scores, batch)  # (B, N)
    if taught is not None and recipe.taught_by is not None:
        distance = losses.dynamic_distillation(theirs, student / heat, known)
        loss = loss + recipe.taught_by.weight * distance
    if recipe.distillation:
        teacher = logits.detach() if recipe.teacher == "static" else logits
        distance = losses.dynamic_distillation(student, teacher, batch.valid)
        loss = loss + recipe.distillation * distance
    if recipe.in_batch:
        own = losses.in_batch_softmax(scores, batch.gold, batch.valid, batch.elsewhere)
        loss = loss + recipe.in_batch * own
    return loss


def label_loss(recipe: Recipe, scores: Tensor, batch: Batch) -> Tensor:
    """The loss of scores (B, N) by the judgements alone."""
    if recipe.loss == "softmax":
        return losses.listwise_softmax(scores, batch.gold, batch.valid)
    if recipe.loss == "sigmoid-trick":
        return losses.sigmoid_trick(
            scores, batch.gold, batch.valid, recipe.margin, recipe.temperature
        )
    return losses.pairwise_logistic(scores, batch.gold, batch.valid)


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
        batch = batch.to(next(model.parameters()).device)
        logits = list_logits(model, batch)[0]
        first = batch.first_stage[0]
        for row, scores in enumerate((first, logits, logits + first_stage * first)):
            found[row, place] = reciprocal_rank(scores, batch.gold[0])
    model.train()
    return dict(zip(("first", "alone", "fused"), found, strict=True))


def reciprocal_rank(scores: Tensor, gold: Tensor) -> float:
    """1 / rank of the best gold text; a tie with a negative counts as lost, NaN is last."""
    scores = scores.masked_fill(scores.isnan(), float("-inf"))
    best = scores[gold].max()
    return 1.0 / (1 + int((scores[~gold] >= best).sum()))
