"""Judged collections and the readers of their formats: BEIR, KILT, HoVer, MS MARCO, TREC.

Readers are generators of plain records; `read_collection` puts them together. Nothing here
ranks or measures anything.

Two kinds of judgements occur. BEIR, MS MARCO and TREC judge documents (`qrels`). KILT gives
several *gold sets* of pages per query, each of which alone is sufficient evidence (Petroni et
al. 2021, arXiv 2009.02252, section 4). A `Collection` always holds both views: documents as one
gold set, or the union of the gold sets as qrels.
"""

from __future__ import annotations

import gzip
import json
import math
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

FORMATS = ("beir", "kilt", "hover", "msmarco", "trec")


class Query(NamedTuple):
    """One query of a test collection."""

    id: str
    text: str


class Document(NamedTuple):
    """One thing that can be ranked: a passage with its page's title, or a whole page."""

    id: str
    title: str
    text: str = ""


class Judgement(NamedTuple):
    """One line of a qrels file."""

    query_id: str
    document_id: str
    relevance: int


class GoldQuery(NamedTuple):
    """A query with its gold sets of pages; each set alone is sufficient evidence."""

    query: Query
    gold_sets: tuple[frozenset[str], ...]


@dataclass(frozen=True)
class Collection:
    """Queries, judgements and the documents they speak of.

    `qrels` maps query id to document id to relevance (above 0: relevant); `gold_sets` maps
    query id to its gold sets of document ids. `pages` says that the documents are whole pages,
    known by their titles. Build one with `from_qrels` or `from_gold_sets`.
    """

    name: str
    queries: tuple[Query, ...]
    corpus: Mapping[str, Document]
    qrels: Mapping[str, Mapping[str, int]]
    gold_sets: Mapping[str, tuple[frozenset[str], ...]]
    pages: bool = False

    @classmethod
    def from_qrels(
        cls,
        name: str,
        queries: Iterable[Query],
        judgements: Iterable[Judgement],
        corpus: Iterable[Document],
    ) -> Collection:
        """Build a collection whose judgements are documents; they form one gold set per query."""
        qrels: dict[str, dict[str, int]] = {}
        for query_id, document_id, relevance in judgements:
            qrels.setdefault(query_id, {})[document_id] = relevance
        gold_sets = {
            query_id: (frozenset(key for key, relevance in judged.items() if relevance > 0),)
            for query_id, judged in qrels.items()
        }
        return cls(name, _distinct(queries, name), _by_id(corpus), qrels, gold_sets)

    @classmethod
    def from_gold_sets(
        cls, name: str, gold: Iterable[GoldQuery], corpus: Iterable[Document]
    ) -> Collection:
        """Build a collection of pages judged by gold sets; the qrels are their union."""
        records = list(gold)
        gold_sets = {record.query.id: record.gold_sets for record in records}
        qrels = {
            query_id: {page: 1 for pages in sets for page in sorted(pages)}
            for query_id, sets in gold_sets.items()
        }
        queries = _distinct((record.query for record in records), name)
        return cls(name, queries, _by_id(corpus), qrels, gold_sets, pages=True)

    @property
    def judged(self) -> tuple[Query, ...]:
        """The queries with at least one relevant document; only these can be measured."""
        return tuple(query for query in self.queries if any(self.gold_sets.get(query.id, ())))

    def only(self, keep: Callable[[str], bool]) -> Collection:
        """Keep the queries for whose text `keep` is true."""
        return replace(self, queries=tuple(query for query in self.queries if keep(query.text)))

    def sample(self, size: int, seed: int = 0) -> Collection:
        """Keep `size` judged queries drawn at random without replacement, in the given order.

        The same seed gives the same queries; with `size` or fewer judged queries, all are kept.
        """
        judged = self.judged
        if len(judged) <= size:
            return replace(self, queries=judged)
        chosen = np.random.default_rng(seed).choice(len(judged), size=size, replace=False)
        return replace(self, queries=tuple(judged[i] for i in sorted(chosen.tolist())))

    def by_page(self) -> Collection:
        """Turn passages into their pages: one document per distinct title, judged by title.

        A page's text is its first passage. Passages without a title are left out; a query
        whose relevant passages all lack one is no longer judged.
        """
        page_of = {key: page for key, one in self.corpus.items() if (page := _page(one)).title}
        gold = [
            GoldQuery(
                query,
                tuple(
                    frozenset(page_of[key].id for key in documents if key in page_of)
                    for documents in self.gold_sets.get(query.id, ())
                ),
            )
            for query in self.queries
        ]
        return Collection.from_gold_sets(f"{self.name}, pages", gold, page_of.values())


