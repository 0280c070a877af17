"""Text to token ids, with nothing cut silently: every truncation is counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from tokenizers import Tokenizer as _Tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

# No text needs more characters than this per token to fill its window; the rest of a hostile
# text of megabytes is not even looked at.
_CHARACTERS_PER_TOKEN = 32


class Encoded(NamedTuple):
    """One text as token ids, with its opening and closing token."""

    ids: NDArray[np.int64]  # (tokens,)
    truncated: bool  # not all of the text is in it

    @property
    def empty(self) -> bool:
        """Nothing is left of the text: blanks, say, or characters that nobody sees."""
        return len(self.ids) == 2


class Windowed(NamedTuple):
    """One long text as overlapping windows."""

    windows: list[NDArray[np.int64]]  # each (tokens,), at least one
    truncated: bool  # the text goes on after the last window


class Tokenizer:
    """A BERT-style tokenizer: `[CLS] text [SEP]`."""

    def __init__(self, path: Path) -> None:
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

    @property
    def vocabulary(self) -> dict[str, int]:
        """All tokens and their ids."""
        found: dict[str, int] = self._tokenizer.get_vocab()
        return found

    def encode(self, texts: Sequence[str], limit: int) -> list[Encoded]:
        """Encode texts, each to at most `limit` tokens with the two special ones."""
        found = []
        for ids, cut in self._inner(texts, limit):
            found.append(Encoded(self._closed(ids[: limit - 2]), cut or len(ids) > limit - 2))
        return found

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
        """Count the tokens of whole texts, without the two special ones."""
        encodings = self._tokenizer.encode_batch_fast(
            [_speakable(text) for text in texts], add_special_tokens=False
        )
        return [len(encoding.ids) for encoding in encodings]

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
        """Ids without the special tokens, and whether characters were dropped unseen."""
        most = limit * _CHARACTERS_PER_TOKEN
        cleaned = [_speakable(text[:most]) for text in texts]
        encodings = self._tokenizer.encode_batch_fast(cleaned, add_special_tokens=False)
        return [
            (np.asarray(encoding.ids, dtype=np.int64), len(text) > most)
            for encoding, text in zip(encodings, texts, strict=True)
        ]

    def _closed(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        out = np.empty(len(ids) + 2, dtype=np.int64)
        out[0], out[-1] = self._open, self._close
        out[1:-1] = ids
        return out


def _speakable(text: str) -> str:
    """Replace lone surrogates one for one: legal in JSON, but not in UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")
