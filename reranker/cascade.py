"""Both stages over one window of hits: every title, then the best passages, then one order."""

from __future__ import annotations

import math
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from reranker.coverage import Coverage, Covered
from reranker.fusion import Fusion, is_question, lifted, neutral, squash, standardise, trust
from reranker.mentions import Links
from reranker.records import Hit, RankedHit, RerankResult, StageReport
from reranker.stages import SHIPPED, PassageReranker, Query, TitleReranker
from reranker.stopping import EVERY, FILE, Stopping

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

# Titles between two looks at the caller: enough of them to be batched well.
_TITLES = 256
# A chunk may take this share of the time left: a wrong estimate costs no more than that. The last
# one may be a single passage, which must leave some time, too.
_SHARE, _SHARE_OF_ONE = 0.5, 0.75
# No more characters of a huge text are looked at than could fill the passage model's windows,
# with so many a token.
_TOKEN_CHARACTERS = 8
# So many tokens are half of what is known of their cost: a chunk of four usual passages counts for
# an eighth, as in TCP's timer, and one of a few tokens, the price of a call, for next to nothing.
_MEMORY_TOKENS = 4200.0
# What a token is taken to cost before any was measured.
_FIRST_GUESS_MS = 0.05


class Cancelled(Exception):  # noqa: N818 - no error: nobody waits for the result any more
    """The caller of a search is gone, and the rest of it was not computed."""


class Cost:
    """What a token costs in ms: measured, and rather too high than too low.

    A moving mean and a moving deviation, as in TCP's retransmission timer (RFC 6298), to which a
    chunk adds in proportion to its tokens. Safe to use from several threads at once.
    """

    def __init__(self, first_guess_ms: float = _FIRST_GUESS_MS) -> None:
        self._lock = threading.Lock()
        self._mean = first_guess_ms
        self._deviation = 0.0
        self._least = float("inf")  # of all that was measured

    def observe(self, tokens: float, milliseconds: float) -> None:
        """Learn from one chunk; the first replaces the guess."""
        cost = milliseconds / max(tokens, 1)
        share = tokens / (tokens + _MEMORY_TOKENS)
        with self._lock:
            if math.isinf(self._least):
                self._mean = cost
            self._least = min(self._least, cost)
            error = cost - self._mean
            self._deviation += min(2 * share, 1) * (abs(error) - self._deviation)
            self._mean += share * error

    def doubt(self, tokens: float, left_ms: float) -> None:
        """Lower the estimate a little: because of it, nothing was computed and nothing learnt.

        Otherwise one measurement through which the machine slept would end the passage stage.
        But `left_ms` that would have been too little for the tokens at any cost that was ever
        measured say nothing of it.
        """
        with self._lock:
            least = 0.0 if math.isinf(self._least) else self._least
            if left_ms <= least * tokens:
                return
            self._deviation *= 0.8
            self._mean = min(self._mean, max(self._least, 0.9 * self._mean))

    def of(self, tokens: float) -> float:
        """Milliseconds that so many tokens will take."""
        with self._lock:
            return tokens * (self._mean + 2 * self._deviation)


