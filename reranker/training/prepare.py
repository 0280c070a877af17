"""From judged collections to training examples: pools of texts, first-stage windows, the split."""

from __future__ import annotations

import json
import logging
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from reranker.evaluation.baselines import BiEncoder, load_bi_encoder, normalise
from reranker.evaluation.bm25 import BM25, text_of
from reranker.evaluation.collections import (
    Collection,
    Document,
    Query,
    json_objects,
    read_collection,
)
from reranker.evaluation.contamination import FILE, fingerprint, fingerprints
from reranker.evaluation.runs import highest
from reranker.evaluation.split import side
from reranker.models.backbone import find_backbone
from reranker.training import examples, keep
from reranker.training.augment import UNLABELLED
from reranker.training.inputs import check_inputs, keep_inputs
from reranker.training.pairs import against_own_title, make_queries, without_title
from reranker.training.teachers import with_prompts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from reranker.training.config import Recipe, SourceConfig

log = logging.getLogger(__name__)

_QUERIES = 256  # compared with all texts at a time
_ID_KEYS = ("_id", "id", "uid", "query_id")
_QUERY_KEYS = ("text", "input", "claim", "question", "query")


def prepare_once(recipe: Recipe, data: Path, out: Path, exclude: Iterable[str] = ()) -> bool:
    """`prepare`, with the recipe's bi-encoder, unless it was done; whether it ran.

    Raises ValueError where it was done with other data, or without the same queries, and
    FileNotFoundError, before anything is read, for what the recipe names and `data` lacks.
    """
    exclude = sorted(set(exclude))
    if (out / FILE).exists():
        check_inputs(out, _inputs(data, exclude))
        # Of another training's folder, whose examples these are, it may have had no such lists.
        if recipe.keep and not examples.is_saved(out / keep.FOLDER):
            keep.prepare_keep(recipe, data, out)
        return False
    for path in _named(recipe):
        if not (data / path).exists():
            raise FileNotFoundError(
                f"There is no {data / path}, which the recipe names; give another --data, or "
                "take it out"
            )
    prepare(recipe, data, out, exclude, find_encoder(recipe) if recipe.data.dense else None)
    return True


def _named(recipe: Recipe) -> list[str]:
    """All paths below the data folder that a recipe names."""
    paths = [source.path for source in recipe.data.sources]
    paths += [*recipe.data.corpora, *recipe.data.unlabelled]
    paths += recipe.keep.corpora if recipe.keep else []
    return paths + (recipe.augment.queries if recipe.augment else [])


def _inputs(data: Path, exclude: Iterable[str]) -> dict[str, Any]:
    return {"--data": str(data.resolve()), "--exclude": sorted(set(exclude))}


def find_encoder(recipe: Recipe) -> BiEncoder:
    """The bi-encoder that finds dense candidates: the teacher, or else the backbone as one."""
    if recipe.taught_by and recipe.taught_by.encoder:
        return with_prompts(recipe.taught_by)
    encode = load_bi_encoder(find_backbone(recipe.backbone))
    return BiEncoder(encode, encode)


