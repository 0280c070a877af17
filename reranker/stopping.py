"""When the passage stage may stop: few numbers, fitted once, kept with the model.

`Fusion` is fitted so that the softmax of a window's scores says how likely each hit is what was
searched for. What an unread passage would score is predicted from the title stage's score, by a
line whose height is that of the passages read so far; as it may turn out higher, what counts is
the mean of its exponential. Reading on is worth while as long as the unread passages together are
expected to hold more than a small share of the whole. Where it stops, they have their places by
what they are expected to score: above those that were read and turned out worse.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

FILE = "stopping.json"
# Passages between two decisions: in fours they took as long as in eights, in pairs a third longer.
EVERY = 4


class Stopping(NamedTuple):
    """The rule; `reranker.training.stopping` fits the first two numbers."""

    slope: float  # of the passage stage's fused score over the title stage's, within a search
    spread: float  # the standard deviation of the former around that line
    share: float  # stop where the unread are expected to hold less of the relevance than this

    @classmethod
    def read(cls, path: Path) -> Stopping | None:
        """Read `stopping.json`; None where there is none, and every passage is read.

        Raises ValueError where it is not right.
        """
        if not path.is_file():
            return None
        wrong = f"{path} must hold exactly {', '.join(cls._fields)}, each a number of 0 or more"
        try:
            found = cls(
                **{name: float(value) for name, value in json.loads(path.read_text()).items()}
            )
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(wrong) from error
        if not all(np.isfinite(value) and value >= 0 for value in found):
            raise ValueError(wrong)
        return found

    def write(self, path: Path) -> None:
        """Write `stopping.json`."""
        path.write_text(json.dumps(self._asdict(), indent=2) + "\n", encoding="utf-8")

    def settled(
        self, final: NDArray[np.float64], promise: NDArray[np.float64], unread: NDArray[np.float64]
    ) -> bool:
        """Whether reading on is expected to change too little.

        `final` (m,) are the passage stage's fused scores of those read, `promise` (m,) the title
        stage's of the same hits, `unread` (k,) the title stage's of the others.
        """
        return self.left(final, promise, unread) < self.share

    def left(
        self, final: NDArray[np.float64], promise: NDArray[np.float64], unread: NDArray[np.float64]
    ) -> float:
        """The share of the relevance that the unread are expected to hold; see `settled`."""
        expected = self.expected(final, promise, unread)
        most = max(final.max(), expected.max(initial=-np.inf))
        ours, theirs = np.exp(final - most).sum(), np.exp(expected - most).sum()
        return float(theirs / (ours + theirs))

    def expected(
        self, final: NDArray[np.float64], promise: NDArray[np.float64], unread: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """What the unread would score, (k,); see `settled`."""
        height = (final - self.slope * promise).mean()
        # The mean of the exponential of a normal variable: of its mean and half its variance.
        found: NDArray[np.float64] = height + self.slope * unread + self.spread**2 / 2
        return found
