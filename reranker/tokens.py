"""Text to token ids, with nothing cut silently: every truncation is counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer as _Tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

# No text needs more characters than this per token to fill its window; the rest of a hostile
# text of megabytes is not even looked at.
_CHARACTERS_PER_TOKEN = 32
# So few characters are made into tokens in the caller's thread: others would have to be woken, and
# one of them reads the query meanwhile.
_FEW_CHARACTERS = 4096


class Encoded(NamedTuple):
    """One text as token ids, with its opening and closing token."""

    ids: NDArray[np.int64]  # (tokens,)
    truncated: bool  # not all of the text is in it

    @property
    def tokens(self) -> int:
        """How many of `ids` are the text's own."""
        return len(self.ids) - 2

    @property
    def empty(self) -> bool:
        """Nothing is left of the text: blanks, say, or characters that nobody sees."""
        return self.tokens == 0


class Windowed(NamedTuple):
    """One long text as overlapping windows."""

    windows: list[NDArray[np.int64]]  # each (tokens,), at least one
    truncated: bool  # the text goes on after the last window


class Tokenizer:
    """A BERT-style tokenizer: `[CLS] text [SEP]`.

    `left_out` are tokens that say nothing about a text, brackets and dashes for example: reading
    them costs as much as reading words. A text that is made of nothing else keeps them, and a
    query all of its own. Raises FileNotFoundError or ValueError where `path` is no such
    tokenizer or does not know one of `left_out`.
    """

    def __init__(self, path: Path, left_out: Sequence[str] = ()) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: the model folder is not complete")
        try:
            self._tokenizer = _Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"{path} is no tokenizer: export the model again ({error})") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        empty = self._tokenizer.encode("").ids
        if len(empty) != 2:
            raise ValueError(f"{path} does not put texts between two special tokens, as BERT's do")
        self._open, self._close = empty
        self._kept = kept_tokens(self._tokenizer, left_out)

    @classmethod
    def of(cls, folder: Path, config: Mapping[str, Any]) -> Tokenizer:
        """The tokenizer of a model folder, whose `config.json` holds `config`."""
        return cls(folder / "tokenizer.json", config.get("left_out", []))

    @property
    def vocabulary(self) -> dict[str, int]:
        """All tokens and their ids."""
        found: dict[str, int] = self._tokenizer.get_vocab()
        return found

    def encode(self, texts: Sequence[str], limit: int) -> list[Encoded]:
        """Encode texts, each to at most `limit` tokens with the two special ones."""
        return self._cut(self._inner(texts, limit), limit)

    def encode_queries(self, queries: Sequence[str], limit: int) -> list[Encoded]:
        """Encode queries like texts, but nothing is left out of them."""
        return self._cut(self._whole(queries, limit), limit)

    def windows(
        self, heads: Sequence[str], texts: Sequence[str], limit: int, stride: int, most: int
    ) -> list[Windowed]:
        """Encode `head text` pairs into windows of at most `limit` tokens.

        A text that does not fit goes on in further windows, each opening with its head (at most
        a quarter of the window) and the last `stride` tokens of the window before; at most
        `most` windows of one text are kept.
        """
        found = []
        budget = limit * most
        pairs = zip(self._inner(heads, limit), self._inner(texts, budget), strict=True)
        for (head, head_cut), (body, body_cut) in pairs:
            if len(head) + len(body) <= limit - 2:
                whole = self._closed(np.concatenate([head, body]))
                found.append(Windowed([whole], head_cut or body_cut))
                continue
            short = head if len(body) == 0 else head[: limit // 4]
            short = short[: limit - 2]
            room = limit - 2 - len(short)
            step = max(1, room - stride)
            windows: list[NDArray[np.int64]] = []
            start = reached = 0
            while len(windows) < most and (reached < len(body) or not windows):
                reached = min(start + room, len(body))
                windows.append(self._closed(np.concatenate([short, body[start:reached]])))
                start += step
            left_out = reached < len(body) or len(short) < len(head)
            found.append(Windowed(windows, left_out or head_cut or body_cut))
        return found

    def count(self, texts: Sequence[str]) -> list[int]:
        """Count what is read of whole texts, in tokens, without the two special ones."""
        encodings = self._tokenizer.encode_batch_fast(
            [_speakable(text) for text in texts], add_special_tokens=False
        )
        if self._kept is None:
            return [len(encoding.ids) for encoding in encodings]
        rows = (np.asarray(encoding.ids, dtype=np.int64) for encoding in encodings)
        return [len(without(ids, self._kept)) for ids in rows]

    def starts(self, text: str) -> NDArray[np.int64]:
        """Give where in the text each of its tokens starts, in characters (tokens,)."""
        encoding = self._tokenizer.encode(_speakable(text), add_special_tokens=False)
        return np.array([start for start, _ in encoding.offsets], dtype=np.int64)

    def head(self, text: str, most: int) -> tuple[str, int]:
        """Give the start of a text that is at most so many tokens, and how many it is.

        Of two parts of one word the first is left.
        """
        seen = text[: most * _CHARACTERS_PER_TOKEN]
        starts = self.starts(seen)
        if len(starts) > most:
            return seen[: starts[most]], most
        return seen, len(starts)

    def _inner(self, texts: Sequence[str], limit: int) -> list[tuple[NDArray[np.int64], bool]]:
        """What `_whole` gives, without the tokens that are left out."""
        found = self._whole(texts, limit)
        if self._kept is None:
            return found
        return [(without(ids, self._kept), cut) for ids, cut in found]

    def _whole(self, texts: Sequence[str], limit: int) -> list[tuple[NDArray[np.int64], bool]]:
        """Ids without the special tokens, and whether characters were dropped unseen."""
        most = limit * _CHARACTERS_PER_TOKEN
        cleaned = [_speakable(text[:most]) for text in texts]
        if sum(map(len, cleaned)) <= _FEW_CHARACTERS:
            encodings = [self._tokenizer.encode(text, add_special_tokens=False) for text in cleaned]
        else:
            encodings = self._tokenizer.encode_batch_fast(cleaned, add_special_tokens=False)
        return [
            (np.asarray(encoding.ids, dtype=np.int64), len(text) > most)
            for encoding, text in zip(encodings, texts, strict=True)
        ]

    def _cut(self, found: list[tuple[NDArray[np.int64], bool]], limit: int) -> list[Encoded]:
        return [
            Encoded(self._closed(ids[: limit - 2]), cut or len(ids) > limit - 2)
            for ids, cut in found
        ]

    def _closed(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        out = np.empty(len(ids) + 2, dtype=np.int64)
        out[0], out[-1] = self._open, self._close
        out[1:-1] = ids
        return out


def head_of(title: str, passage: str) -> str:
    """The head of a passage's windows, as models are trained to read it: "title. passage"."""
    return f"{title}." if title and passage else title


def kept_tokens(tokenizer: _Tokenizer, left_out: Sequence[str]) -> NDArray[np.bool_] | None:
    """Which ids (vocabulary,) are none of `left_out`'s; None where nothing is left out.

    Raises ValueError for one that the vocabulary lacks, or where it is no list.
    """
    if not left_out:
        return None
    listed = isinstance(left_out, (list, tuple))
    if not listed or not all(isinstance(token, str) for token in left_out):
        raise ValueError(f"left_out: {left_out!r} is no list of tokens; give one")
    vocabulary = tokenizer.get_vocab()
    kept = np.ones(max(vocabulary.values()) + 1, dtype=bool)
    for token in left_out:
        if token not in vocabulary:
            raise ValueError(f'left_out: the tokenizer has no token "{token}"; take it out')
        kept[vocabulary[token]] = False
    return kept


def without(ids: NDArray[Any], kept: NDArray[np.bool_]) -> NDArray[Any]:
    """A text's ids (n,) that are kept; all of them where that is none."""
    found = ids[kept[ids]]
    return found if len(found) else ids


def _speakable(text: str) -> str:
    """Replace lone surrogates one for one: legal in JSON, but not in UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")
