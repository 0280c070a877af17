"""Long texts cut into passages at sentence ends, each small enough for the passage model.

Nothing is lost or put in another order: sentences joined give the text back, and so do a text's
passages without what each repeats of the one before.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from indexing.records import Document, Record
from reranker.tokens import Tokenizer, head_of

DEFAULT_OVERLAP = 32
MIN_TOKENS = 16
# Longer stretches without a sentence end are cut at a space: no sentence of prose is that long.
_SENTENCE_CHARACTERS = 4096
_AT_ONCE = 256  # sentences that the tokenizer gets together
_SPECIAL = 2  # tokens around every text
_PAUSE = re.compile(r"\s+|[。！？｡]+[」』”’）]*")
_CLOSING = "\"'”’»)]}」』）"
_OPENING = "\"'“‘«([{"
_ABBREVIATIONS = frozenset(
    """
    adj al approx apr art assn aug ave bros ca cap cf ch co col corp cpl dec dept dr ed eds esp est
    etc ex feb fed fig figs ft gen gov hon inc jan jr lt ltd maj messrs mr mrs ms mt nov oct op p pp
    phd prof rep resp rev sec sen sep sept sgt sr st univ viz vol vols vs
    abs allg bd bzgl bzw ggf hrsg nr sog usw vgl
    """.split()  # noqa: SIM905 - a table that is to be read
)


class _Unit(NamedTuple):
    """A stretch of text that is not cut: a sentence, or a part of one that is too long."""

    start: int
    end: int
    tokens: int
    broken: bool  # it ends within a word


class Splitter:
    """Cuts documents whose passage does not fit, with its title, into `tokens` tokens.

    Each part begins with the last sentences of the one before, as far as they have no more than
    `overlap` tokens. Raises `ValueError` for numbers that no text can be cut to.
    """

    def __init__(
        self, tokenizer: Tokenizer, tokens: int = 256, overlap: int = DEFAULT_OVERLAP
    ) -> None:
        if tokens < MIN_TOKENS:
            raise ValueError(f"passages have at least {MIN_TOKENS} tokens, not {tokens}")
        if not 0 <= overlap <= tokens // 2:
            raise ValueError(f"passages overlap by 0 to {tokens // 2} tokens, not {overlap}")
        self._tokenizer = tokenizer
        self.tokens = tokens
        self.overlap = overlap
        self.split = 0  # documents that were cut
        self.made = 0  # passages that were made of them

    def records(self, records: Iterable[Record]) -> Iterator[Record]:
        """Cut the documents of a stream; passages are numbered through their page."""
        page, position = "", 0
        for record in records:
            if not isinstance(record, Document):
                yield record
                continue
            if record.page_id != page or not page:
                page, position = record.page_id, 0
            for part in self.parts(record, position):
                yield part
                position += 1

    def parts(self, document: Document, position: int = 0) -> Iterator[Document]:
        """Yield a document as it is where it fits, else its passages, the first at `position`.

        Their ids are made of page, position and content; the document's own id is their page's
        if it has no other.
        """
        (title,) = self._tokenizer.count([head_of(document.title, document.passage)])
        # The passage model gives a title at most a quarter of its window.
        budget = self.tokens - _SPECIAL - min(title, self.tokens // 4)
        page = document.page_id or document.id
        text = document.passage
        spans = self.spans(text, budget)
        first = next(spans, (0, 0))
        second = next(spans, None)
        if second is None:
            placed = document.position is not None
            yield document._replace(position=position) if placed else document
            return
        self.split += 1
        for start, end in (first, second, *spans):
            passage = text[start:end].strip()
            if passage:
                self.made += 1
                key = passage_id(page, position, passage)
                yield document._replace(
                    id=key, passage=passage, page_id=page, position=position, vector=()
                )
                position += 1

    def spans(self, text: str, budget: int) -> Iterator[tuple[int, int]]:
        """Yield where passages of at most `budget` tokens start and end, in characters."""
        held: list[_Unit] = []
        size = 0  # their tokens
        for unit in self._units(text, budget):
            if held and size + unit.tokens > budget:
                yield held[0].start, held[-1].end
                held = _tail(held, min(self.overlap, budget - unit.tokens))
                size = sum(one.tokens for one in held)
            held.append(unit)
            size += unit.tokens
            if unit.broken:
                # The parts of a word have other tokens than the word: they never meet again.
                yield held[0].start, unit.end
                held, size = [], 0
        if held:
            yield held[0].start, held[-1].end

    def _units(self, text: str, budget: int) -> Iterator[_Unit]:
        end = 0
        parts = sentences(text)
        while batch := list(islice(parts, _AT_ONCE)):
            for part, tokens in zip(batch, self._tokenizer.count(batch), strict=True):
                start, end = end, end + len(part)
                broken = end < len(text) and _within_word(text, end)
                if tokens <= budget:
                    yield _Unit(start, end, tokens, broken)
                else:
                    yield from self._cut(text, start, end, budget, broken)

    def _cut(self, text: str, start: int, end: int, budget: int, broken: bool) -> Iterator[_Unit]:
        """Cut a sentence that does not fit at spaces, or else between any two tokens."""
        while start < end:
            rest = text[start:end]
            starts = self._tokenizer.starts(rest)
            size = len(rest)
            if len(starts) > budget:
                size = max(1, int(starts[budget]))
                space = max(rest.rfind(mark, size // 2, size) for mark in "\n \t")
                size = space + 1 if space > 0 else size
            start += size
            inside = start < end and _within_word(text, start)
            tokens = int((starts < size).sum())
            yield _Unit(start - size, start, tokens, inside or (start == end and broken))


def split_sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a text with the space behind them."""
    start = 0
    for pause in _PAUSE.finditer(text):
        if _ends_sentence(text, start, pause):
            yield text[start : pause.end()]
            start = pause.end()
    if start < len(text):
        yield text[start:]


def sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a text, those without an end in sight cut; joined they are it."""
    for sentence in split_sentences(text):
        start = 0
        while len(sentence) - start > _SENTENCE_CHARACTERS:
            end = start + _SENTENCE_CHARACTERS
            space = max(sentence.rfind(mark, start, end) for mark in "\n \t")
            end = space + 1 if space > start else end
            yield sentence[start:end]
            start = end
        yield sentence[start:]


def passage_id(page_id: str, position: int, passage: str) -> str:
    """Make an id of page, position and content: the same content has the same id in every run."""
    digest = hashlib.sha256(passage.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{page_id}-{position}-{digest[:8]}"


def _tail(units: list[_Unit], tokens: int) -> list[_Unit]:
    """Give the last units that have no more than so many tokens together."""
    kept = len(units)
    while kept > 0 and units[kept - 1].tokens <= tokens:
        kept -= 1
        tokens -= units[kept].tokens
    return units[kept:]


def _within_word(text: str, at: int) -> bool:
    return not (text[at - 1].isspace() or text[at].isspace() or text[at - 1] in "。！？｡」』”’）")


def _ends_sentence(text: str, start: int, pause: re.Match[str]) -> bool:
    gap = pause[0]
    if not gap[0].isspace():
        return True
    if gap.count("\n") > 1:
        return True
    end = pause.start()
    floor = max(start, end - 4)
    while end > floor and text[end - 1] in _CLOSING:
        end -= 1
    if end == start or text[end - 1] not in ".!?…":
        return False
    following = text[pause.end() : pause.end() + 1]
    if following.islower():
        return False
    if text[end - 1] != ".":
        return True
    word = text[max(start, end - 24) : end - 1].rpartition(" ")[2].lstrip(_OPENING)
    if len(word) == 1 and word.isalpha():
        return False  # an initial, "z. B."
    if "." in word and all(len(part) <= 2 for part in word.split(".")):
        return False  # e.g., U.S.
    if word.lower() in ("no", "nos"):
        return not following.isdigit()
    return word.lower() not in _ABBREVIATIONS
