"""How scores of different stages become one order: few numbers, fitted once, kept with the model.

A stage's fused score is a weighted sum of its logit, the earlier stages' logits and the
first-stage score, the last one standardised within the query's own window: engines, boosts and
fields change its scale from search to search. How much the first stage knows that a title does
not depends on what it searched: over texts it counts for more than over titles alone, and there
for more the longer the query is, above all where it is no question (`trust`).
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


# A query's tokens for which the first stage counts once, and the power by which more of them count
# in a statement.
_ONCE, _STATEMENT = 10, 1.5
# How often it counts at most for a question, and for a statement while the weights are fitted. More
# is a fusion's own choice: a query much longer is rather a dialogue, of which most words are not
# what was asked.
USUAL_TRUST = 2.0

# What makes a query a question, not a statement that looks for what it repeats: an English word
# that asks, a verb in front, or the mark.
_ASKS = re.compile(
    r"[?？؟]|\b(?:what|which|who|whom|whose|where|when|why|how)\b"
    r"|^\s*(?:is|are|was|were|do|does|did|can|could|will|would|should|has|have|had)\b",
    re.IGNORECASE,
)


class Fusion(NamedTuple):
    """The weights; those of the title stage first, those for hits without any passage last."""

    title: float  # of the title's logit, before the passage stage
    title_first_stage: float  # of the first stage's score beside it, see `trust`
    passage: float  # of the passage's logit
    passage_title: float  # of the title's logit beside it
    passage_first_stage: float  # of that score beside both
    title_only: float  # of the title's logit, where no hit has a passage
    title_only_first_stage: float  # of the standardised first-stage score beside it
    mention: float = 0.0  # of what the hit is likely to add to a relevant one, see `Links`
    title_coverage: float = 0.0  # of the share of the query's words, before the passage stage
    passage_coverage: float = 0.0  # of that share beside the passage's logit
    most_trust: float = USUAL_TRUST  # how often a statement's first stage counts, see `trust`

    @classmethod
    def read(cls, path: Path) -> Fusion:
        """Read `fusion.json`. Raises FileNotFoundError or ValueError where it is not right.

        One without weights for hits without a passage uses the title stage's for these, too; one
        without weights for mentions or coverage counts none, and one without `most_trust` trusts
        the first stage as usual.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: the model folder is not complete")
        try:
            found = {name: float(value) for name, value in json.loads(path.read_text()).items()}
            for name in ("title", "title_first_stage"):
                found.setdefault(name.replace("title", "title_only", 1), found.get(name, 0.0))
            weights = cls(**found)
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path} must hold exactly {', '.join(cls._fields)}") from error
        for name, weight in weights._asdict().items():
            if not np.isfinite(weight):
                raise ValueError(f"{path}: {name} is {weight}; a weight is a finite number")
        return weights

    def titles(
        self,
        logits: NDArray[np.float64],
        first: NDArray[np.float64],
        coverage: NDArray[np.float64],
        alone: bool,
    ) -> NDArray[np.float64]:
        """The title stage's fused scores (n,); `alone`: no hit of the search has a passage."""
        if alone:
            return self.title_only * logits + self.title_only_first_stage * first
        return self.title * logits + self.title_first_stage * first + self.title_coverage * coverage

    def passages(
        self,
        passage_logits: NDArray[np.float64],
        logits: NDArray[np.float64],
        first: NDArray[np.float64],
        coverage: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """The passage stage's fused scores (n,); NaN where a passage's logit is."""
        return (
            self.passage * passage_logits
            + self.passage_title * logits
            + self.passage_first_stage * first
            + self.passage_coverage * coverage
        )

    def mentions(
        self, scores: NDArray[np.float64], links: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """What (n,) the hits gain from passages that were read, which they have links to.

        `scores` (m,) are those passages' fused scores, whose softmax says how likely each is what
        was searched for; `links` (m, n) says what the hits add to each, see `Links.of`.
        """
        likely = np.exp(scores - scores.max())
        gain: NDArray[np.float64] = self.mention * (likely / likely.sum()) @ links
        return gain

    def write(self, path: Path) -> None:
        """Write `fusion.json`."""
        path.write_text(json.dumps(self._asdict(), indent=2) + "\n", encoding="utf-8")


def standardise(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """First-stage scores (n,) to mean 0 and deviation 1 over the window.

    Unknown scores (NaN, infinite) become 0, the window's mean. Equal scores, or a window of
    one, say nothing: all become 0.
    """
    out = np.zeros(len(scores))
    known = np.isfinite(scores)
    if not known.any():
        return out
    # Scaled first, so that scores near the largest float neither overflow nor vanish.
    top = np.abs(scores[known]).max()
    values = scores[known] / top if top > 0 else scores[known]
    spread = values.std()
    if spread > 1e-9:
        out[known] = (values - values.mean()) / spread
    return out


def is_question(query: str) -> bool:
    """Whether a query asks, rather than states or names what it looks for; English only."""
    return _ASKS.search(query) is not None


def trust(query_tokens: int, question: bool, most: float = USUAL_TRUST) -> float:
    """How often the first stage's standardised scores count over texts: once for ten tokens.

    BM25 adds up what each of a query's words says, so that its sum over a sentence is much surer
    than over two words. Standardised within a window, both look alike. A statement repeats what
    it looks for, so that its words count for more than a question's, up to `most` times.
    """
    usual = query_tokens / _ONCE
    if question or usual <= 1:
        return min(usual, USUAL_TRUST)
    return float(min(usual**_STATEMENT, most))


def neutral(logits: NDArray[np.float32], known: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Logits (n,) in which those that mean nothing stand at the mean of the others."""
    out = logits.astype(np.float64)
    out[~known] = out[known].mean() if known.any() else 0.0
    return out


def lifted(
    scores: NDArray[np.float64],
    gain: NDArray[np.float64],
    read: NDArray[np.float64],
    links: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Fused scores (n,) with their `gain` (n,), none above the best of those it has links to.

    So a search for one page, whose passage names others, loses nothing. `read` (m,) are the
    scores of the passages that were read, `links` (m, n) theirs, as in `Fusion.mentions`.
    """
    limit = np.where(links > 0, read[:, None], -np.inf).max(axis=0)
    raised: NDArray[np.float64] = np.minimum(scores + gain, np.nextafter(limit, -np.inf))
    return np.maximum(scores, raised)


def squash(fused: NDArray[np.float64]) -> NDArray[np.float64]:
    """Any real number to the open interval (0, 1), rising, without a sigmoid's saturation.

    Algebraic: at 50 it still tells 50 from 50.001 in float32.
    """
    out: NDArray[np.float64] = 0.5 + 0.499 * fused / (4.0 + np.abs(fused))
    return out
