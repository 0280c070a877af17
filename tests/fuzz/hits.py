"""Bytes that no hypothesis would think of, as searches: coverage-guided fuzzing of what is parsed.

    python -m tests.fuzz.hits --seconds 600

Every input is a body as it is, and chooses the values of another one, which is JSON. Both are sent
to each path that takes searches, and go all the way that hits go: JSON, the wire's records,
admission, tokens of the shipped tokenizer, an order, and JSON again; only the networks are left
out. Whatever it is, the answer is an order of its hits or a refusal in one sentence. What is not
ends the run, and its bytes are kept in the folder that `--crashes` names.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["plugin", "reranker", "json"]):
    from plugin.sidecar.app import build_app
    from plugin.sidecar.cohere import CohereError, CohereResponse
    from plugin.sidecar.protocol import ErrorResponse, RerankResponse
    from plugin.sidecar.settings import load_settings
    from reranker import Hit, RankedHit, RerankResult, StageReport
    from reranker.stages import SHIPPED
    from reranker.tokens import Tokenizer

_CONTRACT = Path(__file__).parents[1] / "contract" / "request.json"
_COHERE = {
    "model": "cascade",
    "query": "merge \ud800 lists",
    "documents": ["\u202emerge", {"title": "\x00", "text": "a\u0301", "more": None}],
    "top_n": 1,
    "return_documents": True,
    "max_tokens_per_doc": 2,
    "rank_fields": ["title", "text"],
}
_WORDS = ["NaN", "-Infinity", "1e999", "\\ud800", "\\u0000", "null", "true", "[[[[", "{}", '":"']
_LONGEST = 4096  # bytes of an input


def written(data: bytes) -> bytes:
    """Write a search whose every value the input chooses."""
    source = atheris.FuzzedDataProvider(data)

    def text() -> str:
        return source.ConsumeUnicode(source.ConsumeIntInRange(0, 40))

    def anything() -> Any:
        kinds = [
            text,
            lambda: source.ConsumeInt(9),
            source.ConsumeFloat,
            source.ConsumeBool,
            lambda: None,
            lambda: [text()],
            lambda: {text(): text()},
        ]
        return source.PickValueInList(kinds)()

    def record(*names: str) -> dict[str, Any]:
        return {
            name: text() if source.ConsumeProbability() < 0.8 else anything()
            for name in names
            if source.ConsumeBool()
        }

    count = source.ConsumeIntInRange(0, 5)
    search = {
        "query": text(),
        "hits": [record("id", "title", "passage") | _score(source) for _ in range(count)],
        "documents": [
            record("title", "text", "passage", "other") if source.ConsumeBool() else text()
            for _ in range(count)
        ],
    }
    more = ("passage_depth", "deadline_ms", "model", "top_n", "max_tokens_per_doc", "rank_fields")
    for name in more:
        if source.ConsumeProbability() < 0.2:
            search[name] = anything()
    return json.dumps(search).encode()


def _score(source: Any) -> dict[str, Any]:
    return {"score": source.ConsumeFloat()} if source.ConsumeBool() else {}


class Reading:
    """Models that make tokens of all texts, and turn the order around."""

    name = "reading"

    def __init__(self) -> None:
        self._tokenizer = Tokenizer(SHIPPED / "passage" / "tokenizer.json")

    def cut(self, hits: Sequence[Hit], most_tokens: int) -> tuple[list[Hit], int]:
        heads = [self._tokenizer.head(hit.passage, most_tokens)[0] for hit in hits]
        return [hit._replace(passage=head) for hit, head in zip(hits, heads, strict=True)], 0

    def rerank(
        self,
        query: str,
        hits: Sequence[Hit],
        passage_depth: int = 20,
        deadline_ms: float | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        early_stop: bool = True,
    ) -> RerankResult:
        titles, passages = [hit.title for hit in hits], [hit.passage for hit in hits]
        rows = [text.ids for text in self._tokenizer.encode([query, *titles], 32)]
        for windowed in self._tokenizer.windows(titles, passages, 32, 4, 3):
            rows += windowed.windows
        assert all(2 <= len(row) <= 32 for row in rows)
        ranked = [
            RankedHit(hits[place].id, place, 1 + (place + 1) / (len(hits) + 1), hits[place].score)
            for place in reversed(range(len(hits)))
        ]
        return RerankResult(ranked, [StageReport("title", len(hits), 1.0)], complete=True)


async def ask(app: Any, path: str, body: bytes) -> tuple[int, bytes]:
    """Send one body, and give status and body of the answer."""
    sent = False
    status, answer = 0, b""

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if sent:
            await asyncio.Event().wait()  # nobody hangs up
        sent = True
        return {"type": "http.request", "body": body}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status, answer
        status = message.get("status", status)
        answer += message.get("body", b"")

    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": headers,
    }
    await app(scope, receive, send)
    return status, answer


def check(path: str, body: bytes, status: int, answer: bytes) -> None:
    """Raise AssertionError unless the answer is right for the body."""
    own = path == "/rerank"
    if status != 200:
        assert status in (400, 413, 422), (path, status, answer)
        error = ErrorResponse if own else CohereError
        (sentence,) = error.model_validate_json(answer).model_dump().values()
        assert sentence
        assert "\n" not in sentence
        return
    search = json.loads(body)
    if own:
        hits = RerankResponse.model_validate_json(answer).hits
        found, scores = [hit.index for hit in hits], [hit.score for hit in hits]
        assert sorted(found) == list(range(len(search["hits"])))
    else:
        results = CohereResponse.model_validate_json(answer).results
        found, scores = [hit.index for hit in results], [hit.relevance_score for hit in results]
        most = search.get("top_n") or len(search["documents"])
        assert len(found) == len(set(found)) == min(int(most), len(search["documents"]))
        assert set(found) <= set(range(len(search["documents"])))
    assert scores == sorted(scores, reverse=True)


def seed(folder: Path) -> None:
    """Write what the inputs begin with, and the words that they are made of."""
    examples = [json.loads(_CONTRACT.read_bytes()), _COHERE]
    for number, example in enumerate(examples):
        (folder / f"seed-{number}").write_text(json.dumps(example))
    names = {name for each in examples for name in each}
    names |= {name for hit in examples[0]["hits"] for name in hit}
    words = sorted(json.dumps(name) + ":" for name in names) + _WORDS
    escaped = ["".join(f"\\x{byte:02x}" for byte in word.encode()) for word in words]
    (folder / "words").write_text("".join(f'"{word}"\n' for word in escaped))


def main() -> None:
    """Fuzz for so many seconds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="0: another one at each run")
    parser.add_argument("--crashes", type=Path, default=Path("build/fuzz"))
    arguments = parser.parse_args()
    arguments.crashes.mkdir(parents=True, exist_ok=True)
    app = build_app(Reading(), load_settings(max_request_tokens=2000, max_hits=50))
    loop = asyncio.new_event_loop()
    lifespan = app.router.lifespan_context(app)
    loop.run_until_complete(lifespan.__aenter__())

    def test(data: bytes) -> None:
        for body in (data, written(data)):
            for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
                check(path, body, *loop.run_until_complete(ask(app, path, body)))

    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        seed(corpus)
        (corpus / "words").rename(Path(folder) / "words")
        options = [
            f"-max_total_time={arguments.seconds}",
            f"-seed={arguments.seed}",
            f"-max_len={_LONGEST}",
            "-timeout=60",
            "-report_slow_units=60",
            f"-dict={folder}/words",
            f"-artifact_prefix={arguments.crashes}/",
            str(corpus),
        ]
        atheris.Setup([sys.argv[0], *options], test)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
