"""Training lists: which texts stand together for one query at one step.

Everything drawn depends on the recipe's seed and the step alone, so a resumed training sees
exactly what an uninterrupted one would have seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from reranker.tokens import kept_tokens, without

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer

    from reranker.training.config import ListConfig
    from reranker.training.examples import Example


class Chunk(NamedTuple):
    """Texts of similar length, from any of the batch's lists."""

    ids: Tensor  # (n, T)
    mask: Tensor  # (n, T)
    owner: Tensor  # (n,) the list each text belongs to
    place: Tensor  # (n,) position in the flattened (B * N) lists


class Batch(NamedTuple):
    """B lists of N texts, cut into chunks by length so that little of it is padding."""

    query_ids: Tensor  # (B, Q)
    query_mask: Tensor  # (B, Q)
    chunks: list[Chunk]
    gold: Tensor  # (B, N)
    valid: Tensor  # (B, N)
    first_stage: Tensor  # (B, N), standardised; where unknown, the window's lowest
    elsewhere: Tensor  # (B, B * N), True for other lists' texts that are no gold of this query

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        if device.type == "cpu":
            return self
        return self._replace(
            chunks=[Chunk(*(part.to(device) for part in chunk)) for chunk in self.chunks],
            query_ids=self.query_ids.to(device),
            query_mask=self.query_mask.to(device),
            gold=self.gold.to(device),
            valid=self.valid.to(device),
            first_stage=self.first_stage.to(device),
            elsewhere=self.elsewhere.to(device),
        )


class Tokens:
    """Texts as token ids, each cut to a number of tokens with its closing one kept.

    `left_out` are tokens that are not read, as `reranker.tokens.Tokenizer` leaves them out.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        texts: Sequence[str],
        limit: int,
        left_out: Sequence[str] = (),
    ) -> None:
        tokenizer.no_padding()
        # What is left out makes room for what comes behind it.
        tokenizer.enable_truncation(2 * limit if left_out else limit)
        kept = kept_tokens(tokenizer, left_out)
        found: list[np.ndarray] = []
        for start in range(0, len(texts), 4096):
            for encoding in tokenizer.encode_batch(list(texts[start : start + 4096])):
                ids = np.asarray(encoding.ids, dtype=np.int32)
                if kept is not None:
                    inner = without(ids[1:-1], kept)[: limit - 2]
                    ids = np.concatenate([ids[:1], inner, ids[-1:]])
                found.append(ids)
        # One array: a process that puts lists together is sent it at once.
        self._ids = np.concatenate(found) if found else np.empty(0, np.int32)
        self._ends = np.cumsum([0, *map(len, found)])

    def __getitem__(self, place: int) -> np.ndarray:
        if not 0 <= place < len(self._ends) - 1:
            raise IndexError(place)
        ids: np.ndarray = self._ids[self._ends[place] : self._ends[place + 1]]
        return ids


def padded(rows: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Rows of ids -> ids and mask, both (n, longest)."""
    width = max(len(row) for row in rows)
    ids = np.zeros((len(rows), width), dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=bool)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
        mask[place, : len(row)] = True
    return torch.from_numpy(ids), torch.from_numpy(mask)


def draw_examples(count: int, size: int, step: int, seed: int) -> list[int]:
    """Which examples step `step` uses: every epoch goes through all of them once, shuffled."""
    first = step * size
    chosen: list[int] = []
    for place in range(first, first + size):
        epoch, inside = divmod(place, count)
        if inside == 0 or not chosen:
            order = np.random.default_rng([seed, epoch]).permutation(count)
        chosen.append(int(order[inside]))
    return chosen


def drop_tokens(row: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """A query's ids without a random share of its tokens; the first and the last one stay."""
    if share == 0:
        return row
    kept = rng.random(len(row)) >= share
    kept[[0, -1]] = True
    out: np.ndarray = row[kept]
    return out if len(out) > 2 else row


def draw_list(
    item: Example,
    config: ListConfig,
    pool: int,
    rng: np.random.Generator,
    hardest: Sequence[int] = (),
) -> tuple[list[int], list[float]]:
    """Gold texts followed by negatives, with their first-stage scores; at most `size`.

    `hardest` are negatives by the model's or the teacher's ranking; `config.mined` are taken.
    There is always a negative: of many gold texts, some wait for another step.
    """
    number = min(config.golds, config.size - 1)
    which = rng.permutation(len(item.golds))[:number].tolist()
    texts = {item.golds[i]: item.gold_first_stage[i] for i in which}
    floor = min(item.first_stage)
    known = dict(zip(item.candidates, item.first_stage, strict=True))

    def take(source: Sequence[int], number: int) -> None:
        wanted = min(number, config.size - len(texts))
        for place in rng.permutation(len(source)).tolist():
            if wanted <= 0:
                break
            if source[place] not in texts:
                texts[source[place]] = known.get(source[place], floor)
                wanted -= 1

    if config.mined:
        take(hardest, config.mined)
    take(item.candidates[: config.head], config.near)
    take(item.others, config.dense)
    if config.random:
        drawn = rng.integers(pool, size=4 * config.random).tolist()
        out = {*item.golds, *item.skipped}
        take([text for text in drawn if text not in out], config.random)
    take(item.candidates, config.size)
    return list(texts), list(texts.values())


def make_batch(
    queries: Sequence[np.ndarray],
    lists: Sequence[tuple[list[int], list[float]]],
    golds: Sequence[set[int]],
    tokens: Tokens | Sequence[np.ndarray],
    chunks: int,
) -> Batch:
    """Put lists together: queries' ids, texts by place in `tokens`, gold texts by place."""
    width = max(len(texts) for texts, _ in lists)
    names = np.full((len(lists), width), -1)  # each list's texts
    gold = np.zeros(names.shape, dtype=bool)
    first = np.zeros(names.shape, dtype=np.float32)
    for owner, (texts, scores) in enumerate(lists):
        names[owner, : len(texts)] = texts
        first[owner, : len(texts)] = scores
        gold[owner, : len(texts)] = [text in golds[owner] for text in texts]
    elsewhere = np.zeros((len(lists), names.size), dtype=bool)
    for owner, (texts, _) in enumerate(lists):
        elsewhere[owner] = ~np.isin(names.ravel(), [*texts, *golds[owner], -1])
    query_ids, query_mask = padded(queries)
    return Batch(
        query_ids,
        query_mask,
        cut_texts([texts for texts, _ in lists], tokens, chunks),
        gold=torch.from_numpy(gold),
        valid=torch.from_numpy(names >= 0),
        first_stage=torch.from_numpy(first),
        elsewhere=torch.from_numpy(elsewhere),
    )


def cut_texts(
    lists: Sequence[list[int]], tokens: Tokens | Sequence[np.ndarray], chunks: int
) -> list[Chunk]:
    """Lists of texts, by place in `tokens`, cut into so many chunks of similar length."""
    width = max(len(texts) for texts in lists)
    flat = sorted(
        (len(tokens[text]), owner, place)
        for owner, texts in enumerate(lists)
        for place, text in enumerate(texts)
    )
    cut = []
    for part in np.array_split(np.arange(len(flat)), min(chunks, len(flat))):
        rows = [flat[i] for i in part.tolist()]
        ids, mask = padded([tokens[lists[owner][place]] for _, owner, place in rows])
        owners = torch.tensor([owner for _, owner, _ in rows])
        places = torch.tensor([owner * width + place for _, owner, place in rows])
        cut.append(Chunk(ids, mask, owners, places))
    return cut
