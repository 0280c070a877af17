"""The keys that let callers in: several at a time, from a file that may change under way."""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from collections.abc import Iterable
from pathlib import Path

_log = logging.getLogger(__name__)

# How often the file is looked at, at most: a rotated key counts within this many seconds.
_LOOK_SECONDS = 1.0


class KeysError(ValueError):
    """Keys that cannot be used; the text names the remedy and never shows a key."""


class Keys:
    """The keys of which a caller must give one as `Authorization: Bearer KEY`.

    With a file, one key on a line, the file is read again whenever it has changed; where what it
    holds then cannot be used, the keys before stay in force and the log says so. Made without
    either, it asks for none. Only digests of the keys are kept.
    """

    def __init__(self, keys: Iterable[str] = (), file: Path | None = None) -> None:
        self._file = file
        self._seen = _stamp(file)
        self._looked = time.monotonic()
        self._digests = _digests(_read(file) if file else keys)
        if file and not self._digests:
            # An empty file would let everybody in who was meant to be kept out.
            raise KeysError(f"the key file {file} holds no key: put one on a line")

    def __len__(self) -> int:
        return len(self._digests)

    def admit(self, authorization: bytes) -> bool:
        """Whether the value of an `Authorization` header carries one of the keys."""
        self._look()
        if not self._digests:
            return True
        scheme, _, key = authorization.partition(b" ")
        given = hashlib.sha256(key.strip(b" ")).digest()
        admitted = False
        for digest in self._digests:  # all of them, always: the time taken tells nothing
            admitted |= hmac.compare_digest(given, digest)
        return admitted and scheme.lower() == b"bearer"

    def _look(self) -> None:
        now = time.monotonic()
        if self._file is None or now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        stamp = _stamp(self._file)
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            digests = _digests(_read(self._file))
            if not digests:
                raise KeysError(f"the key file {self._file} holds no key: put one on a line")
        except KeysError as error:
            _log.error("the keys before stay in force: %s", error)
            return
        self._digests = digests
        _log.info("the key file has changed: %d keys are in force", len(digests))


def _read(file: Path) -> list[str]:
    try:
        return [line.strip() for line in file.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise KeysError(
            f"the key file {file} cannot be read ({why}): name a readable file"
        ) from error


def _digests(keys: Iterable[str]) -> list[bytes]:
    keys = list(keys)
    for key in keys:
        if not key or not all("!" <= sign <= "~" for sign in key):
            raise KeysError(
                "a key must be visible ASCII without spaces, as a header carries it, each on a "
                "line of its own: make one with `openssl rand -hex 32`"
            )
    return [hashlib.sha256(key.encode()).digest() for key in keys]


def _stamp(file: Path | None) -> tuple[int, ...] | None:
    try:
        stat = file.stat() if file else None
    except OSError:
        return None
    # Of its times the last change's, too: whoever makes it readable does not write it.
    return (
        (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino, stat.st_dev)
        if stat
        else None
    )