def read_collection(
    path: Path,
    format: str | None = None,  # noqa: A002 -- the word every command line uses
    name: str | None = None,
    corpora: Sequence[Path] = (),
) -> Collection:
    """Read queries, judgements and corpus.

    `path` is a folder (beir, msmarco, trec) or a JSON Lines file (kilt, hover); without
    `format` it is guessed from what is there. `name` chooses among several query sets of one
    folder. `corpora` adds documents from other files (see `read_corpus`): for kilt and hover,
    which bring no corpus, the pool of pages is the union of the gold titles and of the titles
    in `corpora`.

    Raises ValueError or FileNotFoundError, with the remedy, for what cannot be read.
    """
    if not path.exists():
        raise FileNotFoundError(f"There is no {path}; give a BEIR folder or a KILT file.")
    format = format or guess_format(path)  # noqa: A001
    extra = [document for corpus in corpora for document in read_corpus(corpus)]
    if format in ("kilt", "hover"):
        if name is not None:
            raise ValueError(f"{path} is one set of queries; leave out the name {name!r}.")
        reader = read_kilt if format == "kilt" else read_hover
        gold = list(reader(path))
        titles = (page for record in gold for pages in record.gold_sets for page in sorted(pages))
        documents = [page for document in extra if (page := _page(document)).title]
        documents.extend(Document(title, title) for title in titles)
        return Collection.from_gold_sets(path.stem, gold, documents)
    if format == "beir":
        queries_path, qrels_path, set_name = _beir_files(path, name)
        own = path / "corpus.jsonl"
        documents = list(read_corpus(own)) if own.exists() or not extra else []
        queries, judgements = read_beir_queries(queries_path), read_qrels(qrels_path)
    elif format in ("msmarco", "trec"):
        topics, set_name = _choose(path, ("*queries*.tsv*", "*topics*"), name, "queries")
        qrels_path, _ = _choose(path, ("*qrels*",), name, "qrels")
        own_files = sorted([*path.glob("collection*.tsv*"), *path.glob("*docs*.tsv*")])
        # MS MARCO's msmarco-docs-lookup.tsv says at which byte of the other file a document is.
        texts = [file for file in own_files if "lookup" not in file.name]
        documents = [document for file in texts for document in read_corpus(file)]
        queries, judgements = read_topics(topics), read_qrels(qrels_path)
    else:
        raise ValueError(f"There is no format {format!r}; choose one of {', '.join(FORMATS)}.")
    label = f"{path.name}/{set_name}" if set_name else path.name
    return Collection.from_qrels(label, queries, judgements, [*documents, *extra])


def guess_format(path: Path) -> str:
    """Guess a data set's format from a folder's files or a file's first record."""
    if path.is_dir():
        if list(path.glob("*queries.jsonl*")):
            return "beir"
        if list(path.glob("*queries*.tsv*")):
            return "msmarco"
        if list(path.glob("*topics*")):
            return "trec"
        raise ValueError(
            f"{path} holds no queries; give a BEIR folder, a KILT or HoVer file, or an MS MARCO or "
            "TREC folder with *queries*.tsv or *topics*."
        )
    first = _first(path)
    if "output" in first:
        return "kilt"
    if "supporting_facts" in first:
        return "hover"
    raise ValueError(f"The format of {path} is not known; say it with --format.")


def read_corpus(path: Path) -> Iterator[Document]:
    """Read documents from any of the files that carry some, told apart by their first record.

    BEIR `corpus.jsonl` (`_id`, `title`, `text`; a folder that holds one will do), the KILT
    knowledge source (`wikipedia_id`, `wikipedia_title`, `text` as a list of paragraphs, of
    which the first repeats the title), the gold titles of a KILT or HoVer file, or MS MARCO
    TSV with two (id, text), three (id, title, text) or four columns (id, url, title, body).
    """
    if path.is_dir():
        path = path / "corpus.jsonl"
    if ".tsv" in path.suffixes:
        yield from _tsv_corpus(path)
        return
    first = _first(path)
    if "output" in first or "supporting_facts" in first:
        reader = read_kilt if "output" in first else read_hover
        for record in reader(path):
            for pages in record.gold_sets:
                yield from (Document(title, title) for title in sorted(pages))
    elif "wikipedia_title" in first:
        for page in _json_lines(path):
            paragraphs = [page.as_text(text, "text").strip() for text in page.list_of("text")]
            text = next((text for text in paragraphs[1:] if text), "")
            yield Document(
                page.text("wikipedia_id"), page.optional("wikipedia_title").strip(), text
            )
    else:
        for one in _json_lines(path):
            yield Document(one.text("_id"), one.optional("title"), one.optional("text"))


