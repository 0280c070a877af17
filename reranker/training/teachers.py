"""Who teaches besides the labels: a trained network, a bi-encoder, or scores stored beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from tokenizers import Tokenizer

from reranker.evaluation.baselines import BiEncoder, load_bi_encoder, normalise
from reranker.models.backbone import find_backbone
from reranker.training.lists import Tokens, cut_texts
from reranker.training.scoring import list_logits
from reranker.training.start import Model, left_out_by, left_out_of, load_any, tokenizer_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from reranker.training.config import Recipe, TeacherConfig
    from reranker.training.examples import Example
    from reranker.training.lists import Batch

Lists = list[tuple[list[int], list[float]]]


class Teacher(Protocol):
    """Scores lists that a student is to score alike."""

    def scores(self, batch: Batch, chosen: Sequence[int], lists: Lists) -> Tensor | None:
        """Scores of the batch's lists, (B, N), NaN where unknown; None where all are.

        `chosen` are the lists' examples by number, `lists` their texts by place in the pool.
        """


def find_teacher(
    recipe: Recipe, pool: list[str], items: list[Example], device: torch.device
) -> Teacher:
    """The teacher that the recipe names; without one, the scores that the examples carry."""
    config = recipe.taught_by
    if config is not None and config.encoder is not None:
        if any(item.taught for item in items):
            return StoredScores(items)  # its own, from when the candidates were found
        # Short texts are encoded all at once, the few passages that are drawn as they come: one
        # by one, so that their vectors do not depend on which come together.
        at_once = recipe.task == "title"
        encode = with_prompts(config, batch_size=64 if at_once else 1)
        return EncoderTeacher(config, encode, pool, items, at_once)
    if config is not None and config.folder is not None:
        model = load_any(Path(config.folder), config.blend).to(device).requires_grad_(False)
        left_out = left_out_by(Path(config.folder))
        texts = None
        if left_out != left_out_of(recipe) and recipe.augment is None:
            tokenizer = Tokenizer.from_str(tokenizer_of(recipe))
            texts = Tokens(tokenizer, pool, recipe.lists.max_text_tokens, left_out)
        return NetworkTeacher(model, recipe.precision, texts)
    return StoredScores(items)


def with_prompts(config: TeacherConfig, batch_size: int = 64) -> BiEncoder:
    """The bi-encoder that a recipe names, with its prompts before queries and texts."""
    encode = load_bi_encoder(find_backbone(str(config.encoder)), batch_size)
    return BiEncoder(
        lambda queries: encode([config.query_prompt + query for query in queries]),
        lambda texts: encode([config.text_prompt + text for text in texts]),
    )


class NetworkTeacher:
    """A trained network, frozen; it reads the same tokens as the student, or texts of its own."""

    def __init__(self, model: Model, precision: str = "fp32", texts: Tokens | None = None) -> None:
        self._model, self._precision, self._texts = model, precision, texts

    def scores(self, batch: Batch, chosen: Sequence[int], lists: Lists) -> Tensor | None:
        """See `Teacher`."""
        if self._texts is not None:
            chunks = cut_texts([texts for texts, _ in lists], self._texts, len(batch.chunks))
            batch = batch._replace(chunks=chunks).to(batch.valid.device)
        return self.logits(batch).masked_fill(~batch.valid, float("nan"))

    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        """The network's scores of lists that no example need hold, (B, N)."""
        device, low = batch.valid.device.type, self._precision == "bf16"
        with torch.autocast(device, torch.bfloat16, enabled=low):
            return list_logits(self._model, batch).float()  # of bf16 products they are bf16


class EncoderTeacher:
    """A bi-encoder that was trained elsewhere: scale x cosine of its vectors."""

    def __init__(
        self,
        config: TeacherConfig,
        encode: BiEncoder,
        pool: list[str],
        items: list[Example],
        at_once: bool,
    ) -> None:
        self._config, self._encode, self._pool, self._items = config, encode, pool, items
        self._vectors: dict[int, NDArray[np.float32]] = {}  # place in the pool -> length 1
        if at_once:
            self._learn(range(len(pool)))

    def scores(self, batch: Batch, chosen: Sequence[int], lists: Lists) -> Tensor | None:
        """See `Teacher`."""
        self._learn(dict.fromkeys(place for texts, _ in lists for place in texts))
        queries = normalise(self._encode.queries([self._items[i].query for i in chosen]))
        scores = np.full(batch.valid.shape, np.nan, dtype=np.float32)
        for row, (query, (texts, _)) in enumerate(zip(queries, lists, strict=True)):
            vectors = np.stack([self._vectors[place] for place in texts])
            scores[row, : len(texts)] = self._config.scale * vectors @ query
        return torch.from_numpy(scores).to(batch.valid.device)

    def _learn(self, places: Sequence[int] | range | dict[int, None]) -> None:
        new = [place for place in places if place not in self._vectors]
        if new:
            vectors = normalise(self._encode.texts([self._pool[place] for place in new]))
            self._vectors.update(zip(new, vectors, strict=True))


class StoredScores:
    """Scores that the examples carry (`Example.taught`); NaN for texts from elsewhere."""

    def __init__(self, items: Sequence[Example]) -> None:
        self._items = items

    def scores(self, batch: Batch, chosen: Sequence[int], lists: Lists) -> Tensor | None:
        """See `Teacher`."""
        items = [self._items[i] for i in chosen]
        if not any(item.taught for item in items):
            return None
        scores = torch.full(batch.valid.shape, float("nan"))
        for row, (item, (texts, _)) in enumerate(zip(items, lists, strict=True)):
            known = item.taught_by_text
            for place, text in enumerate(texts):
                if text in known:
                    scores[row, place] = known[text]
        return scores.to(batch.valid.device)