def prepare(
    recipe: Recipe,
    data: Path,
    out: Path,
    exclude: Iterable[str] = (),
    encode: BiEncoder | None = None,
) -> None:
    """Write `train` and `dev` examples below `out`, and the fingerprints of what is trained on.

    With `encode`, `data.dense` of every query's nearest texts are candidates too; where it is the
    recipe's teacher, its scores of all candidates are written into the examples.

    Queries whose text or id is in `exclude` are kept out of both, on top of the split. A query
    id that is held out under one text is held out under every other of the same source's path,
    and a text that is held out under one id is held out under every other.
    """
    sources = _read(recipe, data)
    excluded = set(exclude)
    asked = [
        (_QueryId(source.path, id), text)
        for source in sources
        for id, text in source.collection.queries
    ]
    # Whose id is excluded may come again under another one, in another set or in no set.
    prints = {fingerprint(item) for item in excluded}
    prints |= {fingerprint(text) for id, text in asked if id.id in excluded}
    held_out = {id for id, text in asked if side(text) != "train" or fingerprint(text) in prints}
    held_out |= _kin(sources, data, held_out, excluded)
    held_out_ids = excluded | {id for _, id in held_out}
    held_out_prints = prints | {fingerprint(text) for id, text in asked if id in held_out}

    # By all that they are: another source's document may have the same id.
    documents = list(
        dict.fromkeys(one for source in sources for one in source.collection.corpus.values())
    )
    by_text = _by_text(documents)
    build = _titles if recipe.task == "title" else _passages
    pool, items = build(recipe, sources, documents, by_text)
    if recipe.data.unlabelled:
        paths = [data / path for path in recipe.data.unlabelled]
        known = {item.query for _, item in items}
        more = [q for q in _unlabelled(paths, held_out_ids, held_out_prints) if q not in known]
        items += _without_labels(recipe, more, by_text)
    if encode and recipe.data.dense:
        _add_nearest(recipe, encode, pool, items)

    weights = {source.collection.name: source.config.weight for source in sources}
    kept: dict[str, list[examples.Example]] = {"train": [], "dev": []}
    for id, item in items:
        where, words = side(item.query), fingerprint(item.query)
        if id is None:  # nobody's queries: trained on, never measured with
            if where == "train" and words not in held_out_prints:
                kept["train"].append(item)
        elif where == "dev" and words not in prints:
            kept["dev"].append(item)
        elif where == "train" and words not in held_out_prints:
            kept["train"].extend([item] * times(item, weights.get(item.source, 1.0)))
    for name, chosen in kept.items():
        examples.save(out / name, pool, chosen)
        log.info("%s: %d examples over %d texts", name, len(chosen), len(pool))
    if recipe.keep:
        keep.prepare_keep(recipe, data, out)
    trained_on = [item.query for item in kept["train"] if item.source != examples.MADE]
    if recipe.augment and recipe.augment.queries:
        paths = [data / path for path in recipe.augment.queries]
        unlabelled = _unlabelled(paths, held_out_ids, held_out_prints)
        (out / UNLABELLED).write_text(json.dumps(unlabelled, ensure_ascii=False), "utf-8")
        log.info("%d queries without judgements", len(unlabelled))
        trained_on += unlabelled
    keep_inputs(out, _inputs(data, excluded))
    np.save(out / FILE, fingerprints(trained_on))


def sources_of(paths: Sequence[Path]) -> list[str]:
    """Ids and texts of the queries in JSON Lines files, `.gz` too: what `prepare` is to leave out.

    Raises ValueError for a record that has neither.
    """
    found: list[str] = []
    for path in paths:
        for place, record in json_objects(path):
            known = [record.get(key) for key in (*_ID_KEYS, *_QUERY_KEYS)]
            named = [str(value) for value in known if value not in (None, "")]
            if not named:
                raise ValueError(
                    f"{place}: no query; give its id as one of "
                    f"{', '.join(_ID_KEYS)}, or its text as one of {', '.join(_QUERY_KEYS)}"
                )
            found += named
    return found


def dev_queries(
    source: SourceConfig,
    data: Path,
    collection: Collection,
    exclude: Iterable[str] = (),
    seen: AbstractSet[int] | None = None,
) -> list[Query]:
    """A source's judged queries of the dev split.

    Those that `exclude` names are left out, and those of which a model knows too much: another
    query made from the same one is in `seen`, the fingerprints of what it was trained on. None:
    nobody knows them, it may have been any of the training split.
    """
    excluded = set(exclude)
    prints = {fingerprint(item) for item in excluded}
    origin_of: dict[str, str] = {}
    given_away: set[str] = set()
    if source.made_from is not None:
        for _, record in json_objects(data / source.path):
            if record.get(source.made_from) is None:
                continue
            origin = str(record[source.made_from])
            origin_of |= dict.fromkeys(_ids(record), origin)
            text = _text_of(record)
            if side(text) == "train" if seen is None else fingerprint(text) in seen:
                given_away.add(origin)
    return [
        query
        for query in collection.judged
        if side(query.text) == "dev"
        and query.id not in excluded
        and fingerprint(query.text) not in prints
        and origin_of.get(query.id) not in given_away
    ]


class _QueryId(NamedTuple):
    """A query's id, which says nothing outside the files that it comes from."""

    path: str
    id: str