def read_beir_queries(path: Path) -> Iterator[Query]:
    """Read BEIR queries: JSON Lines with `_id` and `text`."""
    for record in _json_lines(path):
        yield Query(record.text("_id"), record.text("text"))


def read_qrels(path: Path) -> Iterator[Judgement]:
    """Read judgements: BEIR (three columns, with or without a header) or TREC (four columns)."""
    with open_text(path) as lines:
        for number, line in enumerate(lines, start=1):
            columns = line.split("\t") if line.count("\t") >= 2 else line.split()
            columns = [column.strip() for column in columns]
            if not line.strip() or (number == 1 and columns[-1] == "score"):
                continue
            try:
                query_id, *iteration, document_id, relevance = columns
                value = float(relevance)
            except ValueError:
                value = math.nan
            if not value.is_integer() or len(iteration) > 1:
                raise ValueError(
                    f"{path}, line {number}: expected query id, document id and relevance, a whole "
                    "number, between tabs where ids hold blanks."
                )
            yield Judgement(query_id, document_id, int(value))


def read_kilt(path: Path, page_key: str = "title") -> Iterator[GoldQuery]:
    """Read KILT queries with their gold sets of pages (`output[].provenance[].title`).

    KILT's own evaluation names pages by `wikipedia_id`; titles are as unique, and the corpora
    at hand carry titles, so they are the default `page_key`. As there, an output without
    provenance gives no gold set, while one with an empty list gives an empty set, which counts
    among the sets to be found.
    """
    for record in _json_lines(path):
        outputs = [record.inside(output, "output") for output in record.list_of("output") if output]
        gold_sets = [
            frozenset(
                page
                for one in output.list_of("provenance")
                if (page := output.inside(one, "provenance").optional(page_key).strip())
            )
            for output in outputs
            if output.fields.get("provenance") is not None
        ]
        query = Query(record.text("id"), record.text("input"))
        yield GoldQuery(query, tuple(dict.fromkeys(gold_sets)))


def read_hover(path: Path) -> Iterator[GoldQuery]:
    """Read HoVer claims; the titles of all supporting facts are one gold set."""
    for record in _json_lines(path):
        query = Query(record.text("uid"), record.text("claim"))
        facts = record.needed("supporting_facts")
        if not isinstance(facts, list) or not all(isinstance(f, list) and f for f in facts):
            raise ValueError(
                f"{record.place}: 'supporting_facts' is not a list of [title, sentence]; mend it."
            )
        titles = frozenset(record.as_text(title, "title").strip() for title, *_ in facts)
        yield GoldQuery(query, (titles,))


def read_topics(path: Path) -> Iterator[Query]:
    """Read queries from TSV (`id<TAB>text`: MS MARCO, TREC Deep Learning) or TREC topics.

    In the latter, `<num>` is the id and `<title>` the text (TREC ad hoc topics 1 to 450).
    """
    with open_text(path) as file:
        text = file.read()
    if "<top>" in text.lower():
        for topic in re.split(r"(?i)<top>", text)[1:]:
            number = re.search(r"(?i)<num>\s*(?:Number:)?\s*([^\s<]+)", topic)
            title = re.search(r"(?is)<title>\s*(?:Topic:)?(.*?)(?=<|\n\s*\n|\Z)", topic)
            if not number or not title:
                raise ValueError(f"{path}: a topic lacks <num> or <title>; add the missing field.")
            yield Query(number[1], " ".join(title[1].split()))
        return
    for row, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        key, tab, words = line.partition("\t")
        if not tab:
            raise ValueError(f"{path}, line {row}: expected query id, a tab and the text.")
        yield Query(key.strip(), words.strip())


@contextmanager
def open_text(path: Path) -> Iterator[IO[str]]:
    """Open a UTF-8 text file, unpacking `.gz` on the way; a byte order mark is left out.

    Raises ValueError, with the file's name, where it turns out not to be one.
    """
    unpack = gzip.open if path.suffix == ".gz" else open
    try:
        with unpack(path, "rt", encoding="utf-8-sig", newline="\n") as file:
            yield file
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text; convert it to UTF-8.") from None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise ValueError(f"{path} is not a whole gzip file; fetch it again.") from None


def _tsv_corpus(path: Path) -> Iterator[Document]:
    with open_text(path) as lines:
        for number, line in enumerate(lines, start=1):
            columns = line.rstrip("\r\n").split("\t")
            if len(columns) == 2:
                yield Document(columns[0], "", columns[1])
            elif len(columns) == 3:
                yield Document(*columns)
            elif len(columns) == 4:
                yield Document(columns[0], columns[2], columns[3])
            else:
                raise ValueError(f"{path}, line {number}: expected two to four tabbed columns.")


