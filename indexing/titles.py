"""Titles as the title stage needs them: missing ones are given, and all are reported on."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args
from urllib.parse import unquote, urlsplit

from indexing.passages import split_sentences
from indexing.records import Document, Failure, Record
from reranker.tokens import Tokenizer

Rule = Literal["none", "first-sentence", "url", "file"]
RULES: tuple[Rule, ...] = get_args(Rule)

_TOKENIZED_AT_ONCE = 1000
_CHARACTERS_PER_TOKEN = 32
_PERCENTS = (50, 90, 99, 100)
_SHOWN = 5  # groups of near-duplicates
_VARIANTS = 16  # of one title that are told apart
_CHARACTERS = 160  # of a title made from a sentence
_LOOKED_AT = 4000  # characters of a passage, for its first sentence
_SEPARATORS = re.compile(r"[-_+\s]+")
_EXTENSION = re.compile(r"\.[A-Za-z]\w{0,5}$")
_NO_WORD = re.compile(r"[^\w\s]+|_")


class Giver:
    """Gives documents without a title one: by their first sentence, address or file name.

    `given` counts those that got one, `missing` those for which the rule has nothing.
    """

    def __init__(self, rule: Rule = "none") -> None:
        self.rule = rule
        self.given = 0
        self.missing = 0

    def records(self, records: Iterable[Record]) -> Iterator[Record]:
        """Give the documents of a stream their titles."""
        for record in records:
            if not isinstance(record, Document) or record.title.strip():
                yield record
                continue
            title = _MAKE[self.rule](record)
            if title:
                self.given += 1
                yield record._replace(title=title)
            else:
                self.missing += bool(record.passage.strip())
                yield record


def first_sentence(text: str) -> str:
    """Give the first sentence of a text as a title, shortened where it is long."""
    start = text[:_LOOKED_AT].strip()
    sentence = " ".join(next(split_sentences(start), "").split())
    if len(sentence) > _CHARACTERS:
        shorter = sentence[:_CHARACTERS]
        return f"{shorter.rpartition(' ')[0] or shorter} …"
    return sentence.rstrip(" .:;")


def from_slug(path: str) -> str:
    """Give the words of a path's last part: `guide/getting-started.md` is `Getting started`."""
    last = next((part for part in reversed(unquote(path).split("/")) if part.strip()), "")
    words = _SEPARATORS.sub(" ", _EXTENSION.sub("", last)).strip()
    if not any(character.isalpha() for character in words):
        return ""
    return words[:1].upper() + words[1:]


def normal(title: str) -> str:
    """Give a title without what does not matter: case, punctuation, spacing, letter forms."""
    # Marks that combine take a time that grows with the square of their number.
    head, rest = title[:_LOOKED_AT], title[_LOOKED_AT:]
    plain = unicodedata.normalize("NFKC", head).casefold() + rest.casefold()
    words = _NO_WORD.sub(" ", plain).split()
    return " ".join(words) or " ".join(title.split())


def _from_url(document: Document) -> str:
    try:
        return from_slug(urlsplit(document.url).path)
    except ValueError:
        return ""


_MAKE: dict[Rule, Callable[[Document], str]] = {
    "none": lambda document: "",
    "first-sentence": lambda document: first_sentence(document.passage),
    "url": _from_url,
    "file": lambda document: from_slug(document.page_id or document.id),
}


class Near(NamedTuple):
    """Titles that differ in case, punctuation or spacing alone."""

    titles: tuple[str, ...]  # some of them
    documents: int


@dataclass(frozen=True)
class Report:
    """What a source's titles are like, and what that means for the title stage.

    Shares are of all documents, those of `distinct` and `truncated` of documents with a title.
    Tokens count the two special ones.
    """

    documents: int
    failed: int
    skipped: int
    empty: int
    given: int  # by `Giver`; not among the empty
    limit: int  # tokens of a title that the stage reads
    tokens: dict[str, int]  # percentiles: "50", "90", "99", "100"
    truncated: int
    distinct: int
    near_groups: int
    near_titles: int
    estimated: bool  # distinct and near titles are counted in a sample
    near: tuple[Near, ...] = ()  # the groups with most documents
    meaning: tuple[str, ...] = ()  # a sentence for each of them

    @property
    def titled(self) -> int:
        """Documents with a title."""
        return self.documents - self.empty


