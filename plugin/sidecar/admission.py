"""Which searches are computed, in which order, and which are refused before they cost anything.

A search is measured in tokens, the unit in which the models' time passes: those that searches like
it were found to read. All of it happens on the event loop, so nothing here takes a lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import NamedTuple

from reranker.records import Hit

# Tokens beyond which neither model reads a text, and bytes of UTF-8 in a token, about.
_QUERY_WINDOW = 256
_TITLE_WINDOW = 64
_PASSAGE_WINDOW = 1024
_BYTES_PER_TOKEN = 4

# A search that needs a second more may be overtaken by those that come in the next so many.
_AGEING = 4.0
# Of the time that a search has left, this much may pass in line; the rest is for the models.
_WAITING_SHARE = 0.5
_LONGEST_RETRY_SECONDS = 60
# Of the last search in what is learnt of how much of the passages is read.
_WEIGHT = 0.1
# What a token costs is learnt from about the last so many. By searches instead, small ones, whose
# time is hardly their tokens', would soon have large ones taken to be many times as long.
_MEMORY_TOKENS = 10_000


class Work(NamedTuple):
    """What a search will cost, in estimated tokens."""

    titles: int
    passages: int

    @property
    def tokens(self) -> int:
        """All of them."""
        return self.titles + self.passages


def estimate(
    query: str, hits: Sequence[Hit], passage_depth: int, most_tokens: int | None = None
) -> Work:
    """Estimate what both stages may read, without tokenizing anything.

    `most_tokens` are read of each hit at most.
    """
    title_window, passage_window = (
        window if most_tokens is None else min(window, 2 + most_tokens)
        for window in (_TITLE_WINDOW, _PASSAGE_WINDOW)
    )
    titles = sum(_tokens(title, title_window) for title in {hit.title for hit in hits})
    read = min(passage_depth, len(hits))
    passages = 0.0
    if read:  # which ones will be read is not known yet
        sizes = [_tokens(f"{hit.title} {hit.passage}", passage_window) for hit in hits]
        passages = sum(sizes) / len(sizes) * read
    return Work(titles + _tokens(query, _QUERY_WINDOW), math.ceil(passages))


def _tokens(text: str, window: int) -> int:
    seen = text[: 8 * window]
    size = len(seen) if seen.isascii() else len(seen.encode("utf-8", "replace"))
    return min(window, 2 + size // _BYTES_PER_TOKEN)


class RefusedError(Exception):
    """A search that is not computed; `retry_after` is in seconds."""

    def __init__(self, why: str, retry_after: int = 1) -> None:
        super().__init__(why)
        self.retry_after = retry_after


class FullError(RefusedError):
    """There is no room, or no time, for it in the line."""


class LateError(RefusedError):
    """Its time passed while it stood in line."""


class _Place:
    """A search in line, or computed."""

    def __init__(self, work: Work, deadline: float | None, rank: float) -> None:
        self.work = work
        self.deadline = deadline  # on the line's clock; None: it waits as long as it takes
        self.rank = rank  # lowest first
        self.turn: asyncio.Future[None] | None = None
        self.begun = 0.0


class Line:
    """The line in front of the models: bounded in searches and in work, smallest work first.

    A search's rank is the moment of its arrival plus `_AGEING` times the seconds it will take:
    small ones overtake large ones, but none is overtaken for ever.
    """

    def __init__(
        self,
        concurrent: int,
        most_waiting: int,
        most_tokens: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._concurrent = concurrent
        self._most_waiting = most_waiting
        self._most_tokens = most_tokens
        self._clock = clock
        self._computed: set[_Place] = set()
        self._waiting: list[_Place] = []  # a few dozen: looked through as a whole
        self._tokens = self._token_seconds = 0.0  # computed of late, each beside the others
        self._asked = self._read = 0.0  # tokens of passages, of late

    @property
    def computed(self) -> int:
        """Searches that are being computed."""
        return len(self._computed)

    @property
    def waiting(self) -> int:
        """Searches in line."""
        return len(self._waiting)

    @property
    def waiting_tokens(self) -> int:
        """The work in line."""
        return sum(place.work.tokens for place in self._waiting)

    def observe(self, tokens: int, seconds: float) -> None:
        """Learn what a token costs from a search that was computed."""
        if tokens <= 0:
            return
        kept = _MEMORY_TOKENS / (_MEMORY_TOKENS + tokens)
        self._tokens = kept * self._tokens + tokens
        self._token_seconds = kept * self._token_seconds + seconds

    def observe_passages(self, asked: int, read: int) -> None:
        """Learn how many of the tokens of passages that a search may read are read.

        Not to be told of searches that a deadline cut short: the less time there is for each, the
        more of them would be let in.
        """
        self._asked += _WEIGHT * (asked - self._asked)
        self._read += _WEIGHT * (read - self._read)

    def expect(self, work: Work) -> Work:
        """What a search that may cost so much is expected to: passages are seldom all read."""
        if not self._asked:
            return work
        return Work(work.titles, math.ceil(work.passages * self._read / self._asked))

    @contextlib.asynccontextmanager
    async def turn(self, work: Work, deadline: float | None = None) -> AsyncIterator[None]:
        """Wait for the turn of a search and hold it for the block.

        `deadline` is a moment of the line's clock. Raises `FullError` at once and `LateError`
        later; a task that is cancelled leaves the line.
        """
        place = self._join(work, deadline)
        try:
            if place.turn is not None:
                await place.turn
            yield
        finally:
            if place in self._waiting:
                self._waiting.remove(place)
            self._computed.discard(place)
            self._call_next()

    def check(self, work: Work, deadline: float | None = None) -> None:
        """Raise the `FullError` that `turn` would raise now; costs next to nothing."""
        now = self._clock()
        self._drop_late(now)
        if self._free():
            return
        if len(self._waiting) >= self._most_waiting:
            raise FullError(
                f"{len(self._waiting)} searches are waiting: add sidecars, ask again later, or "
                "raise TITLECAST_MAX_WAITING",
                self._retry_after(now),
            )
        tokens = self.waiting_tokens
        if self._waiting and tokens + work.tokens > self._most_tokens:
            raise FullError(
                f"{tokens} tokens of work are waiting: add sidecars, ask again later, or raise "
                "TITLECAST_MAX_WAITING_TOKENS",
                self._retry_after(now),
            )
        if deadline is not None:
            left = deadline - now
            wait = self._wait(now, self._rank(now, work))
            if wait > min(_WAITING_SHARE * left, left - self._seconds(work.titles)):
                raise FullError(
                    f"the search would wait {wait * 1000:.0f} ms of the {left * 1000:.0f} it has: "
                    "add sidecars, or give searches more time",
                    self._retry_after(now),
                )

    def _join(self, work: Work, deadline: float | None) -> _Place:
        self.check(work, deadline)
        now = self._clock()
        place = _Place(work, deadline, self._rank(now, work))
        if self._free():
            # Without a line the titles are worth the try, however short the time.
            place.begun = now
            self._computed.add(place)
            return place
        place.turn = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        return place

    def _free(self) -> bool:
        return len(self._computed) < self._concurrent and not self._waiting

    def _rank(self, now: float, work: Work) -> float:
        return now + _AGEING * self._seconds(work.tokens)

    def _call_next(self) -> None:
        now = self._clock()
        self._drop_late(now)
        while self._waiting and len(self._computed) < self._concurrent:
            place = min(self._waiting, key=lambda place: place.rank)
            self._waiting.remove(place)
            if place.turn is None or place.turn.done():  # its task is being cancelled
                continue
            place.begun = now
            self._computed.add(place)
            place.turn.set_result(None)

    def _drop_late(self, now: float) -> None:
        """Drop those whom an answer would reach too late: others can still be answered."""
        for place in list(self._waiting):
            if place.deadline is None or place.turn is None:
                continue
            if now + self._seconds(place.work.titles) >= place.deadline:
                self._waiting.remove(place)
                if not place.turn.done():
                    place.turn.set_exception(
                        LateError(
                            "the search's time passed while it stood in line: add sidecars, or "
                            "give searches more time",
                            self._retry_after(now),
                        )
                    )

    def _wait(self, now: float, rank: float) -> float:
        """Seconds until a search of that rank would have its turn, as far as can be foreseen."""
        ahead = [self._seconds(place.work.tokens) for place in self._waiting if place.rank <= rank]
        rest = [
            max(0.0, self._seconds(place.work.tokens) - (now - place.begun))
            for place in self._computed
        ]
        if len(rest) < self._concurrent:
            return 0.0
        # The first that ends makes room for the first in line; all share the rest evenly.
        return min(rest) + sum(ahead) / self._concurrent

    def _retry_after(self, now: float) -> int:
        """Whole seconds in which the line will be gone, at least 1."""
        return min(_LONGEST_RETRY_SECONDS, max(1, math.ceil(self._wait(now, math.inf))))

    def _seconds(self, tokens: int) -> float:
        return tokens * self._token_seconds / self._tokens if self._tokens else 0.0
