"""Holding a network to what was known before, on text that nobody judged.

Training on one domain's titles destroys what the backbone knew about others. On unlabelled lists,
of documents or of words drawn at random, the scores of the network that teaches are the target,
or of the one that the training starts from, or else that one's cosines, as a bi-encoder's.
"""

from __future__ import annotations

import logging
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch
from tokenizers import Tokenizer

from reranker.evaluation.bm25 import BM25
from reranker.evaluation.collections import Document, read_corpus
from reranker.models.broadcast import BroadcastEncoder
from reranker.training import examples
from reranker.training.lists import Batch, Tokens, draw_examples, draw_list, make_batch
from reranker.training.pairs import against_titles, make_queries, phrase, sentences_of
from reranker.training.scoring import dual_logits
from reranker.training.start import new_model, text_tokens, tokenizer_of
from reranker.training.teachers import NetworkTeacher

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor

    from reranker.training.config import KeepConfig, Recipe
    from reranker.training.teachers import Teacher

log = logging.getLogger(__name__)

FOLDER = "keep"

_QUERY_WORDS = 10  # at most so many in lists of phrases and of words
_SHARES = (0.0, 0.0, 0.25, 0.5)  # of a text's words that are the query's
_JOINTS = (*[" "] * 16, "-", ".", "_", ": ")  # of words: now and then as software is named


def prepare_keep(recipe: Recipe, data: Path, out: Path) -> None:
    """Write the unlabelled examples that the recipe asks for into `out`.

    Raises ValueError where it asks for none.
    """
    config = _config(recipe)
    pool: list[str] = []
    items: list[examples.Example] = []

    def add(texts: Sequence[str], found: Sequence[examples.Example]) -> None:
        for item in found:
            for places in (item.golds, item.candidates, item.others):
                places[:] = [place + len(pool) for place in places]
        pool.extend(texts)
        items.extend(found)

    for number, path in enumerate(config.corpora):
        corpus: dict[str, Document] = {}
        for document in read_corpus(data / path):
            corpus.setdefault(document.id, document)
        rng = np.random.default_rng([recipe.seed, 4, number])
        ids = list(corpus)
        chosen = [corpus[ids[i]] for i in rng.permutation(len(ids))[: 2 * config.queries].tolist()]
        made = make_queries(chosen, rng, most=1)[: config.queries]
        add(*against_titles(path, made, corpus, rng))
        documents = list(corpus.values())
        add(*phrase_lists(path, documents, config.phrases, config.size, rng, config.text_words))
        log.info("%s: %d lists to keep", path, len(items))
    if config.words:
        words = whole_words(Tokenizer.from_str(tokenizer_of(recipe)))
        rng = np.random.default_rng([recipe.seed, 6])
        add(*word_lists(words, config.words, config.size, rng, config.text_words))
    examples.save(out / FOLDER, pool, items)


