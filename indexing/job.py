"""A load from the source to what searches see, which may be killed at any moment and goes on.

Each step can be done twice, and what it needs is on the disk before it begins: an index is named
in the checkpoint before it is made, marked before its settings change, and an alias is switched
only to an index that has been compared with what was sent to it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from opensearchpy import OpenSearch
from opensearchpy.exceptions import TransportError

from indexing import deadletter, target
from indexing.bulk import IndexingError, version_now
from indexing.checkpoint import Checkpoint, State, differences
from indexing.load import Encode, Options, Progress, Summary, load
from indexing.mapping import VECTOR, VECTORS_OF
from indexing.records import Failure, Record

if TYPE_CHECKING:
    from indexing.sources import Source

_log = logging.getLogger(__name__)

_LETTERS = "dead-letters.jsonl"


@dataclass(frozen=True)
class Destination:
    """Where a load goes; raises `ValueError` where that cannot be.

    Attributes:
        index: the index to load into, made if it is not there; or
        alias: the alias to switch to a new index, once that is loaded.
        body: what a new index is created with.
        recreate: delete the index first, once the source has given a record.
        delete_old: delete what the alias named before.
        tune: give an existing index settings fit for loading meanwhile; a new one always has.
        most_failures: the share of the records that may fail for the alias still to be switched;
            where a failure hides others, as that of a file cut short, only 1 allows it.
    """

    index: str | None = None
    alias: str | None = None
    body: Mapping[str, Any] | None = None
    recreate: bool = False
    delete_old: bool = False
    tune: bool = False
    most_failures: float = 0.01

    def __post_init__(self) -> None:
        if (self.index is None) == (self.alias is None):
            raise ValueError("name either an index or an alias to load into")
        if self.alias is not None and (self.recreate or self.tune):
            raise ValueError("an alias is switched to a new index: --recreate has no meaning there")
        if self.index is not None and self.delete_old:
            raise ValueError("--delete-old belongs to --alias: without it nothing is replaced")

    @property
    def name(self) -> str:
        """What searches name."""
        return self.index or self.alias or ""


class Result(NamedTuple):
    """What a job did."""

    summary: Summary
    resumed_at: int | None  # the position; None where the load began anew
    existed: bool  # the index, before the load
    switched: bool  # the alias, to the index
    old: tuple[str, ...]  # indices that the alias named before
    leftovers: tuple[str, ...]  # half loaded indices of other loads of the alias


def state_folder() -> Path:
    """Give the folder in which loads keep where they are (`XDG_STATE_HOME`)."""
    home = os.environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path.home() / ".local" / "state") / "titlecast" / "loads"


def job_folder(client: OpenSearch, name: str, root: Path | None = None) -> Path:
    """Give the folder of loads into an index or alias of a cluster."""
    cluster = client.info().get("cluster_uuid", "")
    digest = hashlib.sha256(f"{cluster}\0{name}".encode()).hexdigest()[:8]
    return (root or state_folder()) / f"{re.sub(r'[^a-zA-Z0-9._-]', '_', name)[:80]}-{digest}"


def run(
    client: OpenSearch,
    records: Iterable[Record],
    identity: Mapping[str, Any],
    destination: Destination,
    *,
    source: Source | None = None,
    folder: Path | None = None,
    discard: bool = False,
    dead_letters: Path | None = None,
    options: Options | None = None,
    encode: Encode | None = None,
    on_start: Callable[[str, int | None, bool], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Result:
    """Load records, or go on with the interrupted load of them; see the modules for each step.

    `identity` is what makes two sources the same, as JSON. `source` is what the records are read
    from: what is loaded is never deleted or renamed for its own load. `folder` is the load's own
    (default: `job_folder`). With `discard` an interrupted load is forgotten, and its half loaded
    index deleted. `on_start` is told the index, the position to go on at, and whether it existed.
    Raises `IndexingError`, what reading the source raises, and opensearchpy's exceptions.
    """
    folder = folder or job_folder(client, destination.name)
    letters = (dead_letters or folder / _LETTERS).absolute()
    deadletter.check(letters, source.path if source else None)
    identity = {
        **identity,
        "destination": destination.alias or destination.index,
        "alias": destination.alias is not None,
        "body": _digest(destination.body),
        "dead_letters": str(letters),
    }
    with ExitStack() as stack:
        checkpoint = stack.enter_context(Checkpoint(folder))
        state = None if discard else checkpoint.read()
        if discard:
            _discard(client, checkpoint, destination)
        resumed_at = None
        if state is not None and state.uuid:
            resumed_at = state.position
        if state is not None and (found := differences(state.identity, _as_read(identity))):
            raise IndexingError(
                f"a load into {destination.name} was interrupted, and this is another one"
                f" ({'; '.join(found)}): run that one again to go on with it, or forget it with"
                " --discard"
            )
        if destination.recreate and resumed_at is None:
            records = _begun(client, records, source, destination.name)
        if state is None:
            state = _begin(client, checkpoint, identity, destination)
        _make(client, checkpoint, state, destination)
        if on_start is not None:
            on_start(state.index, resumed_at, not state.made)
        if not state.made and destination.tune:
            target.begin_loading(client, state.index)
        if destination.alias is None:
            # Searches see this index, however the load ends. A half loaded one behind no alias
            # is better left as it is for the load to go on.
            stack.callback(_end_loading, client, state.index)
        summary = load(
            client,
            state.index,
            records,
            checkpoint=checkpoint,
            dead_letters=letters,
            options=options,
            encode=encode,
            on_progress=on_progress,
        )
        switched, old = False, list[str]()
        if destination.alias is not None and summary.verified and summary.indexed:
            # How much is missing behind a cut, nobody knows: only "all may fail" allows it.
            share = destination.most_failures
            enough = share >= 1 or (not summary.cut and summary.failed <= share * summary.read)
            if enough:
                target.end_loading(client, state.index)
                old = _go_live(client, checkpoint, destination, state.index)
                switched = True
            else:  # kept: with --most-failures, the same load only has its last step to do
                return Result(summary, resumed_at, not state.made, False, (), ())
        checkpoint.clear()
        leftovers = (
            target.staged_leftovers(client, destination.alias, state.index)
            if destination.alias is not None
            else []
        )
        return Result(summary, resumed_at, not state.made, switched, tuple(old), tuple(leftovers))


def _begun(
    client: OpenSearch, records: Iterable[Record], source: Source | None, index: str
) -> Iterator[Record]:
    """Begin to read the source before the index is deleted; give its records, the first as well.

    Raises `IndexingError` where nothing can be read, or where the source is the index itself.
    """
    if source is not None and (client.info()["cluster_uuid"], index) in source.indices():
        raise IndexingError(
            f"{source.name} is read from index {index}, which --recreate would delete first: load"
            " into a new index with --alias instead, and --delete-old to delete this one at the end"
        )
    rest = iter(records)
    first = next(rest, None)
    if first is None or (isinstance(first, Failure) and first.cut):
        why = f"{first.location}: {first.reason}" if first else "it has no records"
        raise IndexingError(
            f"nothing can be read from the source, so index {index} was not deleted ({why}): see"
            " that it is the right one"
        )
    return itertools.chain([first], rest)


def _begin(
    client: OpenSearch,
    checkpoint: Checkpoint,
    identity: Mapping[str, Any],
    destination: Destination,
) -> State:
    """Decide what is loaded into, and write it down before anything is made."""
    checkpoint.clear()
    state = State(identity=dict(identity), version=version_now())
    if destination.alias is not None:
        alias = destination.alias
        named = target.indices_of(client, alias)
        target.alias_properties(client, alias)  # before all is loaded for an alias without
        if not named and target.uuid_of(client, alias) and not destination.delete_old:
            raise IndexingError(
                f"{alias} is an index, not an alias: with --delete-old it is replaced by one,"
                " or choose another name"
            )
        state.index = target.staged_name(alias)
        while target.uuid_of(client, state.index):
            state.index += "-2"
        state.made = True
        state.carried = target.carried_settings(client, alias)
    else:
        state.index = destination.name
        target.check_name(client, state.index)
        there = target.uuid_of(client, state.index)
        state.made = destination.recreate or not there
        if state.made:
            state.carried = target.carried_settings(client, state.index) if there else {}
        else:
            mappings = (destination.body or {}).get("mappings") or {}
            if VECTOR in mappings.get("properties", {}):
                model = mappings.get("_meta", {}).get(VECTORS_OF)
                target.check_vectors(client, state.index, model)
            state.uuid = there
    checkpoint.keys.write_bytes(b"")
    checkpoint.write(state)
    return state


def _make(
    client: OpenSearch, checkpoint: Checkpoint, state: State, destination: Destination
) -> None:
    """Make the index unless that is done, and see that it is still the same one."""
    there = target.uuid_of(client, state.index)
    if state.uuid:
        if there != state.uuid:
            raise IndexingError(
                f"index {state.index} was deleted since its load was interrupted: begin anew"
                " with --discard"
            )
        return
    if there:
        if not destination.recreate and not target.is_loading(client, state.index):
            raise IndexingError(
                f"index {state.index} was made by something else meanwhile: see what it is, and"
                " begin anew with --discard"
            )
        client.indices.delete(index=state.index)
    target.make_index(client, state.index, destination.body, state.carried)
    state.uuid = target.uuid_of(client, state.index)
    checkpoint.write(state)


def _go_live(
    client: OpenSearch, checkpoint: Checkpoint, destination: Destination, index: str
) -> list[str]:
    """Switch the alias to the index; give what it named before, which is deleted if wanted."""
    alias = destination.name
    state = checkpoint.read()
    if state is None:
        raise IndexingError(f"the checkpoint in {checkpoint.folder} is gone: see what removed it")
    named = [name for name in target.indices_of(client, alias) if name != index]
    if not named and not target.is_alias(client, alias) and target.uuid_of(client, alias):
        named = [alias]
    if named:  # else it may have been switched before a kill, which knew them
        state.old = named
        checkpoint.write(state)
    target.switch_alias(client, alias, index, replace=destination.delete_old)
    if destination.delete_old:
        for name in state.old:
            if name != alias:
                target.delete_unsearched(client, name)
    return state.old


def _discard(client: OpenSearch, checkpoint: Checkpoint, destination: Destination) -> None:
    """Forget an interrupted load, whatever it left behind."""
    try:
        state = checkpoint.read()
    except IndexingError:
        state = None
    if (
        state is not None
        and destination.alias is not None
        and state.made
        and state.index.startswith(f"{destination.alias}-")
        and state.index not in target.indices_of(client, destination.alias)
    ):
        client.indices.delete(index=state.index, ignore=[404])
    checkpoint.clear()


def _end_loading(client: OpenSearch, index: str) -> None:
    try:
        target.end_loading(client, index)
    except TransportError as error:
        # It may happen after another failure: that one must reach the caller.
        _log.warning(
            "index %s keeps the settings of a load (no refreshes): run the load again, or"
            " `titlecast index --restore --index %s` (%s)",
            index,
            index,
            error,
        )


def _digest(body: Mapping[str, Any] | None) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _as_read(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Give an identity as it comes back from a file."""
    found: dict[str, Any] = json.loads(json.dumps(identity))
    return found
