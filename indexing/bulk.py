"""Bulk requests: documents as the lines of one, how large it is, and what is sent again.

Every document that goes in here comes out acknowledged or with the reason why it cannot be
indexed; what is the cluster's trouble and not the document's is tried again until patience ends.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from opensearchpy import OpenSearch
from opensearchpy.exceptions import ConnectionError as NoConnectionError
from opensearchpy.exceptions import ConnectionTimeout, SerializationError, TransportError

from indexing.records import Document, Failure, Skip

_log = logging.getLogger(__name__)

# The engine refuses requests over 100 MB (http.max_content_length) by closing the connection.
MAX_DOCUMENT_BYTES = 64 * 1024 * 1024
# One longer id makes the engine refuse the whole request it is in.
MAX_ID_BYTES = 512
KEY_BYTES = 8
NO_KEY = bytes(KEY_BYTES)

_SHOWN = 500  # characters of what the cluster says
_KIB, _MIB = 1024, 1024 * 1024
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0  # seconds
# An answer of this status for one document can be the document's own fault (an analyser that
# fails on it), so it is not waited for as long as a cluster's trouble.
_TRIES_AFTER_500 = 5
# What is wrong with the cluster at the moment, whatever status it gives that.
_PASSING = frozenset(
    {
        "circuit_breaking_exception",
        "cluster_block_exception",
        "cluster_manager_not_discovered_exception",
        "es_rejected_execution_exception",
        "master_not_discovered_exception",
        "no_shard_available_action_exception",
        "node_closed_exception",
        "node_disconnected_exception",
        "node_not_connected_exception",
        "process_cluster_event_timeout_exception",
        "receive_timeout_transport_exception",
        "rejected_execution_exception",
        "shard_not_found_exception",
        "timeout_exception",
        "unavailable_shards_exception",
    }
)
# What a load needs of an answer; the rest would be several times as long.
_ANSWER = "errors,items.index.result,items.index.status,items.index.error"

_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


class IndexingError(OSError):
    """The load cannot go on, or cannot begin; the text names the remedy."""


class Stopped(Exception):  # noqa: N818 - not an error: somebody asked for it
    """The load was told to stop while a request waited for its next try."""


class Action(NamedTuple):
    """A document in the form of the bulk API."""

    position: int  # of its record in the source, from 0
    id: str
    key: bytes  # `KEY_BYTES` that stand for the id; never all zero
    lines: bytes  # what to do and the source, each with its line end
    document: Document | None = None  # kept where it is still to be encoded


class Outcome(NamedTuple):
    """What became of some documents, each in exactly one of the three."""

    created: list[Action]
    replaced: list[Action]  # there was one of that id, or there is a later one of the source
    failed: list[Action]


Rejection: TypeAlias = tuple[Action, str]


def prepare(
    document: Document, position: int = 0, version: int = 0, *, keep: bool = False
) -> Action | Failure | Skip:
    """Put a document into the form of the bulk API, or say why it cannot be indexed.

    `version` is the load's: with the position it becomes the document's external version, so
    that of several documents with one id the source's last one stays, whatever the order in
    which requests arrive, and that sending one again changes nothing. `keep` leaves the document
    in the action.
    """
    if not (document.title.strip() or document.passage.strip()):
        return Skip(_location(document), "neither title nor passage has text")
    try:
        # One that is kept gets its vector later, instead of one that it may have.
        fields = (document._replace(vector=()) if keep else document).fields()
        source = _json(fields).encode()
        id_ = document.id.encode()
    except UnicodeEncodeError:
        return Failure(_location(document), "half a surrogate pair in it, which no UTF-8 can hold")
    except RecursionError:
        return Failure(_location(document), "nested too deeply to be written: flatten its metadata")
    except (TypeError, ValueError) as error:
        return Failure(_location(document), f"not to be written as JSON: {error}")
    if not 0 < len(id_) <= MAX_ID_BYTES:
        why = f"an id has 1 to {MAX_ID_BYTES} bytes, not {len(id_)}"
        return Failure(_location(document), why)
    if len(source) > MAX_DOCUMENT_BYTES:
        why = f"{len(source)} bytes long, more than {MAX_DOCUMENT_BYTES}"
        return Failure(_location(document), why)
    header = b'{"index":{"_id":%b,"version":%d,"version_type":"external_gte"}}\n' % (
        _json(document.id).encode(),
        version + position,
    )
    return Action(
        position, document.id, key_of(id_), b"%b%b\n" % (header, source), document if keep else None
    )


def key_of(id_: bytes) -> bytes:
    """Give the bytes that stand for an id where all ids of a corpus have to be remembered."""
    key = hashlib.blake2b(id_, digest_size=KEY_BYTES).digest()
    return key if key != NO_KEY else b"\1" * KEY_BYTES


def source_of(action: Action) -> dict[str, Any]:
    """Give the fields of an action's document as they are sent."""
    source: dict[str, Any] = json.loads(action.lines[action.lines.index(b"\n") :])
    return source