class Cascade:
    """Hits in the engine's order -> all of them in the new order.

    Safe to use from several threads at once.
    """

    def __init__(
        self,
        title: TitleReranker,
        passage: PassageReranker,
        fusion: Fusion,
        stopping: Stopping | None = None,
    ) -> None:
        self.title = title
        self.passage = passage
        self.fusion = fusion
        self.stopping = stopping
        self._coverage = Coverage(passage.tokenizer.vocabulary)
        self._cost = Cost()  # of a passage's token, by the estimate of `_tokens_of`

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        threads: int | None = None,
        cache_mb: float = 64.0,
        passage_cache_mb: float = 0.0,
        early_stop: bool = True,
    ) -> Cascade:
        """Load a folder with `title/`, `passage/` and `fusion.json`; None is the shipped one.

        At most `cache_mb` megabytes are kept of titles that were read before (about 5 KB each),
        and `passage_cache_mb` of passages (about 120 KB each). With `early_stop`, and where the
        folder has a `stopping.json`, the passage stage ends as soon as reading on is expected to
        change next to nothing.
        """
        folder = SHIPPED if path is None else Path(path)
        return cls(
            TitleReranker.load(folder / "title", threads, cache_mb),
            PassageReranker.load(folder / "passage", threads, passage_cache_mb),
            Fusion.read(folder / "fusion.json"),
            Stopping.read(folder / FILE) if early_stop else None,
        )

    @property
    def name(self) -> str:
        """The names of both models."""
        return f"{self.title.name}+{self.passage.name}"

    def cut(self, hits: Sequence[Hit], most_tokens: int) -> tuple[list[Hit], int]:
        """Leave of each hit's title and passage together no more than the first so many tokens.

        Gives the hits and how many of them were cut. Tokens are the passage model's, without
        those that it adds itself. Raises ValueError for less than one.
        """
        if most_tokens < 1:
            raise ValueError(f"most_tokens is {most_tokens}; give 1 or more")
        kept = []
        for hit in hits:
            title, size = self.passage.tokenizer.head(hit.title, most_tokens)
            passage, _ = self.passage.tokenizer.head(hit.passage, most_tokens - size)
            kept.append(hit._replace(title=title, passage=passage))
        return kept, sum(hit != whole for hit, whole in zip(kept, hits, strict=True))

    def rerank(
        self,
        query: str,
        hits: Sequence[Hit],
        passage_depth: int = 20,
        deadline_ms: float | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        early_stop: bool = True,
    ) -> RerankResult:
        """Order all hits by their titles and the best `passage_depth` by their passages as well.

        The title stage always runs. The passages follow in the order of promise, until
        `passage_depth` of them are read or the rest is settled (see `Stopping`: that is complete,
        too, and the rest has its places by what it is expected to score); with a deadline as long
        as the time allows, judged by the measured cost of a token. A hit with neither title nor
        passage keeps what the first stage says of it. `cancelled` is asked before each chunk of
        texts. Without `early_stop` no passage is settled before it is read. Raises ValueError for
        an empty query or a negative depth, and `Cancelled` as soon as `cancelled` says so.
        """
        started = time.monotonic()
        if passage_depth < 0:
            raise ValueError(f"passage_depth is {passage_depth}; give 0 (titles only) or more")
        if not hits:
            return RerankResult([], [], complete=True)

        _go_on(cancelled)
        asked = self.title.read(query)
        title_logits, report = self._titles(asked, hits, cancelled)
        titled = np.array([bool(hit.title.strip()) for hit in hits])
        logits = neutral(title_logits, titled)
        alone = not any(hit.passage.strip() for hit in hits)
        scores = np.array([hit.score for hit in hits], dtype=np.float64)
        weights = self.fusion
        trusted = 1.0 if alone else trust(asked.tokens, is_question(query), weights.most_trust)
        first = standardise(scores) * trusted
        limit = _TOKEN_CHARACTERS * self._most_tokens
        covered = Covered.nothing(len(hits))
        if not alone and (weights.title_coverage or weights.passage_coverage or weights.mention):
            texts = [f"{hit.title[:limit]} {hit.passage[:limit]}" for hit in hits]
            covered = self._coverage.of(query, texts)
        fused = weights.titles(logits, first, covered.shares, alone)
        stages = [
            report._replace(scored=int(titled.sum()), milliseconds=_ms_since(started)),
        ]

        reading = Reading(query, hits, logits, first, covered, fused, weights, limit)
        if passage_depth > 0:
            left = None if deadline_ms is None else deadline_ms - _ms_since(started)
            stages.append(
                self._passages(query, reading, passage_depth, left, cancelled, early_stop)
            )
        return RerankResult(
            _ranked(hits, titled, title_logits, reading),
            stages,
            complete=not any(stage.unscored for stage in stages),
            query_cut=asked.truncated,
        )

    def _titles(
        self, query: Query, hits: Sequence[Hit], cancelled: Callable[[], bool]
    ) -> tuple[NDArray[np.float32], StageReport]:
        """Logits (n,) of all titles; of one without a title the number means nothing."""
        logits = np.empty(len(hits), dtype=np.float32)
        truncated = tokens = 0
        for start in range(0, len(hits), _TITLES):
            _go_on(cancelled)
            part = slice(start, start + _TITLES)
            scores = self.title.score_read(query, [hit.title for hit in hits[part]])
            logits[part] = scores.logits
            truncated += scores.truncated
            tokens += scores.tokens
        return logits, StageReport("title", len(hits), 0.0, truncated, tokens=tokens)

    def _passages(
        self,
        query: str,
        reading: Reading,
        depth: int,
        left_ms: float | None,
        cancelled: Callable[[], bool],
        early_stop: bool,
    ) -> StageReport:
        """Read at most `depth` passages, the most promising next, until the rest is settled.

        Whether it is, is asked after every `EVERY` of them, however a deadline cuts chunks.
        """
        started = time.monotonic()
        truncated = tokens = unscored = 0
        skipped = ""
        asked = None
        hits = reading.hits
        whole = min(depth, len(reading.unread))
        stopping = self.stopping if early_stop else None
        while (done := len(reading.read)) < whole:
            _go_on(cancelled)
            count = EVERY - done % EVERY
            if count == EVERY and stopping and reading.settle(stopping, whole - done):
                skipped = f"settled: {whole - done} passages left unscored"
                break
            part = reading.unread[: min(count, whole - done)]
            sizes = [self._tokens_of(hits[i]) for i in part]
            if left_ms is not None:
                left = left_ms - _ms_since(started)
                count = self._fitting(sizes, left)
                if count == 0:
                    if done == 0:
                        self._cost.doubt(sizes[0], left)
                    unscored = whole - done
                    skipped = f"deadline: {unscored} passages left unscored"
                    break
                part, sizes = part[:count], sizes[:count]
            before = time.monotonic()
            if asked is None:
                asked = self.passage.read(query)
            scores = self.passage.score_read(
                asked, [hits[i].title for i in part], [hits[i].passage for i in part]
            )
            self._cost.observe(sum(sizes), _ms_since(before))
            reading.learn(scores.logits)
            truncated += scores.truncated
            tokens += scores.tokens
        return StageReport(
            "passage",
            len(reading.read),
            _ms_since(started),
            truncated,
            skipped,
            tokens=tokens,
            unscored=unscored,
        )

    def _fitting(self, sizes: Sequence[float], left_ms: float) -> int:
        """How many of the next passages are the next chunk; 0: not one fits into the time."""
        if self._cost.of(sizes[0]) > _SHARE_OF_ONE * left_ms:
            return 0
        count = 1
        tokens = sizes[0]
        while count < len(sizes):
            tokens += sizes[count]
            if self._cost.of(tokens) > _SHARE * left_ms:
                break
            count += 1
        return count

    def _tokens_of(self, hit: Hit) -> float:
        """About how many tokens a passage is, without tokenizing it.

        In UTF-8 a token of Latin letters is about four bytes, one of other scripts about three.
        """
        most = self._most_tokens
        texts = (text[: _TOKEN_CHARACTERS * most] for text in hit[1:3])
        size = sum(len(text.encode("utf-8", "replace")) for text in texts)
        return min(float(most), 2 + size / 4)

    @property
    def _most_tokens(self) -> int:
        """So many the passage model's windows hold."""
        config = self.passage.config
        return int(config["max_passage_tokens"]) * int(config["max_windows"])


