"""Sources of documents: each reads one format and yields documents, failures and skips."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple, get_args

from indexing.records import Record
from indexing.sources import beir, jsonl, kilt, msmarco, pydoc
from indexing.sources.files import LineFile, Object

Format = Literal["beir", "kilt", "msmarco", "jsonl", "pydoc"]
FORMATS: tuple[str, ...] = get_args(Format)


class Source(NamedTuple):
    """An opened source: records in constant memory, once, and how far the reading has come.

    Two sources with the same `fingerprint` yield the same records in the same order: a load that
    stopped at a position of one can go on at that position of the other.
    """

    name: str
    format: Format
    records: Iterator[Record]
    fraction: Callable[[], float | None]  # from 0 to 1; None where the end is not known
    fingerprint: Mapping[str, str | int] = MappingProxyType({})  # what to read, and how


class SourceError(OSError):
    """A source that cannot be opened, or whose format is not clear; the text names the remedy."""


def open_source(
    location: str,
    format_: str | None = None,
    mapping: Mapping[str, tuple[str, ...]] | None = None,
) -> Source:
    """Open a source by its location (a file, a BEIR folder, or `pydoc`).

    `mapping` belongs to the format `jsonl`. Raises `SourceError`.
    """
    if format_ is not None and format_ not in FORMATS:
        raise SourceError(f"unknown format {format_!r}: use one of {', '.join(FORMATS)}")
    chosen = format_ or guess_format(location, mapped=bool(mapping))
    if mapping and chosen != "jsonl":
        raise SourceError(f"--map belongs to the format jsonl, not {chosen}: leave it out")
    if chosen == "pydoc":
        return Source("pydoc", "pydoc", pydoc.documents(), lambda: None)
    path: Path | None = Path(location)
    if chosen == "beir":
        path = beir.find_corpus(Path(location))
    if path is None or not path.is_file():
        raise SourceError(f"{location} is no {chosen} source: {_needed(chosen)}")
    try:
        file = LineFile(path)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error
    if chosen == "beir":
        return Source(str(path), "beir", beir.documents(file), file.fraction)
    if chosen == "kilt":
        return Source(str(path), "kilt", kilt.documents(file), file.fraction)
    if chosen == "msmarco":
        return Source(str(path), "msmarco", msmarco.documents(file), file.fraction)
    return Source(str(path), "jsonl", jsonl.documents(file, mapping), file.fraction)


def guess_format(location: str, mapped: bool = False) -> Format:
    """Tell the format from a location where only one can be meant; else raise `SourceError`.

    A JSONL file shows its kind in its first object; a field mapping settles it as `jsonl`.
    """
    path = Path(location)
    if location == "pydoc" and not path.exists():
        return "pydoc"
    if not path.exists():
        raise SourceError(f"{location} does not exist: name a file, a BEIR folder, or pydoc")
    if path.is_dir():
        if beir.find_corpus(path):
            return "beir"
        raise SourceError(f"no corpus.jsonl in {location}: name a BEIR folder or a file")
    name = path.name.removesuffix(".gz")
    if name.endswith(".tsv"):
        return "msmarco"
    if mapped:
        return "jsonl"
    if name == "corpus.jsonl":
        return "beir"
    if name.endswith((".jsonl", ".json", ".ndjson")):
        return _guess_objects(path)
    raise SourceError(f"the format of {location} is not clear: give --format {'|'.join(FORMATS)}")


def _guess_objects(path: Path) -> Format:
    first = next(LineFile(path).objects(), None)
    fields = first.fields if isinstance(first, Object) else {}
    if "wikipedia_title" in fields:
        return "kilt"
    return "beir" if "_id" in fields and "text" in fields else "jsonl"


def _needed(format_: str) -> str:
    if format_ == "beir":
        return "name a folder with corpus.jsonl, or that file"
    return "name an existing file"
