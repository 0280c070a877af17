"""What was computed before, kept within a bound of bytes: the least recently used goes first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

# What an entry costs beside its key and value: the places in the table and the list.
_ENTRY_BYTES = 250


class CacheUse(NamedTuple):
    """How a cache was used so far."""

    hits: int
    misses: int
    entries: int
    bytes: int  # as it counts them


class Cache:
    """A bounded mapping; safe to use from several threads at once. Values are shared: read only.

    `most_bytes` 0 keeps nothing.
    """

    def __init__(self, most_bytes: int) -> None:
        if most_bytes < 0:
            raise ValueError(f"a cache of {most_bytes} bytes cannot be: give 0 (none) or more")
        self._most = most_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._bytes = self._hits = self._misses = 0

    @property
    def enabled(self) -> bool:
        """Whether it keeps anything."""
        return self._most > 0

    def get(self, keys: Sequence[Hashable]) -> list[Any]:
        """The value of each key, None where there is none."""
        with self._lock:
            found = []
            for key in keys:
                entry = self._kept.get(key)
                if entry is not None:
                    self._kept.move_to_end(key)
                found.append(None if entry is None else entry[0])
            missed = sum(value is None for value in found)
            self._hits += len(found) - missed
            self._misses += missed
        return found

    def put(self, entries: Iterable[tuple[Hashable, Any, int]]) -> None:
        """Keep (key, value, bytes of both); what is larger than the whole cache is not kept."""
        with self._lock:
            for key, value, size in entries:
                size += _ENTRY_BYTES
                if size > self._most:
                    continue
                old = self._kept.pop(key, None)
                self._kept[key] = value, size
                self._bytes += size - (old[1] if old else 0)
                while self._bytes > self._most:
                    _, (_, freed) = self._kept.popitem(last=False)
                    self._bytes -= freed

    def use(self) -> CacheUse:
        """What it found, and how full it is."""
        with self._lock:
            return CacheUse(self._hits, self._misses, len(self._kept), self._bytes)


Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


def through(
    cache: Cache,
    keys: Sequence[Key],
    compute: Callable[[Sequence[Key]], Sequence[Value]],
    size: Callable[[Key, Value], int],
) -> list[Value]:
    """A value for each key, in one call of `compute` for those that are not in the cache.

    `size(key, value)` is what both take in bytes.
    """
    if not cache.enabled:
        return list(compute(keys))
    found = cache.get(keys)
    missing = [place for place, value in enumerate(found) if value is None]
    if missing:
        made = compute([keys[place] for place in missing])
        for place, value in zip(missing, made, strict=True):
            found[place] = value
        cache.put((keys[place], found[place], size(keys[place], found[place])) for place in missing)
    return found
