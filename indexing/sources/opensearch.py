"""The documents of another OpenSearch index, read from a point in time, sorted by id.

Sorting by id gives every reading the same order, so that a load can go on later, and a point in
time that has expired can be replaced by a new one. It costs the cluster that is read some heap
(field data of all ids); `…/INDEX?sort=FIELD` sorts by a field instead. Of equal values the order
then is that of one point in time only, so that a load goes on later where the field is unique.
API: https://docs.opensearch.org/latest/search-plugins/searching-data/point-in-time/
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from opensearchpy import OpenSearch
from opensearchpy.exceptions import NotFoundError, OpenSearchException

from indexing.records import Document, Failure
from indexing.sources.fields import FieldMap, document
from indexing.sources.files import Object

Connect = Callable[[str], OpenSearch]
_KEEP_ALIVE = "15m"
_PAGE = 200  # documents held in memory together
_ID = "_id"


class IndexReader:
    """An index by its address, `https://USER:PASSWORD@HOST:9200/INDEX`, and how far it was read.

    Raises `ValueError` for an address without an index, and the errors of connecting.
    """

    def __init__(self, location: str, connect: Connect | None = None, page: int = _PAGE) -> None:
        parts = urlsplit(location)
        prefix, _, name = parts.path.rstrip("/").rpartition("/")
        self.index = unquote(name)
        if not self.index or self.index.startswith("_"):
            raise ValueError("the address names no index: write http://HOST:9200/INDEX")
        self.sort = parse_qs(parts.query).get("sort", [_ID])[0]
        host = parts.netloc.rpartition("@")[2]
        # Without user and password: it goes into messages and files.
        self.name = f"{parts.scheme}://{host}{parts.path.rstrip('/')}"
        address = f"{parts.scheme}://{parts.netloc}{prefix}"
        self._client = connect(address) if connect else OpenSearch([address], timeout=60)
        self._page = page
        self._read = 0
        self._total = 0

    def fraction(self) -> float | None:
        """How many of the documents have been read, from 0 to 1."""
        return min(1.0, self._read / self._total) if self._total else None

    def indices(self) -> frozenset[tuple[str, str]]:
        """Give the indices that are read, each as its cluster's uuid and its own name.

        That tells an index behind an alias or a pattern, and needs no right but to read it.
        """
        found = self._client.indices.resolve_index(name=self.index)
        names = {one["name"] for one in found["indices"]}
        names.update(name for alias in found["aliases"] for name in alias["indices"])
        names.update(name for one in found["data_streams"] for name in one["backing_indices"])
        cluster = self._client.info()["cluster_uuid"]
        return frozenset((cluster, name) for name in names)

    def documents(self, fields: FieldMap | None = None) -> Iterator[Document | Failure]:
        """Yield a document for every one of the index, and close the connection at the end."""
        fields = fields or FieldMap()
        with contextlib.closing(self._client):
            try:
                for hit in self._hits():
                    self._read += 1
                    yield _document(hit, fields)
            except OpenSearchException as error:
                yield self._cut(f"the rest of the index cannot be read: {_sentence(error)}")
            else:
                if self._read != self._total:
                    yield self._cut(
                        f"{self._read:,} documents were read where the index holds"
                        f" {self._total:,}: see that nothing writes to it, and read it again, or"
                        " in another order (?sort=FIELD)"
                    )

    def _cut(self, reason: str) -> Failure:
        return Failure(f"{self.name}:{self._read + 1}", reason, cut=True)

    def _hits(self) -> Iterator[dict[str, Any]]:
        # A page goes on behind the last one's sort values, so no two documents may share them
        # all: indices behind an alias share ids, and a shard's number is its index's own.
        rest = ("_index",) if self.sort == _ID else ("_index", "_shard_doc")
        body: dict[str, Any] = {
            "size": self._page,
            "query": {"match_all": {}},
            "sort": [{key: "asc"} for key in (self.sort, *rest)],
            "track_total_hits": True,
        }
        point = self._open()
        try:
            while True:
                body["pit"] = {"id": point, "keep_alive": _KEEP_ALIVE}
                try:
                    # A shard that does not answer must not look like one without documents.
                    page = self._client.search(
                        body=body,
                        params={
                            "allow_partial_search_results": "false",
                            "search_pipeline": "_none",
                        },
                    )
                except NotFoundError:
                    if not self._read:
                        raise
                    point = self._open()  # it expired meanwhile
                    continue
                point = page.get("pit_id", point)
                self._total = page["hits"]["total"]["value"]
                if not page["hits"]["hits"]:
                    return
                yield from page["hits"]["hits"]
                body["search_after"] = page["hits"]["hits"][-1]["sort"]
        finally:
            with contextlib.suppress(OpenSearchException):  # it expires by itself as well
                self._client.delete_pit(body={"pit_id": [point]})

    def _open(self) -> str:
        made = self._client.create_pit(
            index=self.index,
            params={"keep_alive": _KEEP_ALIVE, "allow_partial_pit_creation": "false"},
        )
        return str(made["pit_id"])


def _document(hit: dict[str, Any], fields: FieldMap) -> Document | Failure:
    source = hit.get("_source")
    location = f"document {hit['_id'][:80]!r}"
    if not isinstance(source, dict):
        return Failure(location, "the index keeps no _source, so it cannot be read")
    if fields.id and fields.id != _ID:
        return document(Object(location, source), fields, id_needed=True)
    own = {name: value for name, value in source.items() if name != _ID}
    return document(Object(location, {**own, _ID: hit["_id"]}), fields._replace(id=_ID))


def _sentence(error: OpenSearchException) -> str:
    reason = getattr(error, "error", None) or str(error)
    info = getattr(error, "info", None)
    if isinstance(info, dict) and isinstance(info.get("error"), dict):
        causes = info["error"].get("root_cause") or [info["error"]]
        reason = f"{reason}: {causes[0].get('reason')}"
    return str(reason)