def phrase_lists(
    name: str,
    documents: Sequence[Document],
    number: int,
    size: int,
    rng: np.random.Generator,
    text_words: int = 8,
) -> tuple[list[str], list[examples.Example]]:
    """Pieces of sentences as queries against other pieces: texts that are no names of pages.

    A quarter of a list's `size` texts is of the query's own document, a half of documents that
    share words with it, the rest of any; each has one to `text_words` words. The examples have
    no gold texts.
    """
    sentences = [cut for one in documents if len(cut := sentences_of(one.text)) > 1]
    if not number or not sentences:
        return [], []
    wholes = [" ".join(cut) for cut in sentences]
    engine = BM25([str(place) for place in range(len(wholes))], wholes)

    lists = []
    for own in rng.integers(len(sentences), size=number).tolist():
        sentence = sentences[own][rng.integers(len(sentences[own]))]
        query = phrase(sentence, rng, _QUERY_WORDS)
        near = [int(place) for place, _ in engine.search(query, size)]
        anywhere = rng.integers(len(sentences), size=size).tolist()
        places = [own] * (size // 4) + near[: size // 2] + anywhere
        lists.append((query, [phrase(wholes[i], rng, text_words) for i in places[:size]]))
    return unlabelled(name, lists)


def word_lists(
    words: Sequence[str], number: int, size: int, rng: np.random.Generator, text_words: int = 8
) -> tuple[list[str], list[examples.Example]]:
    """Words drawn at random as queries and texts, of which some share words with the query.

    No domain is like them, so that none is left to itself: what a network makes of words, and of
    words that return, is what it has to keep for all. The examples have no gold texts.
    """

    def some(most: int) -> list[str]:
        return [words[i] for i in rng.integers(len(words), size=rng.integers(1, most + 1)).tolist()]

    def text(query: Sequence[str]) -> str:
        share = rng.choice(_SHARES)
        drawn = [rng.choice(query) if rng.random() < share else word for word in some(text_words)]
        joints = rng.choice(_JOINTS, size=len(drawn) - 1).tolist()
        return "".join(chain.from_iterable(zip(drawn, [*joints, ""], strict=True)))

    lists = []
    for _ in range(number):
        query = some(_QUERY_WORDS)
        lists.append((" ".join(query), [text(query) for _ in range(size)]))
    return unlabelled("words", lists)


def unlabelled(
    name: str, lists: Sequence[tuple[str, Sequence[str]]]
) -> tuple[list[str], list[examples.Example]]:
    """Queries, each with its texts -> all distinct texts, and examples without gold texts."""
    pool = list(dict.fromkeys(text for _, texts in lists for text in texts))
    at = {text: place for place, text in enumerate(pool)}
    items = []
    for query, texts in lists:
        places = [at[text] for text in dict.fromkeys(texts)]
        items.append(examples.example(name, query, [], places, [0.0] * len(places)))
    return pool, items


def whole_words(tokenizer: Tokenizer) -> list[str]:
    """The vocabulary's tokens that are words of two letters or more, in the vocabulary's order."""
    vocabulary = tokenizer.get_vocab()
    return sorted((w for w in vocabulary if w.isalpha() and len(w) > 1), key=vocabulary.__getitem__)


def _config(recipe: Recipe) -> KeepConfig:
    if recipe.keep is None:
        raise ValueError("the recipe has no [keep]")
    return recipe.keep


class KeepLists:
    """The unlabelled lists of every draw."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self._config, self._recipe = _config(recipe), recipe
        pool, self._items = examples.load(folder / FOLDER)
        if not self._items:
            raise ValueError(f"{folder / FOLDER} holds no examples: [keep] corpora need texts")
        self._pool = len(pool)
        tokenizer = Tokenizer.from_str(tokenizer_of(recipe))
        self._texts = text_tokens(recipe, tokenizer, pool)
        queries = [item.query for item in self._items]
        self._queries = Tokens(tokenizer, queries, recipe.lists.max_query_tokens)
        self._lists = self._config.drawn(recipe.lists)

    def of(self, draw: int, mine: slice) -> Batch:
        """A process's share of a draw's lists."""
        number = self._config.queries_per_step
        chosen = draw_examples(len(self._items), number, draw, self._recipe.seed)
        rng = np.random.default_rng([self._recipe.seed, 3, draw])
        lists = [draw_list(self._items[i], self._lists, self._pool, rng) for i in chosen]
        return make_batch(
            [self._queries[i] for i in chosen[mine]],
            lists[mine],
            [set(self._items[i].golds) for i in chosen[mine]],
            self._texts,
            chunks=2,
        )


def known_before(
    recipe: Recipe, folder: Path, device: torch.device, teacher: Teacher | None = None
) -> Callable[[Batch], Tensor]:
    """What scores lists, (B, N), as what was known before the training does.

    That is the network that the training starts from, if the recipe says so, or the teacher
    where it is a network, or else the bi-encoder that the training began as.
    """
    to_start = _config(recipe).held_to == "start"
    if isinstance(teacher, NetworkTeacher) and not to_start:
        return teacher.logits
    start = new_model(recipe, folder).to(device).requires_grad_(False).eval()
    if to_start:
        return NetworkTeacher(start, recipe.precision).logits
    if not isinstance(start, BroadcastEncoder) or start.config.start != "bi-encoder":
        raise ValueError(
            "[keep] needs a network that starts as a bi-encoder, or one that teaches: give "
            "taught_by a folder"
        )

    @torch.no_grad()
    def known(batch: Batch) -> Tensor:
        return dual_logits(start, batch).float()  # of bf16 products they are bf16

    return known
