"""The file of records that could not be indexed: one JSON object a line, with the reason.

`{"position": 17, "location": "corpus.jsonl:18", "id": "a", "reason": "…", "document": {…}}`: the
record's position in the source from 0, and what there is of it: the `document` as it would have
been indexed, or the `excerpt` of what could not be read or is nested too deeply. With the cause put
right, the documents make a source again:
`jq -c 'select(.document) | .document + {id}' dead-letters.jsonl`.

A line is written whole before its record counts as done. Whatever a kill left behind the last
checkpoint is dropped when the load goes on, as it is then found again.
"""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from indexing.bulk import IndexingError
from indexing.checkpoint import naming
from indexing.records import Failure, excerpt


def check(path: Path, source: Path | None = None) -> None:
    """Raise `IndexingError` where a dead-letter file of that path would take something's place.

    That is a device or a pipe, or the file that the load itself is to read.
    """
    if path.exists() and not path.is_file():
        raise IndexingError(
            f"{path} is no regular file, which dead letters need to be found again by a load that"
            " goes on: name one with --dead-letters"
        )
    path = path.resolve()
    for taken in (path, _old(path)):
        if source is not None and taken.exists() and taken.samefile(source):
            raise IndexingError(
                f"the dead letters of this load would take the place of its source {source}: name"
                " another file with --dead-letters"
            )


class DeadLetters:
    """A dead-letter file open for appending; may be used by several threads.

    `position` is where a load goes on: lines of this and later positions are dropped. Without one
    the load is new, and an earlier one's file is kept as `NAME.old`. The file is made by its first
    line.
    """

    def __init__(self, path: Path, position: int | None = None) -> None:
        self.path = path = path.resolve()  # what is renamed is the file, not a link to it
        self._lock = threading.Lock()
        # Unbuffered: a line is in the file, or torn, when its write is over. And an object, not a
        # descriptor's number: what is closed twice then closes nobody else's file.
        self._file: io.FileIO | None = None
        self._torn = False
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            return
        # One that goes on at 0 has put the earlier file there already, and it must stay.
        if position is None or (position == 0 and not _old(path).exists()):
            path.replace(_old(path))
        else:
            self._drop_from(position)

    def add(
        self,
        position: int,
        failure: Failure,
        *,
        id_: str | None = None,
        document: Mapping[str, Any] | None = None,
    ) -> None:
        """Append a record with its reason."""
        entry: dict[str, object] = {"position": position, "location": failure.location}
        if id_ is not None:
            entry["id"] = id_
        entry["reason"] = failure.reason
        if failure.excerpt:
            entry["excerpt"] = failure.excerpt
        line = memoryview(_line(entry, document))
        with self._lock, naming(self.path):
            if self._file is None:
                self._file = io.FileIO(self.path, "ab")
            if self._torn:  # by an interrupt or a full disk: it must not take this line along
                self._file.write(b"\n")
            self._torn = True
            while line:
                line = line[self._file.write(line) or 0 :]
            self._torn = False

    def sync(self) -> None:
        """See that all lines survive a loss of power."""
        with self._lock, naming(self.path):
            if self._file is not None:
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; without a line there is none."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def first(self, count: int) -> tuple[Failure, ...]:
        """Give the first of the failures in the file."""
        failures: list[Failure] = []
        for entry in entries(self.path):
            if len(failures) == count:
                break
            failures.append(Failure(entry["location"], entry["reason"], entry.get("excerpt", "")))
        return tuple(failures)

    def _drop_from(self, position: int) -> None:
        kept = self.path.with_name(f"{self.path.name}.tmp")
        with naming(kept), kept.open("wb") as file:
            for entry in entries(self.path):
                if entry["position"] < position:
                    file.write(json.dumps(entry).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        kept.replace(self.path)


def _old(path: Path) -> Path:
    return path.with_name(f"{path.name}.old")


def entries(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the whole lines of a dead-letter file; none where there is no file."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            try:
                yield json.loads(line)
            except ValueError:  # torn
                continue


def _line(entry: Mapping[str, object], document: Mapping[str, Any] | None) -> bytes:
    whole = entry if document is None else {**entry, "document": document}
    try:
        # In ASCII, as that also writes what no UTF-8 can hold.
        return json.dumps(_plain(whole)).encode() + b"\n"
    except RecursionError:  # too deep to be written, or to be read again
        texts = {name: text for name, text in (document or {}).items() if isinstance(text, str)}
        return _line({**entry, "excerpt": excerpt(json.dumps(texts))}, None)


def _plain(value: object) -> object:
    """Give a value that JSON can write: numbers and objects that it cannot become text."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, float) and value == value and abs(value) != float("inf"):
        return value
    return repr(value)