class _Source(NamedTuple):
    """A source of the recipe with what was read of it."""

    config: SourceConfig
    collection: Collection

    @property
    def path(self) -> str:
        return os.path.normpath(self.config.path)


def _read(recipe: Recipe, data: Path) -> list[_Source]:
    read = []
    for source in recipe.data.sources:
        corpora = [data / path for path in recipe.data.corpora]
        is_pages = source.format in ("kilt", "hover")
        collection = read_collection(
            data / source.path, source.format, source.queries, corpora if is_pages else ()
        )
        log.info("%s: %d judged queries", collection.name, len(collection.judged))
        read.append(_Source(source, collection))
    return read


def _unlabelled(paths: Sequence[Path], held_out: set[str], prints: set[int]) -> list[str]:
    """Queries of JSON Lines files that may be trained on; raises ValueError for one without."""
    found: dict[str, None] = {}
    for path in paths:
        for place, record in json_objects(path):
            query = _text_of(record)
            if not query:
                raise ValueError(f"{place}: no query; give one of {', '.join(_QUERY_KEYS)}")
            excluded = fingerprint(query) in prints or not held_out.isdisjoint(_ids(record))
            if query.strip() and side(query) == "train" and not excluded:
                found[query] = None
    return list(found)


def _text_of(record: dict[str, Any]) -> str:
    """A record's query; empty where it has none."""
    found = next((record[key] for key in _QUERY_KEYS if key in record), None)
    return found if isinstance(found, str) else ""


def _ids(record: dict[str, Any]) -> set[str]:
    return {str(record[key]) for key in _ID_KEYS if key in record}


def times(item: examples.Example, weight: float) -> int:
    """How often an example is taken: whole numbers for all, the rest for a fixed share of them."""
    share = int(fingerprint(item.query)) % 997 / 997
    return int(weight) + (share < weight % 1)


def _kin(
    sources: Sequence[_Source], data: Path, held_out: set[_QueryId], excluded: set[str]
) -> set[_QueryId]:
    """Queries that would give a held-out one away.

    Those made from it or from the same query as it, and the one that it was made from.
    """
    made = [
        (str(record[field]), {_QueryId(source.path, id) for id in _ids(record)})
        for source in sources
        if (field := source.config.made_from) is not None
        for _, record in json_objects(data / source.path)
        if record.get(field) is not None
    ]
    # The query that others were made from may be in any source, or in none.
    origins = {origin for origin, ids in made if not ids.isdisjoint(held_out)}
    known = origins | excluded | {id for _, id in held_out}
    kin = {id for origin, ids in made if origin in known for id in ids}
    return kin | {
        _QueryId(source.path, id)
        for source in sources
        for id, _ in source.collection.queries
        if id in origins
    }


_Items = list[tuple[_QueryId | None, examples.Example]]  # query id; None: a made query


def _passages(
    recipe: Recipe, sources: Sequence[_Source], documents: Sequence[Document], by_text: BM25
) -> tuple[list[str], _Items]:
    at = {document: place for place, document in enumerate(documents)}
    by_title: dict[str, list[int]] = {}
    for place, document in enumerate(documents):
        by_title.setdefault(document.title, []).append(place)
    items: _Items = []
    for source in sources:
        for query, relevant in _judged(source.collection):
            found = by_text.search(query.text, recipe.data.window)
            titles = {one.title for one in relevant} if source.config.skip_gold_title else set()
            item = examples.example(
                source.collection.name,
                query.text,
                golds=[at[one] for one in relevant],
                window=[int(place) for place, _ in found],
                scores=[score for _, score in found],
                skip={place for title in titles if title for place in by_title[title]},
            )
            if item.candidates:
                items.append((_QueryId(source.path, query.id), item))
        log.info("%s: candidates found", source.collection.name)
    return [text_of(document) for document in documents], items


def _without_labels(recipe: Recipe, queries: Sequence[str], by_text: BM25) -> _Items:
    """Examples of queries that nobody judged: candidates, and no gold text among them."""
    items: _Items = []
    for query in queries:
        found = by_text.search(query, recipe.data.window)
        window, scores = [int(place) for place, _ in found], [score for _, score in found]
        item = examples.example(examples.UNLABELLED, query, [], window, scores)
        if item.candidates:
            items.append((None, item))
    log.info("%d queries without judgements", len(items))
    return items


