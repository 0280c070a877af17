"""Loading records into an index: every record is indexed, or counted and named."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, cast

from opensearchpy import OpenSearch
from opensearchpy.exceptions import ConnectionError as NoConnectionError
from opensearchpy.exceptions import NotFoundError, TransportError
from opensearchpy.helpers import streaming_bulk

from indexing.mapping import DEFAULT_ANALYZER, index_body
from indexing.records import Document, Failure, Record, Skip, Summary

_log = logging.getLogger(__name__)

CHUNK_DOCUMENTS = 1000
CHUNK_BYTES = 5 * 1024 * 1024
# The engine refuses requests over 100 MB (http.max_content_length) by closing the connection.
MAX_DOCUMENT_BYTES = 64 * 1024 * 1024
# One longer id makes the engine refuse the whole request it is in.
MAX_ID_BYTES = 512
_NAMED = 20  # failures and skips that a summary names
_SECONDS = 120.0  # for one request of the bulk API


class IndexingError(OSError):
    """The load cannot go on, or cannot begin; the text names the remedy."""


class Action(NamedTuple):
    """A document in the form of the bulk API: what to do, and the source as JSON."""

    header: dict[str, dict[str, str]]
    source: str


def prepare_index(
    client: OpenSearch,
    index: str,
    *,
    recreate: bool = False,
    analyzer: str = DEFAULT_ANALYZER,
    shards: int = 1,
    replicas: int = 0,
) -> bool:
    """Make sure that the index is there; tell whether it is new.

    With `recreate` an existing index is deleted first, and its default search pipeline carried
    over: searches must not lose their reranking by a reload. Raises `IndexingError` if the name
    is that of an alias, and opensearchpy's exceptions.
    """
    carried: dict[str, Any] = {}
    if client.indices.exists(index=index):
        if not recreate:
            return False
        if client.indices.exists_alias(name=index):
            raise IndexingError(
                f"{index} is an alias, which --recreate would not replace: name the index itself"
            )
        name = "index.search.default_pipeline"
        settings = client.indices.get_settings(index=index, flat_settings=True)[index]["settings"]
        carried = {name: settings[name]} if name in settings else {}
        client.indices.delete(index=index)
    client.indices.create(index=index, body=index_body(analyzer, shards, replicas, carried))
    return True


def load(
    client: OpenSearch,
    index: str,
    records: Iterable[Record],
    *,
    fresh: bool = False,
    on_progress: Callable[[int], None] | None = None,
    chunk_documents: int = CHUNK_DOCUMENTS,
    chunk_bytes: int = CHUNK_BYTES,
) -> Summary:
    """Load records into an existing index; documents replace those of the same id.

    `fresh` says that the index was made for this load, so that its refreshing is switched on
    when it ends, well or not. `on_progress` is called with the number of records done with.
    Documents that the cluster has no room for right now are sent again, with growing pauses.
    Raises `IndexingError` if the cluster stops answering.
    """
    started = time.monotonic()
    counts: Counter[str] = Counter()
    failures: list[Failure] = []
    skips: list[Skip] = []

    def note(record: Failure | Skip) -> None:
        kind = "failed" if isinstance(record, Failure) else "skipped"
        counts[kind] += 1
        _log.log(
            logging.INFO if kind == "failed" else logging.DEBUG,
            "%s %s: %s",
            kind,
            record.location,
            record.reason,
        )
        if isinstance(record, Failure) and len(failures) < _NAMED:
            failures.append(record)
        elif isinstance(record, Skip) and len(skips) < _NAMED:
            skips.append(record)

    def actions() -> Iterator[Action]:
        for record in records:
            counts["read"] += 1
            prepared = prepare(record) if isinstance(record, Document) else record
            if isinstance(prepared, Action):
                yield prepared
            else:
                note(prepared)

    before = count(client, index)
    try:
        # parallel_bulk would be the faster one, but never sends a rejected document again.
        for ok, item in streaming_bulk(
            client,
            actions(),
            index=index,
            chunk_size=chunk_documents,
            max_chunk_bytes=chunk_bytes,
            expand_action_callback=tuple,  # they are serialized already
            raise_on_error=False,
            raise_on_exception=False,
            max_retries=6,  # after 1, 2, 4, 8, 16 and 30 s
            initial_backoff=1,
            max_backoff=30,
            request_timeout=_SECONDS,
        ):
            (outcome,) = item.values()
            if ok:
                counts["updated" if outcome.get("result") == "updated" else "created"] += 1
            elif isinstance(outcome.get("exception"), NoConnectionError):
                raise IndexingError(
                    f"the cluster stopped answering after {counts['created'] + counts['updated']}"
                    " documents: see to it and run the same load again,"
                    " documents are replaced by id"
                )
            else:
                note(Failure(f"document {outcome.get('_id', '')!r}", _reason(outcome)))
            if on_progress:
                on_progress(counts.total() - counts["read"])
    finally:
        if fresh:
            _refresh_again(client, index)
    client.indices.refresh(index=index)
    documents = count(client, index)
    # Where an answer was lost, what its request created counts as updated the second time.
    created_at_least = before + counts["created"]
    return Summary(
        read=counts["read"],
        created=counts["created"],
        updated=counts["updated"],
        failed=counts["failed"],
        skipped=counts["skipped"],
        seconds=time.monotonic() - started,
        documents=documents,
        verified=created_at_least <= documents <= created_at_least + counts["updated"],
        failures=tuple(failures),
        skips=tuple(skips),
    )


def prepare(document: Document) -> Action | Failure | Skip:
    """Put a document into the form of the bulk API, or say why it cannot be indexed."""
    location = f"document {document.id[:80]!r}"
    if not document.title.strip() and not document.passage.strip():
        return Skip(location, "neither title nor passage has text")
    fields: dict[str, object] = {"title": document.title, "passage": document.passage}
    if document.metadata:
        fields["metadata"] = dict(document.metadata)
    try:
        source = json.dumps(fields, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        size = len(source.encode())
        id_size = len(document.id.encode())
    except UnicodeEncodeError:
        return Failure(location, "half a surrogate pair in it, which no UTF-8 can hold")
    except (TypeError, ValueError, RecursionError) as error:
        return Failure(location, f"not to be written as JSON: {error}")
    if not 0 < id_size <= MAX_ID_BYTES:
        return Failure(location, f"an id has 1 to {MAX_ID_BYTES} bytes, not {id_size}")
    if size > MAX_DOCUMENT_BYTES:
        return Failure(location, f"{size} bytes long, more than {MAX_DOCUMENT_BYTES}")
    return Action({"index": {"_id": document.id}}, source)


def count(client: OpenSearch, index: str) -> int:
    """Give the number of documents that searches of the index see.

    Raises `IndexingError` if there is no such index.
    """
    try:
        return cast("int", client.count(index=index)["count"])
    except NotFoundError as error:
        raise IndexingError(f"there is no index {index}: create it first") from error


def _refresh_again(client: OpenSearch, index: str) -> None:
    try:
        client.indices.put_settings(index=index, body={"index.refresh_interval": None})
    except TransportError as error:
        # It happens after another failure: that one must reach the caller.
        _log.warning(
            "index %s does not refresh: set index.refresh_interval to null (%s)", index, error
        )


def _reason(outcome: dict[str, Any]) -> str:
    error = outcome.get("error") or f"status {outcome.get('status')}"
    if not isinstance(error, dict):
        return str(error)
    cause = error.get("caused_by") or {}
    parts = [error.get("type"), error.get("reason"), cause.get("reason")]
    return ": ".join(str(part) for part in parts if part)