def _beir_files(folder: Path, name: str | None) -> tuple[Path, Path, str]:
    """Find queries and judgements: `queries.jsonl` + `qrels/NAME.tsv`, or NAME-queries.jsonl."""
    named = {path.name[: -len("-queries.jsonl")]: path for path in folder.glob("*-queries.jsonl")}
    if named:
        if name is None and len(named) == 1:
            name = next(iter(named))
        if name not in named:
            raise ValueError(
                f"{folder} holds several query sets; choose one with --queries: "
                f"{', '.join(sorted(named))}."
            )
        return named[name], folder / f"{name}-qrels.tsv", name
    qrels = folder / "qrels" / f"{name or 'test'}.tsv"
    if not qrels.exists():
        there = ", ".join(sorted(path.stem for path in (folder / "qrels").glob("*.tsv")))
        raise ValueError(
            f"{folder} has no judgements {qrels.name}; choose with --queries among: {there}."
            if there
            else f"{folder} has no judgements: give a BEIR folder, with {qrels.name} in `qrels`."
        )
    return folder / "queries.jsonl", qrels, name or ""


def _choose(
    folder: Path, patterns: tuple[str, ...], name: str | None, what: str
) -> tuple[Path, str]:
    """Find the one file of a folder that fits the patterns and, where given, holds the name."""
    found = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    if name is not None:
        found = [path for path in found if name in path.name]
    if len(found) != 1:
        there = ", ".join(path.name for path in found)
        raise ValueError(
            f"{folder} needs exactly one file of {what}, found {there}; choose with --queries."
            if there
            else f"{folder} has no file of {what}: none is called {' or '.join(patterns)}"
            + (f" with {name!r} in its name." if name else ".")
        )
    return found[0], name or ""


class _Record(NamedTuple):
    """One object of a JSON Lines file, and where it stands in it.

    What is asked of it raises ValueError, with the place, where it holds something else.
    """

    fields: dict[str, Any]
    place: str

    def needed(self, name: str) -> Any:
        """A field that has to be there, and not null."""
        if self.fields.get(name) is None:
            raise ValueError(
                f"{self.place} lacks {name!r}; mend it, or choose the file's format with --format."
            )
        return self.fields[name]

    def text(self, name: str) -> str:
        """A text or number that has to be there."""
        return self.as_text(self.needed(name), name)

    def optional(self, name: str) -> str:
        """A field that may be missing or null: then it is empty."""
        return self.as_text(self.fields.get(name), name)

    def list_of(self, name: str) -> list[Any]:
        """A field's list; empty where it is missing or null."""
        found = self.fields.get(name)
        if not isinstance(found, list | None):
            raise ValueError(f"{self.place}: {name!r} is not a list; mend the file.")
        return found or []

    def inside(self, value: Any, name: str) -> _Record:
        """An object that a field's list holds."""
        if not isinstance(value, dict):
            raise ValueError(f"{self.place}: {name!r} holds {value!r:.40}, not an object; mend it.")
        return _Record(value, self.place)

    def as_text(self, value: Any, name: str) -> str:
        """A value of a field: a text, a number or null."""
        if value is None:
            return ""
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            raise ValueError(f"{self.place}: {name!r} is not a text; mend the file.")
        return str(value)


def json_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each object of a JSON Lines file with its place, `FILE, line 3`; blank lines are passed over.

    Raises ValueError for a line that is no object.
    """
    with open_text(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            if not isinstance(record, dict):
                raise ValueError(f"{path}, line {number} is not a JSON object; mend the file.")
            yield f"{path}, line {number}", record


def _json_lines(path: Path) -> Iterator[_Record]:
    return (_Record(record, place) for place, record in json_objects(path))


def _first(path: Path) -> dict[str, Any]:
    """The fields of a file's first record, which tell its format; none in an empty file."""
    return next((record.fields for record in _json_lines(path)), {})


def _page(document: Document) -> Document:
    """The page that a passage is of, known by its title without blanks at its ends, as in KILT."""
    title = document.title.strip()
    return Document(title, title, document.text)


def _by_id(documents: Iterable[Document]) -> dict[str, Document]:
    """Index by id; where an id comes twice, the first one with a text wins."""
    corpus: dict[str, Document] = {}
    for document in documents:
        known = corpus.get(document.id)
        if known is None or (not known.text and document.text):
            corpus[document.id] = document
    return corpus


def _distinct(queries: Iterable[Query], name: str) -> tuple[Query, ...]:
    by_id: dict[str, Query] = {}
    for query in queries:
        if by_id.setdefault(query.id, query) != query:
            raise ValueError(f"{name}: two queries have the id {query.id!r}; make ids unique.")
    return tuple(by_id.values())
