"""How both stages' scores are combined: fitted on dev queries that the served models scored."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from reranker.coverage import Coverage
from reranker.evaluation.bm25 import BM25, text_of
from reranker.evaluation.collections import Document, read_collection, read_corpus
from reranker.fusion import USUAL_TRUST, Fusion, is_question, lifted, neutral, standardise, trust
from reranker.mentions import Links
from reranker.training.augment import take_sentence
from reranker.training.prepare import dev_queries
from reranker.training.stopping import ndcg

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence, Set
    from pathlib import Path

    from numpy.typing import NDArray

    from reranker.stages import PassageReranker, TitleReranker
    from reranker.training.config import Recipe

log = logging.getLogger(__name__)

# Hits of a window.
_CANDIDATES = 100
# Weights of the links and limits of trust that are tried, and the nDCG@10 that a smaller one may
# lose.
_MENTIONS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
_MOST_TRUST = (USUAL_TRUST, 3.0, 4.0, 6.0)
_NEARLY = 0.0002


class Window:
    """One dev query's window, scored by both models: what the fusion is fitted on."""

    def __init__(
        self,
        title: NDArray[np.float64],
        passage: NDArray[np.float64],
        first: NDArray[np.float64],
        gold: NDArray[np.bool_],
        links: NDArray[np.float64] | None = None,
        coverage: NDArray[np.float64] | None = None,
        tokens: int | None = None,
        question: bool = True,
    ) -> None:
        self.title = title  # (n,)
        self.passage = passage  # (n,), NaN where it was not scored
        self.first = first  # (n,), standardised
        self.gold = gold  # (n,)
        # (n, n): what the hits add to each of them, see `Links.of`; None: there are no links.
        self.links = np.zeros((len(gold), len(gold))) if links is None else links
        # (n,): the share of the query's words that each hit holds, see `Coverage`.
        self.coverage = np.zeros(len(gold)) if coverage is None else coverage
        self.tokens = tokens  # of the query; None: its length says nothing, as over titles alone
        self.question = question

    def trusted(self, most: float) -> NDArray[np.float64]:
        """What the first stage's scores (n,) count for, see `reranker.fusion.trust`."""
        if self.tokens is None:
            return self.first
        return self.first * trust(self.tokens, self.question, most)


class Scorer:
    """Makes windows as a cascade would see them, with BM25 as the first stage."""

    def __init__(self, title: TitleReranker, passage: PassageReranker, depth: int = 30) -> None:
        """Passages are read for the `depth` hits that titles and BM25 together put first."""
        self._title, self._passage, self._depth = title, passage, depth
        self._coverage = Coverage(passage.tokenizer.vocabulary)

    def window(
        self,
        query: str,
        engine: BM25,
        corpus: Mapping[str, Document],
        relevant: Set[str],
        pages: bool = False,
    ) -> Window | None:
        """Score what BM25 finds; None where all of it or nothing is relevant.

        `pages` have titles only.
        """
        found = engine.search(query, _CANDIDATES)
        gold = np.array([id in relevant for id, _ in found], dtype=bool)
        if not gold.any() or gold.all():
            return None
        documents = [corpus[id] for id, _ in found]
        titles = [document.title for document in documents]
        asked = self._title.read(query)
        logits = neutral(
            self._title.score_read(asked, titles).logits, np.array([bool(t) for t in titles])
        )
        scores = np.array([score for _, score in found], dtype=np.float64)
        first = standardise(scores)
        read = np.full(len(found), np.nan)
        if pages:
            return Window(logits, read, first, gold)
        texts = [document.text for document in documents]
        covered = self._coverage.of(query, [text_of(document) for document in documents])
        question = is_question(query)
        trusted = trust(asked.tokens, question) * first
        promise = standardise(logits) + trusted + standardise(covered.shares)
        best = np.argsort(-promise, kind="stable")[: self._depth]
        read[best] = self._passage.score(query, [titles[i] for i in best], [texts[i] for i in best])
        linked = Links(query, titles, texts, covered)
        links = np.zeros((len(found), len(found)))
        for i in best:
            links[i] = linked.of(i)
        return Window(logits, read, first, gold, links, covered.shares, asked.tokens, question)


def score_windows(
    recipe: Recipe,
    data: Path,
    scorer: Scorer,
    queries: int = 60,
    exclude: Sequence[str] = (),
    seen: Set[int] | None = None,
    sentences: Sequence[str] = (),
) -> dict[str, list[Window]]:
    """Windows of the dev split, per query set; of the corpora `sentences`, too, see `taken_out`.

    Sets of pages (KILT, HoVer) have titles only, and BM25 is over these. Sets of less than a
    third of the largest one's windows are left out: they would count as much as it does. So are
    queries that `dev_queries` does not give.
    """
    found: dict[str, list[Window]] = {}
    engines: dict[tuple[str, bool], BM25] = {}
    for source in recipe.data.sources:
        pages = source.format in ("kilt", "hover")
        corpora = [data / path for path in recipe.data.corpora] if pages else []
        collection = read_collection(data / source.path, source.format, source.queries, corpora)
        corpus = collection.corpus
        key = (source.path, pages)
        if key not in engines:
            engines[key] = BM25.over(corpus, "title" if pages else "both")
        windows = found.setdefault(collection.name, [])
        for query in dev_queries(source, data, collection, exclude, seen)[:queries]:
            relevant = {id for id, value in collection.qrels[query.id].items() if value > 0}
            if window := scorer.window(query.text, engines[key], corpus, relevant, pages):
                windows.append(window)
        log.info("%s: %d windows", collection.name, len(windows))
    for path in sentences:
        documents, asked = taken_out(read_corpus(data / path), queries)
        engine = BM25.over(documents)
        scored = (scorer.window(text, engine, documents, {id}) for id, text in asked.items())
        name = f"sentences of {path}"
        found[name] = [window for window in scored if window]
        log.info("%s: %d windows", name, len(found[name]))
    return without_small({name: windows for name, windows in found.items() if windows})