def _by_text(documents: Sequence[Document]) -> BM25:
    """An engine over documents that names them by their places."""
    return BM25([str(place) for place in range(len(documents))], map(text_of, documents))


def _judged(collection: Collection) -> Iterator[tuple[Query, list[Document]]]:
    """The judged queries, each with its relevant documents, as far as the corpus has them."""
    lacking: list[str] = []
    for query in collection.judged:
        ids = [id for id, value in collection.qrels[query.id].items() if value > 0]
        lacking += [id for id in ids if id not in collection.corpus]
        relevant = [collection.corpus[id] for id in ids if id in collection.corpus]
        if relevant:
            yield query, relevant
    if lacking:
        log.warning(
            "%s: %d judgements are left out, for the corpus lacks their documents: the first is %s",
            collection.name,
            len(lacking),
            lacking[0],
        )


def _titles(
    recipe: Recipe, sources: Sequence[_Source], documents: Sequence[Document], by_text: BM25
) -> tuple[list[str], _Items]:
    pool = list(dict.fromkeys(d.title for d in documents if d.title))
    at = {title: place for place, title in enumerate(pool)}
    by_title = BM25(pool, pool)
    half = recipe.data.window
    items: _Items = []
    for source in sources:
        for query, relevant in _judged(source.collection):
            golds = {at[one.title] for one in relevant if one.title}
            if not golds:
                continue
            # Two windows, as the title stage meets them: of an index of titles, and the pages of
            # the best passages.
            titles = by_title.search(query.text, half)
            pages = by_text.search(query.text, half)
            for found in (titles, [(documents[int(place)].title, score) for place, score in pages]):
                window: dict[int, float] = {}
                for title, score in found:
                    if title:
                        window.setdefault(at[title], score)
                item = examples.example(
                    source.collection.name,
                    query.text,
                    golds=golds,
                    window=list(window),
                    scores=list(window.values()),
                )
                if item.candidates:
                    items.append((_QueryId(source.path, query.id), item))
        log.info("%s: candidates found", source.collection.name)
    if recipe.data.made:
        items += _made(recipe, documents, at, by_title)
    return pool, items


def _made(
    recipe: Recipe, documents: Sequence[Document], at: dict[str, int], by_title: BM25
) -> _Items:
    """Documents' own sentences as queries for their titles, so that the model learns these.

    Candidates are the titles that share words with the sentence, as in an index of titles.
    """
    rng = np.random.default_rng([recipe.seed, 5])
    # A page may be in several corpora, under several ids; what is made of it names its title.
    pages = {(one.title, one.text): one._replace(id=one.title) for one in documents}
    items: _Items = []
    for one in make_queries(pages.values(), rng, recipe.data.made, cut=True):
        title = one.document
        query = without_title(one.query, title)
        if not query:
            continue
        window = recipe.data.window
        item = against_own_title(examples.MADE, query, at[title], at, by_title, window)
        if item.candidates:
            items.append((None, item))
    log.info("%d queries made of %d documents", len(items), len(pages))
    return items


def _add_nearest(recipe: Recipe, encode: BiEncoder, pool: Sequence[str], items: _Items) -> None:
    """Give every example the texts nearest to its query and, by the teacher, all texts' scores."""
    texts = normalise(encode.texts(pool))
    teaches = recipe.taught_by is not None and recipe.taught_by.encoder is not None
    scale = recipe.taught_by.scale if recipe.taught_by else 1.0
    of_query: dict[str, list[examples.Example]] = {}
    for _, item in items:
        of_query.setdefault(item.query, []).append(item)
    asked = list(of_query)
    for start in range(0, len(asked), _QUERIES):
        some = asked[start : start + _QUERIES]
        cosines = normalise(encode.queries(some)) @ texts.T  # (queries, pool)
        for query, row in zip(some, cosines, strict=True):
            found = highest(row, recipe.data.dense)
            for item in of_query[query]:
                out = {*item.golds, *item.candidates, *item.skipped}
                item.others = [text for text in found if text not in out]
                if teaches:
                    item.taught = [round(scale * float(row[text]), 3) for text in item.texts]
    log.info("dense candidates found")
