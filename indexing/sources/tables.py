"""Tables: CSV with a header, and Parquet; a mapping names the columns as it does for JSON lines."""

from __future__ import annotations

import base64
import csv
import datetime
import importlib
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

from indexing.records import Document, Failure, excerpt
from indexing.sources.fields import FieldMap, document
from indexing.sources.files import MAX_LINE_BYTES, Line, LineFile, Object

_DELIMITERS = ",;\t|"
_ROWS = 512  # of Parquet, held in memory together


def csv_documents(file: LineFile, fields: FieldMap | None = None) -> Iterator[Document | Failure]:
    """Yield a document for every row; the header tells the columns and what separates them.

    A quoted value may have line ends in it. Empty values count as absent.
    """
    fields = fields or FieldMap()
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))
    header: list[str] = []
    delimiter = ","
    for row in _csv_rows(file):
        if isinstance(row, Failure):
            yield row
            continue
        if not header:
            delimiter = max(_DELIMITERS, key=row.text.count)
            header = [name.strip() for name in _cells(row.text, delimiter)]
            continue
        try:
            cells = _cells(row.text, delimiter)
        except csv.Error as error:
            yield Failure(row.location, f"not CSV: {error}", excerpt(row.text))
            continue
        if len(cells) != len(header):
            reason = f"{len(header)} columns are needed, as in the header, not {len(cells)}"
            yield Failure(row.location, reason, excerpt(row.text))
            continue
        values = {name: cell for name, cell in zip(header, cells, strict=True) if cell}
        yield document(Object(row.location, values), fields)


def _csv_rows(file: LineFile) -> Iterator[Line | Failure]:
    """Join the lines of rows whose quotes are still open."""
    parts: list[str] = []
    location = ""
    size = quotes = 0
    for line in file.lines(blank=True):
        if isinstance(line, Failure):
            # Whatever row it was part of cannot be told any more.
            if parts:
                yield Failure(location, f"the row is broken at {line.location}", excerpt(parts[0]))
            parts, size, quotes = [], 0, 0
            yield line
            continue
        if not parts:
            if not line.text.strip():
                continue
            location = line.location
        parts.append(line.text)
        size += len(line.text)
        quotes += line.text.count('"')
        if quotes % 2 == 0:
            yield Line(location, "\n".join(parts))
        elif size > MAX_LINE_BYTES:
            reason = f"a quote is still open at {line.location}, {size} characters later"
            yield Failure(location, reason, excerpt(parts[0]))
        else:
            continue
        parts, size, quotes = [], 0, 0
    if parts:
        yield Failure(location, "a quote is still open where the file ends", excerpt(parts[0]))


def _cells(row: str, delimiter: str) -> list[str]:
    # One row, so its line ends are all in quotes: given as a single line they stay.
    return next(csv.reader([row.replace("\r", " ")], delimiter=delimiter), [])


class ParquetTable:
    """The rows of a Parquet file, and how many of them have been read.

    Raises `OSError` where pyarrow is not installed, or cannot read the file.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._arrow: Any = importlib.import_module("pyarrow")
            self._parquet: Any = importlib.import_module("pyarrow.parquet")
        except ModuleNotFoundError as error:
            raise OSError(
                "reading Parquet needs one package more: pip install 'titlecast[sources]'"
            ) from error
        self._path = path
        self._read = 0
        with self._opened() as table:
            self._rows: int = table.metadata.num_rows

    def fraction(self) -> float:
        """How many of the rows have been read, from 0 to 1."""
        return self._read / self._rows if self._rows else 1.0

    def documents(self, fields: FieldMap | None = None) -> Iterator[Document | Failure]:
        """Yield a document for every row; numbers, dates and bytes become what JSON can hold."""
        fields = fields or FieldMap()
        with self._opened() as table:
            batches = table.iter_batches(batch_size=_ROWS)
            while True:
                location = f"{self._path.name}:{self._read + 1}"
                try:
                    rows = next(batches).to_pylist()
                except StopIteration:
                    return
                except (self._arrow.ArrowException, OSError, ValueError) as error:
                    yield LineFile.cut(location, error)
                    return
                for row in rows:
                    self._read += 1
                    yield document(Object(f"{self._path.name}:{self._read}", _plain(row)), fields)

    def _opened(self) -> Any:
        try:
            return self._parquet.ParquetFile(self._path, memory_map=False, pre_buffer=False)
        except (self._arrow.ArrowException, ValueError) as error:
            raise OSError(f"{self._path} is no Parquet file: {error}") from error


def _plain(value: Any) -> Any:
    """Give a value of Parquet as one of JSON."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, (Decimal, UUID)):
        return str(value)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    return value
