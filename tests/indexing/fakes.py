"""An index in memory, behind the part of the API that loading uses."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

from opensearchpy import Connection, OpenSearch
from opensearchpy.exceptions import ConnectionError as NoConnectionError


def answer_error(status: int, kind: str) -> dict[str, Any]:
    """The answer for one document that is refused."""
    return {"status": status, "error": {"type": kind, "reason": "why"}}


class FakeIndex(Connection):
    """One index named `i`, with external versions as the engine has them.

    `refuse` is asked about every document, by how often it was sent before: a status, 0 for a
    connection that breaks, or the whole answer. `refuse_body` is asked about every request.
    `answers` are what the next bulk requests get instead of being carried out.
    """

    def __init__(self, refuse: Callable[[str, int], Any], **options: Any) -> None:
        super().__init__(**options)
        self.refuse = refuse
        self.refuse_body: Callable[[bytes], int | None] = lambda body: None
        self.answers: list[Exception | str] = []
        self.documents: dict[str, Any] = {}
        self.versions: dict[str, int] = {}
        self.sent: dict[str, int] = {}
        self.requests: list[int] = []  # their documents
        self.refused = 0  # requests, by a test's own count
        self.refreshed = 0
        self.missing = False
        self._lock = threading.Lock()

    def perform_request(  # type: ignore[override]
        self,
        method: str,
        url: str,
        params: Mapping[str, Any] | None = None,
        body: bytes | None = None,
        timeout: float | None = None,
        ignore: Any = (),
        headers: Any = None,
    ) -> tuple[int, dict[str, str], str]:
        with self._lock:
            answer = self._answer(url, body or b"")
        if not isinstance(answer, str):
            answer = json.dumps(answer)
        return 200, {"content-type": "application/json"}, answer

    def _answer(self, url: str, body: bytes) -> Any:
        if self.missing:
            self._raise_error(404, '{"error": "no such index"}')
        if url == "/i/_search":
            return {"hits": {"total": {"value": len(self.documents) if self.refreshed else 0}}}
        if url == "/i/_refresh":
            self.refreshed += 1
            return {}
        if url == "/i/_mget":
            return {"docs": [self._get(key) for key in json.loads(body)["ids"]]}
        assert url == "/i/_bulk"
        if self.answers:
            answer = self.answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer
        status = self.refuse_body(body)
        if status is not None:
            self._raise_error(status, '{"error": {"type": "parse_exception", "reason": "why"}}')
        lines = [json.loads(line) for line in body.rstrip(b"\n").split(b"\n")]
        pairs = list(zip(lines[::2], lines[1::2], strict=True))
        self.requests.append(len(pairs))
        return {"items": [{"index": self._index(h["index"], d)} for h, d in pairs]}

    def _get(self, key: str) -> dict[str, Any]:
        if key not in self.documents:
            return {"_id": key, "found": False}
        return {
            "_id": key,
            "found": True,
            "_version": self.versions[key],
            "_source": self.documents[key],
        }

    def _index(self, header: dict[str, Any], source: Any) -> dict[str, Any]:
        key = header["_id"]
        refusal = self.refuse(key, self.sent.get(key, 0))
        self.sent[key] = self.sent.get(key, 0) + 1
        if refusal == 0:
            raise NoConnectionError("N/A", "reset", OSError("reset"))
        if isinstance(refusal, dict):
            return refusal
        if refusal >= 300:
            return answer_error(refusal, "some_exception")
        if self.versions.get(key, -1) > header["version"]:
            return answer_error(409, "version_conflict_engine_exception")
        result = "updated" if key in self.documents else "created"
        self.documents[key] = source
        self.versions[key] = header["version"]
        return {"status": refusal, "result": result}


def make(refuse: Callable[[str, int], Any] = lambda key, sent: 201) -> tuple[OpenSearch, FakeIndex]:
    """A client and the index that it speaks to."""
    client = OpenSearch(hosts=[{}], connection_class=FakeIndex, refuse=refuse, max_retries=0)
    return client, client.transport.connection_pool.connections[0]
