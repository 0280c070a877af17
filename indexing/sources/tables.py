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
            delimiter = _delimiter(row.text)
        try:
            cells = _cells(row.text, delimiter)
        except csv.Error as error:
            failure = _failure(row.location, f"not CSV: {error}", row.text)
            if not header:  # without one no row means anything
                yield failure._replace(cut=True)
                return
            yield failure
            continue
        if not header:
            header = [name.strip() for name in cells]
            continue
        if len(cells) != len(header):
            reason = f"{len(header)} columns are needed, as in the header, not {len(cells)}"
            yield _failure(row.location, reason, row.text)
            continue
        values = {name: cell for name, cell in zip(header, cells, strict=True) if cell}
        yield document(Object(row.location, values), fields)


def _csv_rows(file: LineFile) -> Iterator[Line | Failure]:
    """Join the lines of rows whose quotes are still open."""
    parts: list[str] = []
    location = delimiter = ""
    size = 0
    quoted = False
    for line in file.lines(blank=True):
        if isinstance(line, Failure):
            # Whatever row it was part of cannot be told any more.
            if parts:
                yield _failure(location, f"the row is broken at {line.location}", "\n".join(parts))
            parts, size, quoted = [], 0, False
            yield line
            continue
        if not parts:
            if not line.text.strip():
                continue
            location = line.location
        parts.append(line.text)
        size += len(line.text)
        quoted = _stays_quoted(line.text, quoted, delimiter or _delimiter(line.text))
        if not quoted:
            row = "\n".join(parts)
            delimiter = delimiter or _delimiter(row)
            yield Line(location, row)
        elif size > MAX_LINE_BYTES:
            reason = f"a quote is still open at {line.location}, {size} characters later"
            yield _failure(location, reason, "\n".join(parts))
        else:
            continue
        parts, size, quoted = [], 0, False
    if parts:
        yield _failure(location, "a quote is still open where the file ends", "\n".join(parts))


def _delimiter(header: str) -> str:
    return max(_DELIMITERS, key=header.count)


def _stays_quoted(line: str, quoted: bool, delimiter: str) -> bool:
    """Tell whether a quoted value is open at a line's end, given whether one was at its start.

    By the rule of `csv`: a quote opens a value only as its first character. In any other place,
    as in `Pipe 5" wide`, it is text.
    """
    if '"' not in line:
        return quoted
    at = 0
    if not quoted:
        quoted = line.startswith('"')
        at = int(quoted)
    while True:
        if quoted:
            at = line.find('"', at) + 1
            if not at:
                return True
            if line.startswith('"', at):  # two are one in the text
                at += 1
                continue
        at = line.find(delimiter, at) + 1
        if not at:
            return False
        quoted = line.startswith('"', at)
        at += quoted


def _failure(location: str, reason: str, row: str) -> Failure:
    """Say what is wrong with a row; one of many lines may have taken other rows in."""
    lines = row.count("\n")
    if lines:
        reason = f"{reason}; lines behind it that it took in: {lines:,}"
    return Failure(location, reason, excerpt(row.partition("\n")[0]), cut=bool(lines))


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
        """Yield a document for every row; numbers, dates and bytes become what JSON can hold.

        Times keep microseconds, which are what Python's have.
        """
        fields = fields or FieldMap()
        with self._opened() as table:
            batches = table.iter_batches(batch_size=_ROWS)
            while True:
                location = f"{self._path.name}:{self._read + 1}"
                try:
                    batch = self._in_microseconds(next(batches))
                except StopIteration:
                    return
                except (self._arrow.ArrowException, OSError, ValueError) as error:
                    yield LineFile.cut(location, error)
                    return
                for row in self._rows_of(batch):
                    self._read += 1
                    location = f"{self._path.name}:{self._read}"
                    if isinstance(row, Failure):
                        yield row._replace(location=location)
                    else:
                        yield document(Object(location, _plain(row)), fields)

    def _in_microseconds(self, batch: Any) -> Any:
        columns = []
        for column in batch.columns:
            type_ = self._without_nanoseconds(column.type)
            # Not every type can be cast, be it to itself.
            columns.append(column if type_ == column.type else column.cast(type_, safe=False))
        return self._arrow.RecordBatch.from_arrays(columns, batch.schema.names)

    def _without_nanoseconds(self, type_: Any) -> Any:
        """Give a column's type with times in microseconds; Python has no smaller ones."""
        arrow = self._arrow
        if arrow.types.is_timestamp(type_) and type_.unit == "ns":
            return arrow.timestamp("us", type_.tz)
        if arrow.types.is_duration(type_) and type_.unit == "ns":
            return arrow.duration("us")
        if arrow.types.is_time64(type_) and type_.unit == "ns":
            return arrow.time64("us")
        if arrow.types.is_list(type_):
            field = type_.value_field
            return arrow.list_(field.with_type(self._without_nanoseconds(field.type)))
        if arrow.types.is_struct(type_):
            return arrow.struct(
                [field.with_type(self._without_nanoseconds(field.type)) for field in type_]
            )
        return type_

    def _rows_of(self, batch: Any) -> Iterator[dict[str, Any] | Failure]:
        """Yield a batch's rows, or why Python cannot hold one of its values."""
        errors = (self._arrow.ArrowException, OverflowError, ValueError)
        try:
            yield from batch.to_pylist()
        except errors:  # of one of the rows: nothing has been yielded
            for number in range(batch.num_rows):
                row: dict[str, Any] = {}
                name = ""
                try:
                    for name, column in zip(batch.schema.names, batch.columns, strict=True):
                        row[name] = column[number].as_py()
                except errors as error:
                    yield Failure("", f"field {name!r} cannot be read: {error}")
                else:
                    yield row

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
