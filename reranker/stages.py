"""The two stages: titles against a query, passages against a query.

Both deduplicate, tokenize, batch and count what had to be cut; neither knows of first-stage
scores, of each other, or of time. `Cascade` puts them together.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from reranker.lru import Cache, CacheUse, through
from reranker.runtime import load_model
from reranker.tokens import Encoded, Tokenizer, Windowed, head_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

SHIPPED = Path(__file__).parent / "weights"

_Stage = TypeVar("_Stage", bound="_Reranker")
_Text = TypeVar("_Text", bound=Hashable)
_Tokens = TypeVar("_Tokens")

# Texts are made into tokens in parts: of so many at first, and then of so many times as many.
_FIRST_PART, _GROWTH = 128, 8


class EmptyQueryError(ValueError):
    """A query of which the tokenizer leaves nothing."""


class Query(NamedTuple):
    """A query that was prepared for any number of texts."""

    state: Any  # the model's
    truncated: bool  # not every token of it was read
    tokens: int  # of it that were read, without those that the model adds


class Scores(NamedTuple):
    """Logits and what was left unread on the way to them."""

    logits: NDArray[np.float32]  # (n,)
    truncated: int  # texts of which not every token was read
    tokens: int  # tokens that were computed


class _Reranker:
    """What both stages share: a model, its tokenizer and its limits."""

    task = ""
    limits: tuple[str, ...] = ()

    def __init__(self, folder: Path, threads: int | None = None, cache_mb: float = 0.0) -> None:
        self._cache = Cache(round(cache_mb * 1e6))
        self._model, self.config = load_model(folder, threads, self._cache)
        if self.config.get("task") != self.task:
            raise ValueError(
                f"{folder} holds a {self.config.get('task')} model, not a {self.task} model; "
                f"give the folder of a {self.task} model"
            )
        if missing := {"name", *self.limits} - self.config.keys():
            raise ValueError(
                f"{folder / 'config.json'} lacks {', '.join(sorted(missing))}; export the "
                "model again"
            )
        self._tokenizer = Tokenizer.of(folder, self.config)
        self.name = str(self.config["name"])

    @classmethod
    def load(
        cls: type[_Stage],
        path: str | Path | None = None,
        threads: int | None = None,
        cache_mb: float = 0.0,
    ) -> _Stage:
        """Load a model folder; None is the shipped model, `threads` None all usable cores.

        `cache_mb` megabytes at most are kept of what the model's lower layers, which do not see
        the query, make of texts; scores are the same with and without, up to int8's rounding,
        which depends on the batch that a text was read in (0.1 at the most seen, where logits
        deviate by about 2).

        Raises FileNotFoundError or ValueError where the folder holds no model of this stage.
        """
        return cls(SHIPPED / cls.task if path is None else Path(path), threads, cache_mb)

    @property
    def tokenizer(self) -> Tokenizer:
        """What makes the model's tokens of a text."""
        return self._tokenizer

    @property
    def cache_use(self) -> CacheUse:
        """How often texts were found among those read before."""
        return self._cache.use()

    def read(self, query: str) -> Query:
        """Prepare a query once for any number of `score_read` calls.

        Raises EmptyQueryError, a ValueError, for a query of which the tokenizer leaves nothing.
        """
        (encoded,) = self._tokenizer.encode_queries([query], self.config["max_query_tokens"])
        if encoded.empty:
            raise EmptyQueryError("the query is empty: give the words that the user searched for")
        return Query(self._model.read(encoded.ids), encoded.truncated, encoded.tokens)

    def _made(
        self,
        texts: list[_Text],
        encode: Callable[[Sequence[_Text]], Sequence[_Tokens]],
        size: Callable[[_Text, _Tokens], int],
        kept: list[_Tokens],
    ) -> Iterator[list[_Tokens]]:
        """Tokens of texts part by part, from the cache or not; `kept` takes them all.

        Each part gives other cores work for as long as the next one is made.
        """
        start, length = 0, _FIRST_PART
        while start < len(texts):
            part = through(self._cache, texts[start : start + length], encode, size)
            kept.extend(part)
            yield part
            start, length = start + length, length * _GROWTH