class Reading:
    """What the passage stage knows of one window: who was read, who is linked, who comes next.

    An unread hit comes earlier where it names what was read, or is named there.
    """

    def __init__(
        self,
        query: str,
        hits: Sequence[Hit],
        titles: NDArray[np.float64],
        first: NDArray[np.float64],
        covered: Covered,
        promise: NDArray[np.float64],
        fusion: Fusion,
        most_characters: int,
    ) -> None:
        """`titles` (n,) are title logits, `promise` (n,) the title stage's fused scores."""
        self.query = query
        self.hits = hits
        self.promise = promise
        self.gain = np.zeros(len(hits))  # from links to what was read
        self.logits = np.full(len(hits), np.nan)  # the passage model's
        self.read: list[int] = []
        order = np.argsort(-promise, kind="stable").tolist()
        self._texts = np.array([bool(hit.title.strip() or hit.passage.strip()) for hit in hits])
        self.unread = [i for i in order if self._texts[i]]  # the most promising first
        self.covered = covered
        self._titles, self._first = titles, first
        self._fusion = fusion
        self._most_characters = most_characters
        self._links: Links | None = None  # not before a passage was read
        self._linked: list[NDArray[np.float64]] = []  # by passage that was read, (n,)
        self._expected: NDArray[np.float64] | None = None  # scores (n,), once the rest is settled

    def learn(self, logits: NDArray[np.float32]) -> None:
        """Take the passage logits (m,) of the first m unread hits."""
        part, self.unread = self.unread[: len(logits)], self.unread[len(logits) :]
        self.read += part
        self.logits[part] = logits
        if not self._fusion.mention:
            return
        if self._links is None:
            titles = [hit.title for hit in self.hits]
            passages = [hit.passage[: self._most_characters] for hit in self.hits]
            self._links = Links(self.query, titles, passages, self.covered)
        self._linked += [self._links.of(i) for i in part]
        self.gain = self._fusion.mentions(self.scores[self.read], np.array(self._linked))
        # Only there, so that a deadline's smaller chunks change no order.
        if len(self.read) % EVERY == 0:
            self.unread.sort(key=(-self.promise - self.gain).__getitem__)

    @property
    def scores(self) -> NDArray[np.float64]:
        """The passage stage's fused scores (n,), without `gain`; NaN of the unread."""
        return self._fusion.passages(self.logits, self._titles, self._first, self.covered.shares)

    @property
    def final(self) -> NDArray[np.float64]:
        """The scores with `gain` (n,), see `lifted`."""
        scores = self.scores
        if not self._linked:
            return scores
        return lifted(scores, self.gain, scores[self.read], np.array(self._linked))

    def settle(self, rule: Stopping, left: int) -> bool:
        """Whether reading the `left` most promising unread hits would change too little.

        If so, they have their places in the passage stage's order: see `placed`.
        """
        if not self.read:
            return False
        final, promise = self.scores[self.read], self.promise[self.read]
        hopes = self.promise + self.gain
        if not rule.settled(final, promise, hopes[self.unread[:left]]):
            return False
        self._expected = rule.expected(final, promise, hopes)
        return True

    @property
    def placed(self) -> NDArray[np.bool_]:
        """Which hits (n,) the passage stage places: those read and, once settled, the others.

        But of one without any text nothing can be expected.
        """
        return np.isfinite(self.logits) if self._expected is None else self._texts

    @property
    def order_scores(self) -> NDArray[np.float64]:
        """What the hits (n,) are ordered by among those of their stage."""
        unread = self.promise + self.gain if self._expected is None else self._expected
        return np.where(np.isfinite(self.logits), self.final, unread)


