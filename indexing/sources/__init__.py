"""Sources of documents: each reads one format and yields documents, failures and skips."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple, get_args

from indexing.records import Failure, Record
from indexing.sources import beir, debian, dpr, folder, jsonl, kilt, msmarco, pydoc, tables, trec
from indexing.sources.fields import FieldMap
from indexing.sources.files import COMPRESSED, STDIN, Line, LineFile, Object, RawLine, parse
from indexing.sources.irds import PREFIX, DataSet
from indexing.sources.opensearch import Connect, IndexReader

Format = Literal[
    "beir",
    "csv",
    "debian",
    "dpr",
    "folder",
    "irds",
    "jsonl",
    "kilt",
    "msmarco",
    "opensearch",
    "parquet",
    "pydoc",
    "trec",
]
FORMATS: tuple[Format, ...] = get_args(Format)
# Formats with named fields, to which a mapping belongs.
MAPPED = frozenset[Format]({"csv", "jsonl", "opensearch", "parquet"})
# Formats whose documents are whole pages or sections of them, of any length.
PAGES = frozenset[Format]({"folder", "kilt"})
_Lines = Callable[[LineFile], Iterator[Record]]
_LINES: Mapping[Format, _Lines] = {
    "beir": beir.documents,
    "debian": debian.documents,
    "dpr": dpr.documents,
    "kilt": kilt.documents,
    "msmarco": msmarco.documents,
    "trec": trec.documents,
}
_MAPPED_LINES: Mapping[Format, Callable[[LineFile, FieldMap], Iterator[Record]]] = {
    "csv": tables.csv_documents,
    "jsonl": jsonl.documents,
}


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
    # Where it is an index or several: the cluster's uuid and the name of each.
    indices: Callable[[], frozenset[tuple[str, str]]] = frozenset
    path: Path | None = None  # where it is a file or a folder

    def through(
        self, step: Callable[[Iterator[Record]], Iterator[Record]], **options: str | int
    ) -> Source:
        """Put a step behind the reading; `options` tell it from other steps."""
        fingerprint = {**self.fingerprint, **options}
        return self._replace(records=step(self.records), fingerprint=fingerprint)


class SourceError(OSError):
    """A source that cannot be opened, or whose format is not clear; the text names the remedy."""


def open_source(
    location: str,
    format_: str | None = None,
    fields: FieldMap | None = None,
    connect: Connect | None = None,
) -> Source:
    """Open a source by its location.

    That is a file, a folder, `-` (standard input), `pydoc`, `irds:DATASET`, or an index's
    address, `http://HOST:9200/INDEX`. `fields` belongs to the formats of `MAPPED`; `connect`
    makes the client for an index. Raises `SourceError`, and what `connect` raises.
    """
    fields = fields or FieldMap()
    chosen = _format(location, format_, fields)
    if fields != FieldMap() and chosen not in MAPPED:
        raise SourceError(
            f"the format {chosen} has its own fields: leave --id-field, --title-field,"
            " --passage-field and --vector-field out"
        )
    made_of: dict[str, str | int] = {"format": chosen}
    if fields != FieldMap():
        made_of["fields"] = repr(tuple(fields))
    if chosen == "pydoc":
        return Source("pydoc", chosen, pydoc.documents(), _unknown, made_of)
    if chosen == "opensearch":
        index = _index(location, connect)
        made_of |= {"location": index.name, "sort": index.sort}
        return Source(
            index.name, chosen, index.documents(fields), index.fraction, made_of, index.indices
        )
    try:
        if chosen == "irds":
            data = DataSet(location)
            made_of["location"] = data.name
            return Source(data.name, chosen, data.documents(), data.fraction, made_of)
        return _open_path(location, chosen, fields, made_of)
    except SourceError:
        raise
    except OSError as error:
        raise SourceError(f"{location} cannot be read: {error.strerror or error}") from error


def _index(location: str, connect: Connect | None) -> IndexReader:
    try:
        return IndexReader(location, connect)
    except ValueError as error:
        raise SourceError(str(error)) from error


def guess_format(location: str, mapped: bool = False) -> Format:
    """Tell the format from a location where only one can be meant; else raise `SourceError`.

    A file shows its kind in its name or its first line; `mapped` fields settle JSON as `jsonl`.
    """
    path = Path(location)
    if location.startswith(PREFIX):
        return "irds"
    if location.startswith(("http://", "https://")):
        return "opensearch"
    if location == STDIN:
        raise SourceError(
            f"the format of standard input is not clear: give --format {'|'.join(FORMATS)}"
        )
    if location == "pydoc" and not path.exists():
        return "pydoc"
    if not path.exists():
        raise SourceError(
            f"{location} does not exist: name a file, a folder, an index's address, -, or pydoc"
        )
    if path.is_dir():
        return _guess_folder(path)
    name = path.name.lower()
    suffix = next((s for s in COMPRESSED if name.endswith(s)), "")
    end = Path(name.removesuffix(suffix)).suffix
    if end in folder.SUFFIXES - folder.TEXT and not suffix:
        return "folder"
    if end == ".parquet":
        return "parquet"
    if mapped and end in (".csv", ".tsv"):
        return "csv"
    guessed = _guess_line(path, end, mapped) if path.is_file() else None
    if guessed is None:
        raise SourceError(
            f"the format of {location} is not clear: give --format {'|'.join(FORMATS)}"
        )
    return guessed


def _format(location: str, format_: str | None, fields: FieldMap) -> Format:
    if format_ is None:
        return guess_format(location, mapped=fields != FieldMap())
    for known in FORMATS:
        if format_ == known:
            return known
    raise SourceError(f"unknown format {format_!r}: use one of {', '.join(FORMATS)}")


def _open_path(
    location: str, format_: Format, fields: FieldMap, made_of: dict[str, str | int]
) -> Source:
    path = Path(location)
    if format_ == "beir" and location != STDIN:
        found = beir.find_corpus(path)
        if found is None:
            raise SourceError(
                f"{location} is no beir source: name a folder with corpus.jsonl, or that file"
            )
        path = found
    folders = format_ in ("folder", "trec")
    if location == STDIN:
        made_of["location"] = STDIN
        if format_ in ("folder", "parquet"):
            raise SourceError(f"{format_} cannot be read from standard input: name a file")
    elif not path.exists() or (path.is_dir() and not folders):
        wanted = "file or folder" if folders else "file"
        raise SourceError(f"{location} is no {format_} source: name an existing {wanted}")
    else:
        about = path.stat()
        made_of["location"] = str(path.resolve())
        if path.is_file():
            made_of |= {"bytes": about.st_size, "modified": about.st_mtime_ns}
    if location == STDIN:
        opened = partial(Source, "stdin", format_, fingerprint=made_of)
    else:
        opened = partial(Source, str(path), format_, fingerprint=made_of, path=path)
    if format_ == "folder":
        return opened(folder.documents(path), _unknown)
    if format_ == "parquet":
        table = tables.ParquetTable(path)
        return opened(table.documents(fields), table.fraction)
    if format_ == "trec" and path.is_dir() and location != STDIN:
        return opened(_trec_folder(path), _unknown)
    file = LineFile(STDIN if location == STDIN else path)
    if format_ in _MAPPED_LINES:
        made = _MAPPED_LINES[format_](file, fields)
    else:
        made = _LINES[format_](file)
    return opened(made, file.fraction)


def _trec_folder(path: Path) -> Iterator[Record]:
    for file in folder.files(path):
        if isinstance(file, Failure):
            yield file
            continue
        try:
            lines = LineFile(file)
        except OSError as error:
            yield LineFile.cut(str(file), error)
        else:
            yield from trec.documents(lines)


def _guess_folder(path: Path) -> Format:
    if beir.find_corpus(path):
        return "beir"
    found = list(islice(folder.files(path), 1000))
    if any(isinstance(file, Path) and file.suffix.lower() in folder.SUFFIXES for file in found):
        return "folder"
    for failure in found:
        if isinstance(failure, Failure):
            raise SourceError(f"{failure.location}: {failure.reason}")
    raise SourceError(
        f"no corpus.jsonl, Markdown, HTML or text in {path}: name another folder or a file,"
        " or give --format trec"
    )


def _guess_line(path: Path, end: str, mapped: bool) -> Format | None:
    """Tell the format of a file from its first line that is not blank."""
    lines = LineFile(path).raw_lines()
    # Whatever its encoding: what is not UTF-8 is said when it is read.
    texts = (line.data.decode("utf-8", "replace") for line in lines if isinstance(line, RawLine))
    first = next((text for text in texts if text.strip()), "").lstrip("\ufeff").rstrip("\r\n")
    if first.lstrip()[:5].upper() == "<DOC>":
        return "trec"
    if first.startswith("Package: "):
        return "debian"
    if first.lstrip().startswith("{") and end not in (".csv", ".tsv"):
        return _guess_object(parse(Line("", first)), mapped)
    if end == ".tsv" and tuple(first.split("\t")) == dpr.HEADER:
        return "dpr"
    named: dict[str, Format] = {".tsv": "msmarco", ".csv": "csv", ".txt": "folder"}
    if end in (".jsonl", ".json", ".ndjson"):
        return "jsonl"
    return named.get(end)


def _guess_object(first: Object | Failure, mapped: bool) -> Format:
    if mapped or isinstance(first, Failure):
        return "jsonl"
    if "wikipedia_title" in first.fields:
        return "kilt"
    return "beir" if "_id" in first.fields and "text" in first.fields else "jsonl"


def _unknown() -> None:
    return None