class Reporter:
    """Reads documents and reports on their titles, in memory that does not grow with them."""

    def __init__(self, tokenizer: Tokenizer, limit: int, distinct: int = 100_000) -> None:
        self._tokenizer = tokenizer
        self._limit = limit
        self._lengths: Counter[int] = Counter()
        self._distinct = _Distinct(distinct)
        self._counts: Counter[str] = Counter()
        self._waiting: list[str] = []

    def add(self, record: Record) -> None:
        """Take one record of the source."""
        if not isinstance(record, Document):
            self._counts["failed" if isinstance(record, Failure) else "skipped"] += 1
            return
        self._counts["documents"] += 1
        if not record.title.strip():
            self._counts["empty"] += 1
            return
        self._waiting.append(record.title)
        if len(self._waiting) == _TOKENIZED_AT_ONCE:
            self._read()

    def report(self, given: int = 0) -> Report:
        """Report on the documents so far, of whose titles so many were given."""
        self._read()
        groups, titles, near = self._distinct.near()
        report = Report(
            documents=self._counts["documents"],
            failed=self._counts["failed"],
            skipped=self._counts["skipped"],
            empty=self._counts["empty"],
            given=given,
            limit=self._limit,
            tokens={str(percent): _percentile(self._lengths, percent) for percent in _PERCENTS},
            truncated=sum(n for tokens, n in self._lengths.items() if tokens > self._limit),
            distinct=self._distinct.count(),
            near_groups=groups,
            near_titles=titles,
            estimated=self._distinct.scale > 1,
            near=near,
        )
        return replace(report, meaning=tuple(_meaning(report)))

    def _read(self) -> None:
        # No more of a hostile title is looked at than tells that it is too long.
        most = self._limit * _CHARACTERS_PER_TOKEN
        for tokens in self._tokenizer.count([title[:most] for title in self._waiting]):
            self._lengths[tokens + 2] += 1
        for title in self._waiting:
            self._distinct.add(title)
        self._waiting.clear()


class _Distinct:
    """Counts distinct titles and near-duplicates, exactly up to a number of them.

    Beyond, it keeps the titles whose normal form's hash ends in some zero bits: a fair sample in
    which all variants of a title are kept together (distinct sampling: Gibbons, VLDB 2001).
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._bits = 0
        self._groups: dict[int, tuple[int, dict[int, str]]] = {}  # documents, title by hash
        self._variants = 0

    @property
    def scale(self) -> int:
        return 1 << self._bits

    def add(self, title: str) -> None:
        title = " ".join(title.split())
        key = _hash(normal(title))
        if key & (self.scale - 1):
            return
        documents, variants = self._groups.get(key, (0, {}))
        if len(variants) < _VARIANTS and (exact := _hash(title)) not in variants:
            variants[exact] = title[:_CHARACTERS]
            self._variants += 1
        self._groups[key] = documents + 1, variants
        while self._variants > self._most:
            self._bits += 1
            kept = {k: group for k, group in self._groups.items() if not k & (self.scale - 1)}
            self._groups = kept
            self._variants = sum(len(variants) for _, variants in kept.values())

    def count(self) -> int:
        return self._variants * self.scale

    def near(self) -> tuple[int, int, tuple[Near, ...]]:
        groups = [group for group in self._groups.values() if len(group[1]) > 1]
        groups.sort(key=lambda group: (-group[0], *sorted(group[1].values())))
        shown = tuple(
            Near(tuple(sorted(variants.values())[:_SHOWN]), documents)
            for documents, variants in groups[:_SHOWN]
        )
        titles = sum(len(variants) for _, variants in groups)
        return len(groups) * self.scale, titles * self.scale, shown


def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _percentile(lengths: Counter[int], percent: int) -> int:
    """Give the smallest length that at least so many per cent do not exceed; 0 of none."""
    needed = lengths.total() * percent / 100
    seen = 0
    for length in sorted(lengths):
        seen += lengths[length]
        if seen >= needed:
            return length
    return 0


def _meaning(report: Report) -> Iterator[str]:
    if not report.documents:
        yield "There are no documents, so there is nothing to say of their titles."
        return
    if not report.titled:
        yield (
            "No document has a title, so the title stage has nothing to read:"
            " give them one with --title-from."
        )
        return
    yield (
        f"Half of the titles have up to {report.tokens['50']} tokens and 99 % up to"
        f" {report.tokens['99']}: that is what the title stage's time goes with."
    )
    if report.truncated:
        yield (
            f"Of {share(report.truncated, report.titled)} of the titles the title stage does not"
            f" read what comes after {report.limit} tokens: what tells them apart should come"
            " before."
        )
    else:
        yield "The title stage reads every title to its end."
    each = report.titled / max(1, report.distinct)
    if each < 1.1:
        yield "Almost every document has a title of its own, by which the title stage can rank it."
    else:
        yield (
            f"A title is shared by {each:.1f} documents on average: the title stage reads it once"
            " and scores them alike, and only the passage stage can tell them apart."
        )
    if report.empty:
        yield (
            f"{share(report.empty, report.documents)} of the documents have no title and are"
            " ranked by the title stage without having been read: give them one with --title-from."
        )
    if report.near_groups:
        yield (
            f"{share(report.near_titles, report.distinct)} of the titles differ from another one"
            " in case, punctuation or spacing alone: the title stage reads each of them and can"
            " hardly tell them apart."
        )


def share(part: int, whole: int) -> str:
    """Give a share in per cent; never 0 % or 100 % where it is not quite so."""
    percent = 100 * part / whole if whole else 0.0
    if 0 < percent < 0.1:
        return "less than 0.1 %"
    if 99.9 < percent < 100:
        return "more than 99.9 %"
    return f"{percent:.1f} %"
