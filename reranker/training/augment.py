"""Hybrid data augmentation: training lists that the models themselves choose while they train.

RocketQAv2 (arXiv 2110.07367, section 3.3) after RocketQA (arXiv 2010.08191): the current dual
encoder searches a pool of passages for each query, the current reranker scores what it found.
*Denoised* lists hold texts that the reranker is sure are wrong; texts that it is sure are right
join the gold ones, and those in between, likely false negatives, are left out. *Undenoised* lists
are drawn at random from what the dual encoder found. A mined list holds a share of each.

Three kinds of queries take part: judged ones, queries without judgements, whose pseudo-positive
is the text that the reranker is sure of, and queries made from passages (their titles,
sentences that are taken out of them, words of a sentence).

A mining depends on the recipe's seed, the step and the weights at that step; it is written to
`mined/STEP.json`, so that a resumed training reads what an uninterrupted one would have mined.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody uses

from reranker.evaluation.bm25 import STOP_WORDS
from reranker.models.broadcast import BroadcastEncoder
from reranker.training.lists import Tokens, padded
from reranker.training.start import left_out_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from tokenizers import Tokenizer
    from torch import Tensor

    from reranker.models.broadcast import QueryStates
    from reranker.training.config import AugmentConfig, Recipe
    from reranker.training.examples import Example

log = logging.getLogger(__name__)

UNLABELLED = "unlabelled.json"  # queries without judgements, in a training's folder

Kind = Literal["labelled", "unlabelled", "made"]

_PASS = 64  # texts that are encoded or scored at a time
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9\"'(])")
_WORD = re.compile(r"\w[\w'-]*")
_LEAST_WORDS, _MOST_WORDS = 5, 24  # of a sentence that can stand for a query
_MOST_TITLE_WORDS = 10


@dataclass
class MinedList:
    """One query and what was mined for it; places from the pool's size on are `Mined.texts`."""

    kind: Kind
    query: str
    golds: list[int]  # judged, pseudo-positive, or the passage that the query was made from
    negatives: list[int]  # denoised: the reranker is sure of them, the nearest first
    retrieved: list[int]  # undenoised: what the dual encoder found, without the gold texts
    first_stage: dict[int, float] = field(default_factory=dict)  # where it is known


@dataclass
class Mined:
    """One mining."""

    step: int
    texts: list[str]  # of made queries' passages; their places follow the pool's
    lists: list[MinedList]

    def write(self, path: Path) -> None:
        """Write to a file, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".tmp")
        part.write_text(json.dumps(asdict(self), ensure_ascii=False), "utf-8")
        part.replace(path)

    @classmethod
    def read(cls, path: Path) -> Mined:
        """Read what `write` wrote."""
        kept = json.loads(path.read_text("utf-8"))
        for item in kept["lists"]:
            item["first_stage"] = {int(k): v for k, v in item["first_stage"].items()}
        lists = [MinedList(**item) for item in kept["lists"]]
        return cls(kept["step"], kept["texts"], lists)


class Made(NamedTuple):
    """A query made from a passage."""

    query: str
    text: str  # the passage, without what the query was taken from
    place: int  # of the passage in the pool


def mining_step(config: AugmentConfig, step: int) -> int | None:
    """The step whose mining is used at `step`; None before the first one."""
    if step < config.first:
        return None
    return config.first + (step - config.first) // config.every * config.every


class Augmenter:
    """A training's minings: each made or read when its step comes, and what is drawn of it."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        pool: Sequence[str],
        texts: Tokens,
        items: Sequence[Example],
        tokenizer: Tokenizer,
    ) -> None:
        if recipe.augment is None:
            raise ValueError("the recipe has no [augment]: there is nothing to mine")
        self._recipe, self._config, self._folder = recipe, recipe.augment, folder
        self._pool, self._texts, self._items = pool, texts, items
        self._tokenizer = tokenizer
        path = folder / UNLABELLED
        self._unlabelled = json.loads(path.read_text("utf-8")) if path.is_file() else []
        self._mined: Mined | None = None
        self._queries = Tokens(tokenizer, [], recipe.lists.max_query_tokens)
        self.texts = texts  # with those of the current mining

    def advance(self, step: int, model: torch.nn.Module) -> None:
        """Make `step`'s mining the current one, mining now where it is due.

        Raises FileNotFoundError where a resumed training's earlier mining is gone.
        """
        due = mining_step(self._config, step)
        if due is None or (self._mined is not None and self._mined.step == due):
            return
        path = self._folder / "mined" / f"{due}.json"
        if path.is_file():
            mined = Mined.read(path)
        elif due == step:
            mined = mine(
                self._recipe,
                model,
                step,
                self._pool,
                self._texts,
                self._items,
                self._tokenizer,
                self._unlabelled,
            )
            mined.write(path)
        else:
            raise FileNotFoundError(
                f"{path} is missing: the training cannot go on as it began; "
                "bring the file back or start anew in another folder"
            )
        kinds = [one.kind for one in mined.lists]
        log.info("mining of step %d: %s", due, {kind: kinds.count(kind) for kind in set(kinds)})
        self._mined = mined
        queries = [one.query for one in mined.lists]
        self._queries = Tokens(self._tokenizer, queries, self._recipe.lists.max_query_tokens)
        self.texts = MoreTokens(
            self._texts, len(self._pool), self._tokenizer, mined.texts, self._recipe
        )

    def replace(
        self,
        rng: np.random.Generator,
        queries: list[np.ndarray],
        lists: list[tuple[list[int], list[float]]],
        golds: list[set[int]],
    ) -> None:
        """Put mined lists in the places of a batch's last ones, as many as their share says."""
        if self._mined is None or not self._mined.lists:
            return
        number = round(self._config.share * len(lists))
        chosen = rng.integers(len(self._mined.lists), size=number).tolist()
        for place, which in enumerate(chosen, start=len(lists) - number):
            item = self._mined.lists[which]
            queries[place] = self._queries[which]
            lists[place] = draw_mined(item, self._recipe, rng)
            golds[place] = set(item.golds)


