"""The cache: what comes out went in, the bound holds, the least recently used goes first."""

from __future__ import annotations

import threading
from collections import OrderedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reranker.lru import Cache, through

ENTRY = 250  # what an entry costs beside its key and value


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 9), st.integers(1, 400)), max_size=80),
    st.integers(1, 3000),
)
@settings(deadline=None)
def test_it_is_the_slow_one_that_anybody_would_write(steps, most):
    cache, slow = Cache(most), OrderedDict()
    for put, key, size in steps:
        if put:
            cache.put([(key, f"{key} of {size}", size)])
            if size + ENTRY <= most:
                slow.pop(key, None)
                slow[key] = size
                while sum(slow.values()) + ENTRY * len(slow) > most:
                    slow.popitem(last=False)
        else:
            expected = f"{key} of {slow[key]}" if key in slow else None
            if key in slow:
                slow.move_to_end(key)
            assert cache.get([key]) == [expected]
        use = cache.use()
        assert use.entries == len(slow)
        assert use.bytes == sum(slow.values()) + ENTRY * len(slow) <= most


def test_hits_and_misses_are_counted():
    cache = Cache(10_000)
    cache.put([("a", 1, 10)])
    assert cache.get(["a", "b", "a"]) == [1, None, 1]
    assert cache.use()[:2] == (2, 1)


def test_only_what_is_missing_is_computed_and_in_one_call():
    cache, asked = Cache(10_000), []

    def compute(keys):
        asked.append(list(keys))
        return [key.upper() for key in keys]

    assert through(cache, ["a", "b"], compute, lambda key, value: 1) == ["A", "B"]
    assert through(cache, ["c", "a", "d"], compute, lambda key, value: 1) == ["C", "A", "D"]
    assert through(cache, ["a", "d"], compute, lambda key, value: 1) == ["A", "D"]
    assert asked == [["a", "b"], ["c", "d"]]


def test_a_cache_of_nothing_keeps_nothing():
    cache = Cache(0)
    cache.put([("a", 1, 1)])
    assert cache.get(["a"]) == [None]
    assert through(cache, ["a"], lambda keys: [2], lambda key, value: 1) == [2]


def test_less_than_nothing_is_refused():
    with pytest.raises(ValueError, match="-1 bytes"):
        Cache(-1)


def test_threads_at_once_leave_the_count_right():
    cache = Cache(20_000)

    def work(seed: int) -> None:
        for step in range(300):
            key = (seed * 7 + step) % 90
            (found,) = cache.get([key])
            assert found in (None, key * 2)
            cache.put([(key, key * 2, 100)])

    workers = [threading.Thread(target=work, args=[seed]) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    use = cache.use()
    assert use.hits + use.misses == 4 * 300
    assert use.bytes == use.entries * (100 + ENTRY) <= 20_000
