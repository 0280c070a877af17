"""The wire contract of `POST /rerank`: all that the OpenSearch plugin and the sidecar share.

The JSON files in `tests/contract/` are examples of it; both sides are tested against them.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    ValidationError,
    create_model,
)


def mend(text: str) -> str:
    """Put question marks where UTF-8 cannot write what JSON's escapes have written."""
    if text.isascii():  # which Python knows without looking
        return text
    return text.encode("utf-8", "replace").decode("utf-8")


def _mend(text: object) -> object:
    return mend(text) if isinstance(text, str) else text


# JSON's escapes can write half a surrogate pair, which UTF-8 cannot: it becomes a question mark.
# One damaged title must not cost a search its reranking.
Text: TypeAlias = Annotated[str, BeforeValidator(_mend)]


def _number(value: object) -> object:
    if isinstance(value, (bool, str)):  # pydantic would read true as 1, and "5" as 5
        raise ValueError("give a number, without quotes")
    return value


Number: TypeAlias = Annotated[float, BeforeValidator(_number)]
Count: TypeAlias = Annotated[int, BeforeValidator(_number)]

# The request's `deadline_ms` once more, as a header: a sidecar that has no time for the search
# can then tell without reading it. Callers need not send it.
DEADLINE_HEADER = "Titlecast-Deadline-Ms"


class WireHit(BaseModel):
    """One hit of the window, in the engine's order."""

    # Python writes the literals NaN and Infinity, which JSON does not have: they are refused.
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    id: Text = ""
    title: Text = ""
    passage: Text = ""
    score: Number | None = None  # the engine's score; null where the engine gave none


class RerankRequest(BaseModel):
    """One search: the query's text and the window's hits."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    query: Text
    # A record of each bad one would take a thousand times the memory of a small body.
    hits: list[WireHit] = Field(fail_fast=True)
    passage_depth: Count = Field(default=20, ge=0)  # 0: titles only
    deadline_ms: Number | None = Field(default=None, gt=0)  # time the caller still has
    # The answer's hits are `index` and `score` alone: a quarter of it to write, send and read.
    brief: StrictBool = False


class _PlainHit(WireHit):
    """A hit of which there is nothing to mend: no callback of Python's looks at any of it."""

    id: str = ""
    title: str = ""
    passage: str = ""
    score: Annotated[float, Field(strict=True)] | None = None


class QuickReader:
    """Reads the searches in which nothing is out of the ordinary, in one call.

    JSON goes straight to a request. Where it cannot, `read` gives None and leaves it to the careful
    way to tell why, or to mend what can be mended; what it gives is what that would.
    """

    def __init__(self, most_hits: int) -> None:
        hits = (list[_PlainHit], Field(fail_fast=True, max_length=most_hits))
        self._model = create_model("PlainRequest", __base__=RerankRequest, hits=hits)

    def read(self, body: bytes) -> RerankRequest | None:
        """Read the body of a search."""
        try:
            return self._model.model_validate_json(body)
        except ValidationError:
            return None


class WireRankedHit(BaseModel):
    """One hit in the new order; a brief answer has `index` and `score` of it."""

    model_config = ConfigDict(allow_inf_nan=False)

    index: int  # position in the request's hits
    id: str = ""
    score: float  # > 0, descending; integer part 2: placed by the passage stage, 1: by titles
    first_stage_score: float | None = None
    title_score: float | None = None
    passage_score: float | None = None
    coverage: float = 0.0  # share of the query's words that title and passage hold, 0 to 1
    mention: float = 0.0  # > 0: passages that were read name its title, and it was placed higher


class WireStage(BaseModel):
    """What one stage did."""

    name: str
    scored: int
    milliseconds: float
    truncated: int = 0
    skipped: str = ""


class RerankResponse(BaseModel):
    """Every hit of the request exactly once, in the new order."""

    hits: list[WireRankedHit]
    stages: list[WireStage]
    complete: bool
    query_cut: bool = False  # the query is longer than the models read
    milliseconds: float  # in the sidecar, from the parsed request to the answer
    model: str  # name of the model set that answered


class ErrorResponse(BaseModel):
    """The body of every 4xx and 5xx: one sentence with the remedy."""

    error: str
