"""Which hits' titles a passage names: where a question needs two pages, one names the other.

Neither model sees this, for each reads one hit at a time.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

# A shorter name is as often a part of something else.
_SHORTEST = 4
_ASIDE = re.compile(r"\s*\([^()]*\)$")  # "Mercury (planet)" is called Mercury


def name_of(title: str) -> str:
    """What a text would call the page of this title; empty where one could not tell.

    A single lowercase word is a word more often than a name.
    """
    name = _ASIDE.sub("", title.strip())
    return "" if len(name) < _SHORTEST or (name.isalpha() and name.islower()) else name


class Names:
    """The names of a window's hits, to be looked for in passages.

    A name that the query holds tells nothing new: both models have seen that.
    """

    def __init__(self, query: str, titles: Sequence[str]) -> None:
        self._names = [name_of(title) for title in titles]
        self._hits: dict[str, list[int]] = {}
        for hit, name in enumerate(self._names):
            if name and not has(query, name):
                self._hits.setdefault(name, []).append(hit)

    def named_by(self, hit: int, passage: str) -> NDArray[np.float64]:
        """Which hits (n,) the passage of this hit names, as whole words in the title's own case.

        1 for a hit that it names, 1/m where m hits have that name (passages of one page), 0 for
        the others and for hits with the same name as its own.
        """
        named = np.zeros(len(self._names))
        for name, hits in self._hits.items():
            if name != self._names[hit] and has(passage, name):
                named[hits] = 1 / len(hits)
        return named


def has(text: str, name: str) -> bool:
    """Whether the text has the name with no letter or digit right before or after it."""
    at = text.find(name)
    while at >= 0:
        end = at + len(name)
        if not (text[max(at - 1, 0) : at].isalnum() or text[end : end + 1].isalnum()):
            return True
        at = text.find(name, at + 1)
    return False