@torch.no_grad()
def mine(
    recipe: Recipe,
    model: torch.nn.Module,
    step: int,
    pool: Sequence[str],
    texts: Tokens,
    items: Sequence[Example],
    tokenizer: Tokenizer,
    unlabelled: Sequence[str] = (),
) -> Mined:
    """Mine lists with the models as they are now; see the module's docstring.

    `texts` are the pool's tokens, `items` the training examples, `unlabelled` queries without
    judgements. Raises ValueError for an architecture without a dual encoder.
    """
    config = recipe.augment
    if config is None or not isinstance(model, BroadcastEncoder):
        raise ValueError(
            "mining needs a recipe with [augment] and the broadcast architecture, "
            "which has a dual encoder"
        )
    rng = np.random.default_rng([recipe.seed, 2, step])
    chosen = rng.permutation(len(items))[: config.labelled].tolist()
    asked = [unlabelled[i] for i in rng.permutation(len(unlabelled))[: config.unlabelled].tolist()]
    made = make_queries(pool, config.made, rng)

    # What is searched: the judged queries' own windows, the made queries' texts, and chance.
    places = dict.fromkeys(text for i in chosen for text in items[i].golds)
    per_query = max(1, config.pool // (2 * max(1, len(chosen))))
    for i in chosen:
        places.update(dict.fromkeys(items[i].candidates[:per_query]))
    drawn = rng.permutation(len(pool))[: config.pool].tolist()
    places.update(dict.fromkeys(drawn[: max(0, config.pool - len(places))]))
    searched = [*places, *range(len(pool), len(pool) + len(made))]

    rows = MoreTokens(texts, len(pool), tokenizer, [one.text for one in made], recipe)
    queries = [items[i].query for i in chosen] + asked + [one.query for one in made]
    query_rows = Tokens(tokenizer, queries, recipe.lists.max_query_tokens)
    was_training = model.training
    model.eval()
    vectors = text_vectors(model, rows, searched)
    lists: list[MinedList] = []
    for at, query in enumerate(queries):
        read = model.encode_query(*_padded([query_rows[at]], model.scale.device))
        near = nearest(vectors, read, min(config.depth + 1, len(searched)))
        found = [searched[i] for i in near]
        if at < len(chosen):
            item = items[chosen[at]]
            out = {*item.golds, *item.skipped}
            # A made query's text is its passage once more, or what is left of it.
            found = [
                text
                for text in found
                if (text if text < len(pool) else made[text - len(pool)].place) not in out
            ]
            one = _labelled(config, model, read, item, found, rows)
        elif at < len(chosen) + len(asked):
            one = _unlabelled(config, model, read, query, found, rows)
        else:
            number = at - len(chosen) - len(asked)
            gold = len(pool) + number
            # Round trip: a query that does not lead back to its own passage is not about it.
            if gold not in found:
                continue
            found = [text for text in found if text != made[number].place]
            one = _made(config, model, read, query, gold, found, rows)
        if one is not None:
            lists.append(one)
    model.train(was_training)
    return Mined(step, [one.text for one in made], lists)


def _labelled(
    config: AugmentConfig,
    model: BroadcastEncoder,
    read: QueryStates,
    item: Example,
    found: Sequence[int],
    rows: Tokens,
) -> MinedList | None:
    others = found[: config.depth]
    logits = score_texts(model, read, rows, [*item.golds, *others])
    best = float(logits[: len(item.golds)].max())
    positives, negatives = sort_out(logits[len(item.golds) :], best, config)
    known = dict(zip(item.candidates, item.first_stage, strict=True))
    known |= dict(zip(item.golds, item.gold_first_stage, strict=True))
    golds = [*item.golds, *(others[i] for i in positives)]
    retrieved = [text for text in others if text not in golds]
    floor = min(item.first_stage, default=0.0)
    first = {text: known.get(text, floor) for text in [*golds, *retrieved]}
    return _list("labelled", item.query, golds, [others[i] for i in negatives], retrieved, first)


def _unlabelled(
    config: AugmentConfig,
    model: BroadcastEncoder,
    read: QueryStates,
    query: str,
    found: Sequence[int],
    rows: Tokens,
) -> MinedList | None:
    found = found[: config.depth]
    logits = score_texts(model, read, rows, found)
    top = int(logits.argmax())
    if share_of_top(logits) < config.positive_above:
        return None  # not sure enough of any
    _, negatives = sort_out(logits, float(logits[top]), config)
    retrieved = [text for text in found if text != found[top]]
    return _list("unlabelled", query, [found[top]], [found[i] for i in negatives], retrieved)


def _made(
    config: AugmentConfig,
    model: BroadcastEncoder,
    read: QueryStates,
    query: str,
    gold: int,
    found: Sequence[int],
    rows: Tokens,
) -> MinedList | None:
    others = [text for text in found if text != gold][: config.depth]
    logits = score_texts(model, read, rows, [gold, *others])
    _, negatives = sort_out(logits[1:], float(logits[0]), config)
    return _list("made", query, [gold], [others[i] for i in negatives], others)


def _list(
    kind: Kind,
    query: str,
    golds: list[int],
    negatives: list[int],
    retrieved: list[int],
    first_stage: dict[int, float] | None = None,
) -> MinedList | None:
    if not negatives and not retrieved:
        return None
    return MinedList(kind, query, golds, negatives, retrieved, first_stage or {})


def confidence(logits: NDArray[np.float32], reference: float) -> NDArray[np.float64]:
    """How sure the reranker is, (n,), that each text answers at least as well as the reference.

    sigmoid(logit - reference): what a softmax over just the two would give the text, which is
    how the model is trained. The reference is the best gold text's logit.
    """
    distance = np.asarray(logits, dtype=np.float64) - reference
    out: NDArray[np.float64] = 0.5 * (1 + np.tanh(distance / 2))  # a sigmoid that cannot overflow
    return out


def sort_out(
    logits: NDArray[np.float32], reference: float, config: AugmentConfig
) -> tuple[list[int], list[int]]:
    """Places of pseudo-positives and of hard negatives, the hardest first; the rest is dropped."""
    sure = confidence(logits, reference)
    order = np.argsort(-logits, kind="stable")  # not by confidence, which saturates
    positives = order[sure[order] >= config.positive_above]
    negatives = order[sure[order] <= config.negative_below]
    return positives.tolist(), negatives.tolist()


def share_of_top(logits: NDArray[np.float32]) -> float:
    """The best text's share of the softmax over the list."""
    values = np.asarray(logits, dtype=np.float64)
    return float(1 / np.exp(values - values.max()).sum())


def draw_mined(
    item: MinedList, recipe: Recipe, rng: np.random.Generator
) -> tuple[list[int], list[float]]:
    """Gold texts followed by denoised and undenoised negatives, and their first-stage scores."""
    size, config = recipe.lists.size, recipe.augment
    golds = rng.permutation(item.golds)[: min(recipe.lists.golds, size - 1)].tolist()
    taken = dict.fromkeys(golds)
    room = size - len(taken)
    hard = round(room * (config.denoised if config else 0.5))

    def take(source: Sequence[int], number: int) -> None:
        for place in rng.permutation(len(source)).tolist():
            if number <= 0 or len(taken) >= size:
                return
            if source[place] not in taken:
                taken[source[place]] = None
                number -= 1

    # The nearest of the sure negatives: four times as many as are wanted, so that lists differ.
    take(item.negatives[: 4 * hard], hard)
    take(item.retrieved, size)
    take(item.negatives, size)
    return list(taken), [item.first_stage.get(text, 0.0) for text in taken]


def make_queries(pool: Sequence[str], count: int, rng: np.random.Generator) -> list[Made]:
    """At most `count` queries from random passages, a third each: sentence, title, words.

    Passages are "title. text". A sentence is taken out of its passage, as in the inverse cloze
    task (Lee et al. 2019, arXiv 1906.00300), and so is a title; the words are a span of a
    sentence without its stop words, as people type them. Passages too short are passed over.
    """
    found: list[Made] = []
    if count <= 0:
        return found
    for place in rng.permutation(len(pool))[: 8 * count].tolist():
        if len(found) == count:
            break
        made = _query_of(pool[place], len(found) % 3, rng)
        if made is not None:
            found.append(Made(*made, place))
    return found


def _query_of(text: str, form: int, rng: np.random.Generator) -> tuple[str, str] | None:
    title, stop, body = text.partition(". ")
    if form == 1:
        is_title = stop and body and 0 < len(title.split()) <= _MOST_TITLE_WORDS
        return (title.strip(), body.strip()) if is_title and body.strip() else None
    taken = take_sentence(body, rng)
    if taken is None:
        return None
    sentence, rest = taken
    if form == 0:
        return sentence, f"{title}{stop}".strip() + f" {rest}"
    words = [w for w in _WORD.findall(sentence) if w.lower() not in STOP_WORDS]
    length = min(len(words), int(rng.integers(3, 8)))
    if length < 3:
        return None
    start = int(rng.integers(len(words) - length + 1))
    return " ".join(words[start : start + length]).lower(), text


def take_sentence(text: str, rng: np.random.Generator) -> tuple[str, str] | None:
    """A random sentence of usual length, and the text without it; None where nothing is left."""
    sentences = [part.strip() for part in _SENTENCE.split(text) if part.strip()]
    fits = [i for i, one in enumerate(sentences) if _LEAST_WORDS <= len(one.split()) <= _MOST_WORDS]
    if len(sentences) < 2 or not fits:
        return None
    at = int(rng.choice(fits))
    return sentences.pop(at), " ".join(sentences)


class MoreTokens(Tokens):
    """A pool's tokens and, from its size on, those of further texts."""

    def __init__(
        self, first: Tokens, size: int, tokenizer: Tokenizer, texts: Sequence[str], recipe: Recipe
    ) -> None:
        super().__init__(tokenizer, texts, recipe.lists.max_text_tokens, left_out_of(recipe))
        self._first, self._size = first, size

    def __getitem__(self, place: int) -> np.ndarray:
        if place < self._size:
            return self._first[place]
        return super().__getitem__(place - self._size)


def text_vectors(model: BroadcastEncoder, rows: Tokens, places: Sequence[int]) -> Tensor:
    """The dual encoder's unit vectors (n, H) of texts."""
    return _by_length(
        rows,
        places,
        model.scale.device,
        lambda ids, mask: F.normalize(model.encode_text(None, ids, mask), dim=-1),
    )


def score_texts(
    model: BroadcastEncoder, read: QueryStates, rows: Tokens, places: Sequence[int]
) -> NDArray[np.float32]:
    """The reranker's logits (n,) of texts."""
    out: NDArray[np.float32] = _by_length(
        rows, places, model.scale.device, lambda ids, mask: model.score(read, ids, mask)
    ).numpy()
    return out


def nearest(vectors: Tensor, read: QueryStates, k: int) -> list[int]:
    """The k rows of vectors (n, H) nearest to the query, nearest first; ties in their order."""
    scores = (vectors @ F.normalize(read.pooled, dim=-1)[0].cpu()).numpy()
    found: list[int] = np.argsort(-scores, kind="stable")[:k].tolist()
    return found


def _by_length(
    rows: Tokens,
    places: Sequence[int],
    device: torch.device,
    function: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Run texts through a function of (ids, mask), similar lengths together; in their order.

    The function gets tensors on the device; what comes back is on the CPU.
    """
    order = sorted(range(len(places)), key=lambda i: len(rows[places[i]]))
    parts = [
        function(*_padded([rows[places[i]] for i in order[start : start + _PASS]], device)).cpu()
        for start in range(0, len(order), _PASS)
    ]
    back = torch.empty(len(order), dtype=torch.long)
    back[torch.tensor(order)] = torch.arange(len(order))
    return torch.cat(parts)[back]


def _padded(rows: Sequence[np.ndarray], device: torch.device) -> tuple[Tensor, Tensor]:
    ids, mask = padded(rows)
    return ids.to(device), mask.to(device)
