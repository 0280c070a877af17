"""Which hits belong together: where a question needs two pages, one names the other.

Neither model sees this, for each reads one hit at a time.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from reranker.coverage import Covered

# A shorter name is as often a part of something else, three capitals are not; a longer one is a
# sentence, and would make the search for names slow.
_SHORTEST, _SHORTEST_CAPITALS, _LONGEST = 4, 3, 100
# "The Lincoln Highway" is as often the Lincoln Highway; "The Wall" is another than any wall.
_ARTICLE = re.compile(r"^The\s+(?=\S+\s+\S)")
_START = re.compile(r"(?<![^\W_])\S")  # where no letter or digit stands before
# Of what a page leaves open, so much counts for those that it names: they may answer it in other
# words. Chosen on dev queries.
_OPEN = 1 / 3


def without_aside(title: str) -> str:
    """A title without what tells namesakes apart: "Mercury (planet)" is called Mercury."""
    # No regular expression: a title may be long, and hold nothing but spaces and parentheses.
    title = title.strip()
    name, opened, aside = title.rpartition("(")
    is_aside = opened and aside.endswith(")") and ")" not in aside[:-1]
    return name.rstrip() if is_aside else title


def name_of(title: str) -> str:
    """What a text would call the page of this title; empty where one could not tell.

    A single lowercase word is a word more often than a name.
    """
    name = _ARTICLE.sub("", without_aside(title))
    is_word = name.isalpha() and name.islower()
    shortest = _SHORTEST_CAPITALS if name.isalpha() and name.isupper() else _SHORTEST
    return "" if is_word or not shortest <= len(name) <= _LONGEST else name


class Names:
    """The names of a window's hits, to be looked for in passages.

    A name that the query holds tells nothing new: both models have seen that. What a passage
    costs does not depend on how many hits there are.
    """

    def __init__(self, query: str, titles: Sequence[str]) -> None:
        self._names = [name_of(title) for title in titles]
        self._hits: dict[str, list[int]] = {}
        for hit, name in enumerate(self._names):
            if name:
                self._hits.setdefault(name, []).append(hit)
        self._sizes: dict[str, set[int]] = {}  # of all names that start so
        for name in self._hits:
            self._sizes.setdefault(name[:_SHORTEST_CAPITALS], set()).add(len(name))
        for name in self._found(query):
            del self._hits[name]

    def named_by(self, hit: int, passage: str) -> NDArray[np.float64]:
        """Which hits (n,) the passage of this hit names, as whole words in the title's own case.

        1 for a hit that it names, 1/m where m hits have that name (passages of one page), 0 for
        the others and for hits with the same name as its own.
        """
        named = np.zeros(len(self._names))
        for name in self._found(passage) - {self._names[hit]}:
            hits = self._hits[name]
            named[hits] = 1 / len(hits)
        return named

    def naming(self, hit: int, passages: Sequence[str]) -> NDArray[np.float64]:
        """The other way round: whose passages, of all (n,), name this hit.

        1, or 1/m where m hits have its name, for a hit whose passage does; 0 for the others and
        for hits with the same name.
        """
        name = self._names[hit]
        naming = np.zeros(len(passages))
        if name not in self._hits:
            return naming
        whole = re.compile(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])")
        for other, passage in enumerate(passages):
            # The plain search is many times as fast, and mostly finds nothing.
            if self._names[other] != name and name in passage and whole.search(passage):
                naming[other] = 1 / len(self._hits[name])
        return naming

    def _found(self, text: str) -> set[str]:
        """The names in a text with no letter or digit right before or after them."""
        found = set()
        for match in _START.finditer(text):
            at = match.start()
            for size in self._sizes.get(text[at : at + _SHORTEST_CAPITALS], ()):
                name, after = text[at : at + size], text[at + size : at + size + 1]
                if name in self._hits and not after.isalnum():
                    found.add(name)
        return found


class Links:
    """How much each hit of a window has to add to another one."""

    def __init__(
        self, query: str, titles: Sequence[str], passages: Sequence[str], covered: Covered
    ) -> None:
        """`covered` says what each title and passage together hold of the query."""
        self._names = Names(query, titles)
        self._passages = passages
        self._covered = covered

    def of(self, hit: int) -> NDArray[np.float64]:
        """How much (n,) the hits add to this one: 0 for those that it has no link to.

        A link is that one's passage names the other. It counts by the share of the query's words
        that the other holds and this one does not, and, where this one names the other, by a part
        of what this one lacks besides: where a page answers alone, what it happens to name is of
        no use.
        """
        named = self._names.named_by(hit, self._passages[hit])
        naming = self._names.naming(hit, self._passages)
        added = self._covered.added_to(hit)
        linked: NDArray[np.float64] = (named + naming) * added
        return linked + named * _OPEN * self._covered.lacked_by(hit)
