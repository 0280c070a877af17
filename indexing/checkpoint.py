"""What a load remembers on disk, so that it can go on after a kill at any moment.

A load has a folder. `checkpoint.json` says what is loaded, where to, and how far: *all* records
before its position are done with, none at or after it counts. It is replaced in one step, and
only once all that it speaks of is on the disk. `keys` holds one key of `KEY_BYTES` for every
record before the position (zero where it became no document): by them the source is recognised
and its distinct ids are counted, without an id of the corpus in memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from indexing.bulk import KEY_BYTES, IndexingError

_FILE = "checkpoint.json"
_KEYS = "keys"
_LOCK = "lock"


@dataclass
class State:
    """What a checkpoint says.

    Attributes:
        identity: what makes two loads the same one: source, options, destination.
        index: the index that is written to.
        version: of the load, `bulk.version_now()` at its beginning.
        made: the load makes the index itself.
        carried: settings that an index made by the load takes over from its predecessor.
        uuid: of the index, once it is known; another one means that it was deleted meanwhile.
        before: documents in the index when the load began, once counted.
        position: records done with.
        created, replaced, failed, skipped: what became of them.
        cut: of the failed, those behind which the rest of a file or an index is unread.
        bytes: of the documents in the index.
        seconds: spent by all runs of the load.
        samples: documents to compare at the end.
        old: what an alias named before it was switched.
        complete: the source has been read to its end, and `position` is there.
    """

    identity: dict[str, Any] = field(default_factory=dict)
    index: str = ""
    version: int = 0
    made: bool = False
    carried: dict[str, Any] = field(default_factory=dict)
    uuid: str = ""
    before: int | None = None
    position: int = 0
    created: int = 0
    replaced: int = 0
    failed: int = 0
    skipped: int = 0
    cut: int = 0
    bytes: int = 0
    seconds: float = 0.0
    samples: list[dict[str, Any]] = field(default_factory=list)
    old: list[str] = field(default_factory=list)
    complete: bool = False


class Checkpoint:
    """The folder of one load, to be used in a `with` block, by one process at a time.

    Raises `IndexingError` if another process uses it or if it cannot be read or written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock: IO[bytes] | None = None
        self._writing = threading.Lock()

    def __enter__(self) -> Checkpoint:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / _LOCK).open("ab")
        except OSError as error:
            raise IndexingError(
                f"the folder {self.folder}, in which the load keeps where it is, cannot be"
                f" written ({error.strerror}): name another one with --state"
            ) from error
        try:
            _lock_file(self._lock)
        except OSError as error:
            self._lock.close()
            raise IndexingError(
                f"another load uses {self.folder}: let it end, it loads into the same index"
            ) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._lock is not None:
            self._lock.close()

    @property
    def keys(self) -> Path:
        """The file of keys."""
        return self.folder / _KEYS

    def read(self) -> State | None:
        """Give the last state; None where no load was interrupted here."""
        path = self.folder / _FILE
        try:
            found = json.loads(path.read_bytes())
            return State(**{one.name: found[one.name] for one in fields(State)})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise IndexingError(
                f"the checkpoint {path} cannot be read: begin anew with --discard"
            ) from error

    def truncate(self, position: int) -> None:
        """Drop the keys at and after a position."""
        with naming(self.keys), self.keys.open("ab") as file:
            there = file.tell()
            if there < position * KEY_BYTES:
                raise IndexingError(
                    f"{self.keys} is shorter than its checkpoint says: begin anew with --discard"
                )
            file.truncate(position * KEY_BYTES)

    def write(self, state: State, keys: bytes = b"") -> None:
        """Make a state the last one, together with the keys of the records that it adds."""
        with self._writing:
            if keys:
                with naming(self.keys), self.keys.open("r+b") as file:
                    # Not just behind the last ones: these may be the second try to write them.
                    file.seek(state.position * KEY_BYTES - len(keys))
                    file.write(keys)
                    file.flush()
                    os.fsync(file.fileno())
            write_atomically(self.folder / _FILE, json.dumps(asdict(state)).encode())

    def clear(self) -> None:
        """Forget the load: it has ended, or is not wanted any more."""
        (self.folder / _FILE).unlink(missing_ok=True)
        self.keys.unlink(missing_ok=True)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Name what differs between the identities of two loads."""
    return [
        f"{name} was {before.get(name)!r} and is now {now.get(name)!r}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name a file in the errors of writing it, which otherwise say that *a* disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file in one step that a kill or a loss of power does not cut in two."""
    temporary = path.with_name(f"{path.name}.tmp")
    with naming(temporary), temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    with contextlib.suppress(OSError):  # not every system lets a folder be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _lock_file(file: IO[bytes]) -> None:
    try:
        import fcntl
    except ImportError:  # Windows keeps no lock here
        return
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
