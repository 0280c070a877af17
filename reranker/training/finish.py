"""From a finished training to a model folder that serving loads, and the fusion of both stages."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tokenizers import Tokenizer

from reranker.coverage import Coverage
from reranker.evaluation.bm25 import BM25, text_of
from reranker.evaluation.collections import read_collection
from reranker.evaluation.contamination import FILE
from reranker.fusion import Fusion, neutral, standardise
from reranker.mentions import Names
from reranker.models.export import Precision, export, has_dual, measure_ranges
from reranker.runtime import load_model
from reranker.training.examples import load
from reranker.training.lists import Tokens, padded
from reranker.training.prepare import dev_queries
from reranker.training.start import left_out_of, load_trained, seen_by, text_tokens, tokenizer_of

if TYPE_CHECKING:
    from collections.abc import Sequence, Set
    from pathlib import Path

    from numpy.typing import NDArray

    from reranker.stages import PassageReranker, TitleReranker
    from reranker.training.config import Recipe
    from reranker.training.start import Model

log = logging.getLogger(__name__)

# What a served model reads at most; training lists are shorter, for their cost. A query may be a
# dialogue, whose last words say what is asked.
_LIMITS: dict[str, dict[str, int]] = {
    "title": {"max_query_tokens": 256, "max_text_tokens": 48},
    "passage": {
        "max_query_tokens": 256,
        "max_passage_tokens": 256,
        "stride": 32,
        "max_windows": 4,
    },
}


def export_trained(
    folder: Path,
    out: Path,
    name: str,
    precision: Precision = "int8",
    blend: float = 1.0,
    average: bool = False,
) -> None:
    """Write a training's result as a model folder for serving; see `load_trained`."""
    recipe, model = load_trained(folder, blend, average)
    export_model(recipe, model, folder, out, name, precision, blend)
    np.save(out / FILE, seen_by(folder))


