"""Cohere's rerank API, v1 and v2, so that its clients can ask Titlecast without a change.

https://docs.cohere.com/reference/rerank is what is followed here. A document is a string, which
is a passage without a title, or an object with `title` and `text`.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema

from plugin.sidecar.protocol import Count, Text, mend
from reranker.records import Hit, RerankResult

# Passages that `cascade` reads where titles can choose them.
PASSAGE_DEPTH = 20

_TITLE = "title"
_TEXTS = ("text", "passage")

# Far more than a document has; each is looked for in every document.
_MOST_FIELDS = 100

# Cohere has strings only; what else is flat comes back as it was.
_Value: TypeAlias = str | bool | int | float | None

_FLAT = {"additionalProperties": {"type": ["string", "boolean", "number", "null"]}}


def _read_document(document: object) -> str | dict[str, _Value]:
    """Check a document; the first fault is the only one that is told."""
    if isinstance(document, str):
        return mend(document)
    if not isinstance(document, dict):
        raise ValueError("give a string, or an object with `title` and `text`")
    return {mend(name): _read_value(name, value) for name, value in document.items()}


def _read_value(name: str, value: object) -> _Value:
    if isinstance(value, str):
        return mend(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"its field {name[:50]!r} is no finite number: send null there")
    if value is None or isinstance(value, (bool, int, float)):
        return value
    raise ValueError(
        f"its field {name[:50]!r} is a list or an object: send its text, or leave it out"
    )


# Read by hand: of a type that may be several, pydantic's errors would name its own inside.
Document: TypeAlias = Annotated[
    str | dict[str, _Value],
    PlainValidator(_read_document),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object", **_FLAT}]}),
]


class CohereRequest(BaseModel):
    """What both versions ask."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    # etr: titles only, passage: every passage, cascade: every title and the best passages.
    model: Literal["etr", "passage", "cascade"] = "cascade"
    query: Text
    documents: list[Document] = Field(min_length=1, fail_fast=True)
    top_n: Count | None = Field(default=None, ge=1)
    return_documents: bool = Field(default=False, strict=True)
    # Of title and text together. The models' own windows are a limit in any case.
    max_tokens_per_doc: Count | None = Field(default=None, ge=1)


class CohereV1Request(CohereRequest):
    """A search of version 1."""

    rank_fields: list[Text] | None = Field(
        default=None, min_length=1, max_length=_MOST_FIELDS, fail_fast=True
    )


class CohereResult(BaseModel):
    """One document's place; `index` is its position in the request."""

    index: int
    relevance_score: Annotated[float, Field(ge=0, le=1)]
    document: dict[str, Any] | None = None  # where `return_documents` asks for it


class CohereVersion(BaseModel):
    """The version of the API."""

    version: str


class CohereUnits(BaseModel):
    """What Cohere would bill: a search of up to 100 documents is one unit."""

    search_units: int


class CohereMeta(BaseModel):
    """About the answer."""

    api_version: CohereVersion
    billed_units: CohereUnits
    warnings: list[str] | None = None


class CohereResponse(BaseModel):
    """The best documents, best first."""

    id: str
    results: list[CohereResult]
    meta: CohereMeta


class CohereError(BaseModel):
    """The body of every 4xx and 5xx: one sentence with the remedy."""

    message: str


class Search(NamedTuple):
    """The search that a request asks for."""

    hits: list[Hit]
    passage_depth: int
    early_stop: bool
    most_tokens: int | None  # of each hit


def to_search(request: CohereRequest) -> Search:
    """Turn documents into hits.

    Raises ValueError where a document has no text where the ranking is told to look.
    """
    fields = request.rank_fields if isinstance(request, CohereV1Request) else None
    hits = [
        _hit(place, document, fields, titles_only=request.model == "etr")
        for place, document in enumerate(request.documents)
    ]
    # Without titles, nothing says which passages are worth reading, or when it is enough.
    untitled = not any(hit.title.strip() for hit in hits)
    every = request.model == "passage" or (request.model == "cascade" and untitled)
    depth = len(hits) if every else 0 if request.model == "etr" else PASSAGE_DEPTH
    return Search(hits, depth, not every, request.max_tokens_per_doc)


def to_response(
    request: CohereRequest, result: RerankResult, cut: int, version: Literal["1", "2"]
) -> CohereResponse:
    """Turn a result into the answer; relevance falls with the order, and never rises.

    `cut` is the number of documents that `max_tokens_per_doc` has shortened.
    """
    found = []
    for hit in result.hits[: request.top_n]:
        document = request.documents[hit.index]
        returned: dict[str, Any] = (
            {"text": document} if isinstance(document, str) else dict(document)
        )
        found.append(
            CohereResult(
                index=hit.index,
                relevance_score=_relevance(request.model, hit.score),
                document=returned if request.return_documents else None,
            )
        )
    warnings = [
        f"{stage.truncated} texts were longer than the {stage.name} model reads"
        for stage in result.stages
        if stage.truncated
    ]
    if result.query_cut:
        warnings.append("the query was longer than the models read")
    if cut:
        warnings.append(f"{cut} documents were cut to max_tokens_per_doc")
    return CohereResponse(
        id=str(uuid.uuid4()),
        results=found,
        meta=CohereMeta(
            api_version=CohereVersion(version=version),
            billed_units=CohereUnits(search_units=-(-len(request.documents) // 100)),
            warnings=warnings or None,
        ),
    )


def _relevance(model: str, score: float) -> float:
    """A score between 1 and 3, whose integer part is the stage, to one between 0 and 1."""
    if model == "etr":
        return min(max(score - 1, 0.0), 1.0)
    if model == "passage":  # a document without text stays below all others
        return min(max(score - 2, 0.0), 1.0)
    return min(max((score - 1) / 2, 0.0), 1.0)


def _hit(place: int, document: Document, fields: Sequence[str] | None, titles_only: bool) -> Hit:
    if isinstance(document, str):
        return Hit(str(place), document) if titles_only else Hit(str(place), "", document)
    if fields is None:
        fields = [_TITLE, next((name for name in _TEXTS if name in document), "")]
    texts = {name: document[name] for name in fields if name in document}
    if not texts:
        asked = " or ".join(name for name in fields if name)
        raise ValueError(
            f"documents[{place}] has none of the fields that are ranked: give it "
            f"{asked if asked != _TITLE else 'title, text'}"
        )
    strings = {}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise ValueError(f"documents[{place}].{name} is no string: give the text itself")
        strings[name] = text
    title = strings.pop(_TITLE, "")
    passage = "\n".join(strings.values())
    if titles_only and not title:
        title = passage
    return Hit(str(place), title, passage)