class Pace:
    """How large a request should be, learned from how the last ones were answered.

    Sizes are in bytes. A request that is answered in less than half of `seconds` lets the next
    ones grow; one that takes twice as long, or is refused, makes them shrink.
    """

    def __init__(
        self, start: int = _MIB, least: int = 64 * _KIB, most: int = 8 * _MIB, seconds: float = 1.0
    ) -> None:
        if not 0 < least <= most:
            raise ValueError(f"no request size lies between {least} and {most} bytes")
        self._least, self._most, self._seconds = least, most, seconds
        self._target = min(max(start, least), most)
        self._lock = threading.Lock()

    @property
    def target(self) -> int:
        """How large the next request should be."""
        return self._target

    def answered(self, size: int, seconds: float) -> None:
        """Learn from an answer."""
        with self._lock:
            if seconds > 2 * self._seconds:
                self._target = max(self._least, min(self._target, size * 3 // 4))
            elif seconds < self._seconds / 2 and size >= self._target // 2:
                self._target = min(self._most, self._target * 5 // 4)

    def refused(self, size: int) -> None:
        """Learn that the cluster had no room for a request now, or did not answer it."""
        with self._lock:
            self._target = max(self._least, min(self._target, size // 2))

    def too_large(self, size: int) -> None:
        """Learn that no request may ever be that large."""
        with self._lock:
            self._most = min(self._most, max(1, size // 2))
            self._least = min(self._least, self._most)
            self._target = min(self._target, self._most)


class Sender:
    """Sends documents to one index until all are acknowledged or refused for good.

    May be used by several threads. `stop` ends the waiting between tries. Nothing is tried for
    longer than `patience` seconds without a single document getting through.
    """

    def __init__(
        self,
        client: OpenSearch,
        index: str,
        *,
        version: int = 0,
        pace: Pace | None = None,
        stop: threading.Event | None = None,
        patience: float = 300.0,
        request_seconds: float = 120.0,
        rejected: Any = None,
        waiting: Any = None,
    ) -> None:
        """Take callbacks of two kinds.

        `rejected(action, reason)` is called with every document that cannot be indexed,
        `waiting(reason)` with what a request waits for, and with "" once it has been answered.
        """
        self.pace = pace or Pace()
        self._client, self._index, self._version = client, index, version
        self._stop = stop or threading.Event()
        self._patience, self._request_seconds = patience, request_seconds
        self._rejected = rejected or (lambda action, reason: None)
        self._waiting = waiting or (lambda reason: None)

    def send(self, actions: Sequence[Action]) -> Outcome:
        """Send documents; give what became of each.

        Raises `IndexingError` where patience ends or no document could ever get in, and
        `Stopped`.
        """
        outcome = Outcome([], [], [])
        todo = deque(self._pieces(actions))
        tries, deadline, waits = 0, time.monotonic() + self._patience, False
        errors_500: dict[int, int] = {}
        while todo:
            piece = todo.popleft()
            size = sum(len(action.lines) for action in piece)
            started = time.monotonic()
            try:
                answer = self._request(piece)
            except TransportError as error:
                trouble = self._trouble(error)
                if not trouble:
                    if len(piece) > 1:  # find out which of them it is
                        if error.status_code == 413:
                            self.pace.too_large(size)
                        middle = len(piece) // 2
                        todo.extendleft((piece[middle:], piece[:middle]))
                    else:
                        self._reject(outcome, piece[0], _refusal(error, size))
                    continue
                again = list(piece)
            except SerializationError:
                trouble, again = "an answer that is not the bulk API's", list(piece)
            else:
                again, trouble = self._sort(piece, answer, outcome, errors_500)
                if len(again) < len(piece):
                    tries, deadline = 0, time.monotonic() + self._patience
            if not again:
                if waits:
                    self._waiting("")
                    waits = False
                self.pace.answered(size, time.monotonic() - started)
                continue
            self.pace.refused(size)
            if time.monotonic() >= deadline:
                raise IndexingError(self._given_up(trouble, again))
            todo.extendleft(reversed(self._pieces(again)))
            self._pause(tries, trouble, deadline)
            tries, waits = tries + 1, True
        return outcome

    def _request(self, piece: Sequence[Action]) -> list[dict[str, Any]] | None:
        """Send one request; give the documents' answers, or None where all were created."""
        body = b"".join([action.lines for action in piece])
        params = {"filter_path": _ANSWER, "request_timeout": self._request_seconds}
        try:
            answer = self._client.bulk(body=body, index=self._index, params=params)
        except AttributeError as error:  # opensearch-py's own, of an error that is no JSON object
            raise SerializationError("an error that is not OpenSearch's") from error
        items = answer.get("items") if isinstance(answer, dict) else None
        if not isinstance(items, list) or len(items) != len(piece):
            raise SerializationError("not one answer for each document")
        try:
            found: list[dict[str, Any]] = [item["index"] for item in items]
            if all(one.get("result") == "created" for one in found):
                return None
        except (KeyError, TypeError, AttributeError) as error:
            raise SerializationError("not the answers of the bulk API") from error
        return found

    def _sort(
        self,
        piece: Sequence[Action],
        answers: list[dict[str, Any]] | None,
        outcome: Outcome,
        errors_500: dict[int, int],
    ) -> tuple[list[Action], str]:
        """Put each document where its answer says; give those to send again, and why."""
        if answers is None:
            outcome.created.extend(piece)
            return [], ""
        again: list[Action] = []
        conflicts: list[Action] = []
        trouble = ""
        for action, answer in zip(piece, answers, strict=True):
            result = answer.get("result")
            if result == "created":
                outcome.created.append(action)
                continue
            if result is not None:  # updated
                outcome.replaced.append(action)
                continue
            status, error = answer.get("status"), answer.get("error")
            kind = error.get("type") if isinstance(error, dict) else None
            if kind == "index_not_found_exception" or kind == "index_closed_exception":
                raise IndexingError(f"index {self._index} is gone or closed: {reason(answer)}")
            if status == 409:
                conflicts.append(action)
            elif kind in _PASSING or status in (429, 502, 503, 504):
                again.append(action)
                trouble = reason(answer)
            elif status == 500 and errors_500.get(action.position, 0) < _TRIES_AFTER_500:
                errors_500[action.position] = errors_500.get(action.position, 0) + 1
                again.append(action)
                trouble = reason(answer)
            else:
                self._reject(outcome, action, reason(answer))
        if conflicts:
            again += self._settle(conflicts, outcome)
        return again, trouble

    def _settle(self, conflicts: Sequence[Action], outcome: Outcome) -> list[Action]:
        """Tell documents that the source itself replaces from those that others have written.

        Gives those about which the cluster would not say it, to be sent again.
        """
        try:
            found = self._client.mget(
                body={"ids": [action.id for action in conflicts]},
                index=self._index,
                params={"_source": "false", "request_timeout": self._request_seconds},
            )["docs"]
        except (TransportError, SerializationError):
            return list(conflicts)
        again: list[Action] = []
        for action, document in zip(conflicts, found, strict=True):
            there = document.get("_version", -1)
            if "error" in document:
                again.append(action)
            elif self._version + action.position <= there < self._version + VERSIONS:
                outcome.replaced.append(action)
            else:
                whose = f"version {there}" if document.get("found") else "deleted"
                self._reject(
                    outcome,
                    action,
                    f"something else wrote this document after the load began ({whose})",
                )
        return again

    def _reject(self, outcome: Outcome, action: Action, why: str) -> None:
        self._rejected(action, why)
        outcome.failed.append(action)

    def _pieces(self, actions: Sequence[Action]) -> list[Sequence[Action]]:
        """Split documents into requests of about the size that is right now."""
        target = self.pace.target
        pieces: list[Sequence[Action]] = []
        start = size = 0
        for number, action in enumerate(actions):
            if size and size + len(action.lines) > target * 3 // 2:
                pieces.append(actions[start:number])
                start, size = number, 0
            size += len(action.lines)
        if size:
            pieces.append(actions[start:])
        return pieces

    def _trouble(self, error: TransportError) -> str:
        """Say what is the matter with the cluster; "" where it is the request that is wrong.

        Raises `IndexingError` where waiting will not help.
        """
        if isinstance(error, ConnectionTimeout):
            return f"no answer within {self._request_seconds:.0f} s"
        if isinstance(error, NoConnectionError):
            return "no connection"
        status = error.status_code
        # What stands before the cluster may say it in JSON of its own.
        kind = error.error if isinstance(error.error, str) else json.dumps(error.error)
        if status in (401, 403) and kind not in _PASSING:
            raise IndexingError(
                f"this user may not write to index {self._index} (status {status}): give it the"
                " right to, and run the same load again, it goes on where it stopped"
            ) from error
        if kind in _PASSING or status == 429 or (isinstance(status, int) and status >= 500):
            return f"status {status}" + (f", {kind[:_SHOWN]}" if kind else "")
        if status in (404, 405):
            raise IndexingError(
                f"there is no index {self._index} (status {status}): it was deleted, or what"
                " answers is not the cluster"
            ) from error
        return ""

    def _pause(self, tries: int, trouble: str, deadline: float) -> None:
        """Wait before the next try: twice as long each time, and never all at once."""
        longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(tries, 10))
        # Jitter keeps the workers' next tries apart; nothing secret is drawn.
        seconds = random.uniform(longest / 2, longest)  # noqa: S311
        seconds = min(seconds, max(0.05, deadline - time.monotonic()))
        self._waiting(f"{trouble}; next try in {seconds:.1f} s")
        _log.info("%s: %s; next try in %.1f s", self._index, trouble, seconds)
        if self._stop.wait(seconds):
            raise Stopped

    def _given_up(self, trouble: str, again: Sequence[Action]) -> str:
        what = f"document {again[0].id[:80]!r}" if len(again) == 1 else f"{len(again)} documents"
        return (
            f"the cluster has not taken {what} for {self._patience:.0f} s ({trouble}): see to it"
            " and run the same load again, it goes on where it stopped"
        )


# External versions of one load: more than any source has records.
VERSIONS = 1 << 32
_EPOCH_2020 = 1_577_836_800


def version_now() -> int:
    """Give the version of a load that begins now: above all of every load before.

    A document's external version is this plus its position, as in other loaders that write a
    log's offsets (https://docs.confluent.io/kafka-connectors/elasticsearch: external versioning).
    Seconds since 2020 in the upper half last until 2088.
    """
    return int(time.time() - _EPOCH_2020) * VERSIONS


def reason(answer: dict[str, Any]) -> str:
    """Give an answer's reasons, the outermost first."""
    error = answer.get("error") or f"status {answer.get('status')}"
    if not isinstance(error, dict):
        return str(error)
    parts = [error.get("type"), error.get("reason")]
    cause = error.get("caused_by")
    while isinstance(cause, dict) and len(parts) < 8:
        parts.append(cause.get("reason"))
        cause = cause.get("caused_by")
    return ": ".join(str(part) for part in dict.fromkeys(parts) if part)


def _location(document: Document) -> str:
    return f"document {document.id[:80]!r}"


def _refusal(error: TransportError, size: int) -> str:
    if error.status_code == 413:
        return (
            f"{size} bytes are more than the cluster takes in one request (http.max_content_length)"
        )
    info = error.info if isinstance(error.info, dict) else {}
    if isinstance(info.get("error"), dict):
        return reason(info)
    return f"status {error.status_code}: {str(error.error)[:_SHOWN]}"