def export_model(
    recipe: Recipe,
    model: Model,
    prepared: Path,
    out: Path,
    name: str,
    precision: Precision = "int8",
    blend: float = 1.0,
) -> None:
    """Write a network as a model folder; `prepared` holds `dev` examples to measure it on."""
    tokenizer = tokenizer_of(recipe)
    lists = dev_lists(recipe, prepared, tokenizer)
    cut = -(-3 * len(lists) // 5)
    measured, checked = lists[:cut], lists[cut:] or lists
    dual = recipe.task == "passage" and has_dual(model)
    ranges = measure_ranges(model, measured, dual) if precision == "int8" else None
    export(model, out, precision, ranges, dual)
    (out / "tokenizer.json").write_text(_compact(tokenizer), "utf-8")
    config = {
        "name": name,
        "task": recipe.task,
        "architecture": recipe.architecture,
        "precision": precision,
        "backbone": recipe.backbone,
        "blend": blend,
        **_LIMITS[recipe.task],
        "left_out": left_out_of(recipe),
    }
    path = out / "config.json"
    path.write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    config["kendall_tau"] = round(agreement(model, out, checked), 4)
    path.write_text(json.dumps(config, indent=2) + "\n", "utf-8")


List = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@torch.no_grad()
def agreement(model: Model, folder: Path, lists: Sequence[List]) -> float:
    """Mean over lists of Kendall's tau between the exported folder's order and torch's in fp32."""
    exported, _ = load_model(folder)
    taus = []
    for query, ids, mask in lists:
        read = model.encode_query(query, torch.ones_like(query, dtype=torch.bool))
        exact = model.score(read, ids, mask).numpy()  # type: ignore[arg-type]
        rows = [row[seen].numpy() for row, seen in zip(ids, mask, strict=True)]
        taus.append(kendall_tau(exact, exported.score(exported.read(query[0].numpy()), rows)))
    return float(np.mean(taus))


def kendall_tau(one: NDArray[np.float32], two: NDArray[np.float32]) -> float:
    """Kendall's tau-a of two scorings (n,) of the same things, by its definition."""
    upper = np.triu_indices(len(one), 1)
    signs = np.sign(one[:, None] - one[None, :]) * np.sign(two[:, None] - two[None, :])
    return float(signs[upper].mean())


def dev_lists(
    recipe: Recipe, folder: Path, tokenizer_json: str, queries: int = 80, depth: int = 24
) -> list[List]:
    """Lists of the dev split, (query ids (1, Q), text ids (N, T), mask (N, T)), of all sources."""
    pool, items = load(folder / "dev")
    chosen = np.random.default_rng(0).permutation(len(items))[:queries].tolist()
    places = [(items[i].golds + items[i].candidates)[:depth] for i in chosen]
    tokenizer = Tokenizer.from_str(tokenizer_json)
    asked = Tokens(tokenizer, [items[i].query for i in chosen], recipe.lists.max_query_tokens)
    lists = []
    for at, texts in enumerate(places):
        tokens = text_tokens(recipe, tokenizer, [pool[text] for text in texts])
        ids, mask = padded([tokens[i] for i in range(len(texts))])
        lists.append((padded([asked[at]])[0], ids, mask))
    return lists


class Window:
    """One dev query's window, scored by both models: what the fusion is fitted on."""

    def __init__(
        self,
        title: NDArray[np.float64],
        passage: NDArray[np.float64],
        first: NDArray[np.float64],
        gold: NDArray[np.bool_],
        named: NDArray[np.float64] | None = None,
        coverage: NDArray[np.float64] | None = None,
    ) -> None:
        self.title = title  # (n,)
        self.passage = passage  # (n,), NaN where it was not scored
        self.first = first  # (n,), standardised
        self.gold = gold  # (n,)
        # (n, n): which hits each hit's passage names, see `Names.named_by`; None: none names any.
        self.named = np.zeros((len(gold), len(gold))) if named is None else named
        # (n,): the share of the query's words that each hit holds, see `Coverage`.
        self.coverage = np.zeros(len(gold)) if coverage is None else coverage


def score_windows(
    recipe: Recipe,
    data: Path,
    title: TitleReranker,
    passage: PassageReranker,
    queries: int = 60,
    depth: int = 30,
    exclude: Sequence[str] = (),
    seen: Set[int] | None = None,
) -> dict[str, list[Window]]:
    """Windows of the dev split, per query set: BM25's top 100, both stages' logits.

    Passages are read for the `depth` hits that titles and BM25 together put first, as in a
    cascade. Sets of pages (KILT, HoVer) have titles only, and BM25 is over these. Sets of less
    than a third of the largest one's windows are left out: they would count as much as it does.
    So are queries that `dev_queries` does not give.
    """
    found: dict[str, list[Window]] = {}
    engines: dict[tuple[str, bool], BM25] = {}
    covers = Coverage(passage.tokenizer.vocabulary)
    for source in recipe.data.sources:
        pages = source.format in ("kilt", "hover")
        corpora = [data / path for path in recipe.data.corpora] if pages else []
        collection = read_collection(data / source.path, source.format, source.queries, corpora)
        corpus = collection.corpus
        key = (source.path, pages)
        if key not in engines:
            engines[key] = BM25.over(corpus, "title" if pages else "both")
        engine = engines[key]
        for query in dev_queries(source, data, collection, exclude, seen)[:queries]:
            window = engine.search(query.text, 100)
            relevant = collection.qrels[query.id]
            gold = np.array([relevant.get(id, 0) > 0 for id, _ in window], dtype=bool)
            if not gold.any() or gold.all():
                continue
            documents = [corpus[id] for id, _ in window]
            titles = [document.title for document in documents]
            logits = neutral(title.score(query.text, titles), np.array([bool(t) for t in titles]))
            first = standardise(np.array([score for _, score in window], dtype=np.float64))
            read = np.full(len(window), np.nan)
            named = np.zeros((len(window), len(window)))
            coverage = np.zeros(len(window))
            if not pages:
                coverage = covers.of(query.text, [text_of(one) for one in documents])
                promise = standardise(logits) + first + standardise(coverage)
                best = np.argsort(-promise, kind="stable")[:depth]
                read[best] = passage.score(
                    query.text, [titles[i] for i in best], [documents[i].text for i in best]
                )
                names = Names(query.text, titles)
                for i in best:
                    named[i] = names.named_by(i, documents[i].text)
            scored = Window(logits, read, first, gold, named, coverage)
            found.setdefault(collection.name, []).append(scored)
        log.info("%s: %d windows", collection.name, len(found.get(collection.name, [])))
    return without_small(found)


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
        return np.stack([window.title, window.first], 1), window.gold

    def covered(window: Window) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        return np.stack([window.title, window.first, window.coverage], 1), window.gold

    def read(window: Window) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        seen = np.isfinite(window.passage)
        features = [window.passage, window.title, window.first, window.coverage]
        return np.stack(features, 1)[seen], window.gold[seen]

    def rounded(values: NDArray[np.float64]) -> list[float]:
        return [round(float(value), 4) for value in values]

    *titles, title_coverage = rounded(fit(texts, covered))
    *passages, passage_coverage = rounded(fit(texts, read))
    alone = rounded(fit(pages or texts, by_title))
    fusion = Fusion(*titles, *passages, *alone)._replace(
        title_coverage=title_coverage, passage_coverage=passage_coverage
    )
    return fusion._replace(mention=round(_fit_mention(texts, fusion), 4))


def _fit_mention(windows: dict[str, list[Window]], fusion: Fusion) -> float:
    """The weight of being named, beside the scores that the other weights make."""

    def gain(window: Window) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        seen = np.isfinite(window.passage)
        scores = fusion.passages(window.passage, window.title, window.first, window.coverage)[seen]
        gains = fusion._replace(mention=1.0).mentions(scores, window.named[np.ix_(seen, seen)])
        return np.stack([scores, gains], 1), window.gold[seen]

    if not any(window.named.any() for items in windows.values() for window in items):
        return 0.0
    own, mention = fit(windows, gain)
    return float(mention / own)


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


def _compact(text: str) -> str:
    """A tokenizer's JSON without its own padding and truncation, which serving decides."""
    tokenizer = json.loads(text)
    tokenizer["padding"] = tokenizer["truncation"] = None
    return json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":"))