def _ranked(
    hits: Sequence[Hit],
    titled: NDArray[np.bool_],
    title_logits: NDArray[np.float32],
    reading: Reading,
) -> list[RankedHit]:
    """One order: hits that the passage stage places, then the others by titles."""
    passage_logits = reading.logits
    read = np.isfinite(passage_logits)
    final = reading.order_scores
    gained = np.where(read, final - reading.scores, reading.gain)
    tier = np.where(reading.placed, 2.0, 1.0)
    scores = tier + squash(final)
    order = np.lexsort((np.arange(len(hits)), -final, -tier))
    title_ranks = _ranks(reading.promise, titled)
    passage_ranks = _ranks(final, read)
    scored, covered = scores.tolist(), reading.covered.shares.tolist()
    titles, passages = title_logits.tolist(), passage_logits.tolist()
    lifts, has_title, was_read = gained.tolist(), titled.tolist(), read.tolist()
    return [
        RankedHit(
            id=hits[i].id,
            index=i,
            score=scored[i],
            first_stage_score=float(hits[i].score),
            title_score=titles[i] if has_title[i] else None,
            passage_score=passages[i] if was_read[i] else None,
            coverage=covered[i],
            mention=lifts[i],
            first_stage_rank=i + 1,
            title_rank=title_ranks[i],
            passage_rank=passage_ranks[i],
        )
        for i in order.tolist()
    ]


def _ranks(scores: NDArray[np.float64], known: NDArray[np.bool_]) -> list[int | None]:
    """Ranks from 1 among the known scores; None for the others."""
    ranks: list[int | None] = [None] * len(scores)
    order = np.argsort(-scores, kind="stable").tolist()
    for rank, place in enumerate((i for i in order if known[i]), start=1):
        ranks[place] = rank
    return ranks


def _go_on(cancelled: Callable[[], bool]) -> None:
    if cancelled():
        raise Cancelled("the caller is gone: the rest of the search was not computed")


def _ms_since(moment: float) -> float:
    return (time.monotonic() - moment) * 1000