def taken_out(
    documents: Iterable[Document], count: int
) -> tuple[dict[str, Document], dict[str, str]]:
    """Sentences as queries: at most `count`, each taken out of a document, which answers it.

    Gives the documents, without these sentences, and the sentences by document id. Other words
    than a question's, and more of them: what BM25 is good at, so that its weight is not fitted on
    questions alone.
    """
    corpus = {document.id: document for document in documents}
    rng = np.random.default_rng(0)
    ids = list(corpus)
    taken: dict[str, str] = {}
    for place in rng.permutation(len(ids)).tolist():
        if len(taken) == count:
            break
        id = ids[place]
        if (parts := take_sentence(corpus[id].text, rng)) is not None:
            taken[id], rest = parts
            corpus[id] = corpus[id]._replace(text=rest)
    return corpus, taken


def without_small(sets: dict[str, list[Window]]) -> dict[str, list[Window]]:
    """The sets that have at least a third of the largest one's windows."""
    most = max(map(len, sets.values()), default=0)
    few = [name for name, windows in sets.items() if 3 * len(windows) < most]
    if few:
        log.info("left out, for they have few windows: %s", ", ".join(few))
    return {name: windows for name, windows in sets.items() if name not in few}


def fit_fusion(windows: dict[str, list[Window]]) -> Fusion:
    """The weights that make the gold hits most likely, every query set counting the same.

    Listwise softmax likelihood, convex in the weights, which are kept from becoming negative.
    Sets of pages say what counts where no hit has a passage; without such sets that is the same.
    """
    pages = {
        name: items
        for name, items in windows.items()
        if not any(np.isfinite(window.passage).any() for window in items)
    }
    texts = {name: items for name, items in windows.items() if name not in pages}

    def by_title(window: Window) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        return np.stack([window.title, window.trusted(USUAL_TRUST)], 1), window.gold

    def covered(window: Window) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        first = window.trusted(USUAL_TRUST)
        return np.stack([window.title, first, window.coverage], 1), window.gold

    def read(window: Window) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        seen = np.isfinite(window.passage)
        first = window.trusted(USUAL_TRUST)
        features = [window.passage, window.title, first, window.coverage]
        return np.stack(features, 1)[seen], window.gold[seen]

    def rounded(values: NDArray[np.float64]) -> list[float]:
        return [round(float(value), 4) for value in values]

    *titles, title_coverage = rounded(fit(texts, covered))
    *passages, passage_coverage = rounded(fit(texts, read))
    alone = rounded(fit(pages or texts, by_title))
    fusion = Fusion(*titles, *passages, *alone)._replace(
        title_coverage=title_coverage, passage_coverage=passage_coverage
    )
    fusion = _best(texts, [fusion._replace(mention=weight) for weight in _MENTIONS])
    return _best(texts, [fusion._replace(most_trust=most) for most in _MOST_TRUST])


def _best(windows: dict[str, list[Window]], trials: Sequence[Fusion]) -> Fusion:
    """The first of these that orders the read passages as well as any, or nearly.

    By nDCG@10, every query set counting the same. The likelihood does not see that no hit is
    lifted above those it is linked to, and asks less of the first stage for long statements than
    is best for their order.
    """
    found = []
    for tried in trials:
        sets = [[_quality(window, tried) for window in items] for items in windows.values()]
        found.append(np.mean([np.mean(qualities) for qualities in sets]))
    return trials[int((np.array(found) >= max(found) - _NEARLY).argmax())]


def _quality(window: Window, fusion: Fusion) -> float:
    """nDCG@10 of the passages that were read, as a cascade that read them orders them."""
    read = np.isfinite(window.passage)
    first = window.trusted(fusion.most_trust)
    every = fusion.passages(window.passage, window.title, first, window.coverage)
    scores, links = every[read], window.links[np.ix_(read, read)]
    final = lifted(scores, fusion.mentions(scores, links), scores, links)
    return ndcg(window.gold[read].astype(float), np.argsort(-final, kind="stable"))


def fit(windows: dict[str, list[Window]], features: Any) -> NDArray[np.float64]:
    """Non-negative weights (f,) of the features that `features(window)` -> ((n, f), gold (n,)).

    A feature that is the same for all hits of each window says nothing: 0. Raises ValueError
    where no window has a gold hit.
    """
    sets = []
    for items in windows.values():
        pairs = [features(item) for item in items]
        sets.append([(torch.from_numpy(x), torch.from_numpy(g)) for x, g in pairs if g.any()])
    if not any(sets):
        raise ValueError(
            "no dev query has a relevant hit among those whose passages were read: give a recipe "
            "with sources that have passages, and with more judged queries"
        )
    varies = torch.stack([(x != x[0]).any(0) for pairs in sets for x, _ in pairs]).any(0)
    # The square root, so that no weight becomes negative.
    root = torch.full((len(varies),), 0.7, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([root], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        for pairs in sets:
            for x, gold in pairs:
                scores = (x @ root.square()).log_softmax(0)
                total = total - scores[gold].mean() / len(pairs)
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    out: NDArray[np.float64] = (root.detach().square() * varies).numpy()
    return out