class TitleReranker(_Reranker):
    """The title stage: ETR, which reads the query once and then every distinct title."""

    task = "title"
    limits = ("max_query_tokens", "max_text_tokens")

    def score(self, query: str, titles: Sequence[str]) -> NDArray[np.float32]:
        """Logits (n,) of n titles; higher is better, and only their order has a meaning.

        A title's logit depends on the query and the title alone, up to int8's rounding (0.1 at
        the most seen). Raises ValueError for an empty query.
        """
        return self.score_read(self.read(query), titles).logits

    def score_read(self, query: Query, titles: Sequence[str]) -> Scores:
        """Score titles against a query that `read` prepared."""
        distinct, back = _distinct(titles)
        encoded: list[Encoded] = []

        parts = self._made(distinct, self._encode, _encoded_bytes, encoded)
        logits = self._model.score(query.state, ([item.ids for item in part] for part in parts))
        cut = np.array([item.truncated for item in encoded], dtype=bool)
        return Scores(logits[back], int(cut[back].sum()), sum(len(item.ids) for item in encoded))

    def _encode(self, titles: Sequence[str]) -> list[Encoded]:
        return self._tokenizer.encode(titles, self.config["max_text_tokens"])


class PassageReranker(_Reranker):
    """The passage stage: a cross-attention model over title and passage."""

    task = "passage"
    limits = ("max_query_tokens", "max_passage_tokens", "stride", "max_windows")

    def score(
        self, query: str, titles: Sequence[str], passages: Sequence[str]
    ) -> NDArray[np.float32]:
        """Logits (n,) of n passages, each with its title; either may be empty.

        A passage longer than `max_passage_tokens` is read in overlapping windows, of which the
        best counts. Raises ValueError for an empty query or lists of different lengths.
        """
        return self.score_read(self.read(query), titles, passages).logits

    def score_read(self, query: Query, titles: Sequence[str], passages: Sequence[str]) -> Scores:
        """Score passages against a query that `read` prepared."""
        if len(titles) != len(passages):
            raise ValueError(
                f"{len(titles)} titles for {len(passages)} passages: give one title, "
                "which may be empty, for each passage"
            )
        distinct, back = _distinct(list(zip(titles, passages, strict=True)))
        windowed: list[Windowed] = []

        parts = self._made(distinct, self._encode, _windowed_bytes, windowed)
        rows = ([row for item in part for row in item.windows] for part in parts)
        scores = self._model.score(query.state, rows)
        owner = np.repeat(np.arange(len(distinct)), [len(item.windows) for item in windowed])
        logits = np.full(len(distinct), -np.inf, dtype=np.float32)
        np.maximum.at(logits, owner, scores)
        cut = np.array([item.truncated for item in windowed], dtype=bool)
        tokens = sum(len(row) for item in windowed for row in item.windows)
        return Scores(logits[back], int(cut[back].sum()), tokens)

    def _encode(self, pairs: Sequence[tuple[str, str]]) -> list[Windowed]:
        return self._tokenizer.windows(
            [head_of(title, passage) for title, passage in pairs],
            [passage for _, passage in pairs],
            limit=self.config["max_passage_tokens"],
            stride=self.config["stride"],
            most=self.config["max_windows"],
        )


def _encoded_bytes(title: str, encoded: Encoded) -> int:
    return sys.getsizeof(title) + sys.getsizeof(encoded) + sys.getsizeof(encoded.ids)


def _windowed_bytes(pair: tuple[str, str], windowed: Windowed) -> int:
    return sum(map(sys.getsizeof, (pair, *pair, windowed, *windowed.windows)))


def _distinct(items: Sequence[Any]) -> tuple[list[Any], NDArray[np.int64]]:
    """The distinct items in order of appearance, and each item's place among them."""
    places: dict[Any, int] = {}
    back = [places.setdefault(item, len(places)) for item in items]
    return list(places), np.array(back, dtype=np.int64)
