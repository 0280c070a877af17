"""Batching and packing: every text once, little padding; states kept; loading; cores shared."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reranker.lru import Cache
from reranker.models.export import export
from reranker.models.pair import PairEncoder
from reranker.runtime import (
    BroadcastModel,
    Crew,
    Later,
    Load,
    PairModel,
    batches,
    layouts,
    load_model,
    pack,
    shared_rows,
)
from tests.reranker.conftest import SMALL, random_encoder, write_model
from tests.waiting import wait_until

if TYPE_CHECKING:
    pass

QUERY = np.array([2, 5, 9, 14, 3])


@given(st.lists(st.integers(1, 300), max_size=200), st.sampled_from([1, 4]))
@settings(deadline=None)
def test_every_row_is_in_exactly_one_batch(lengths, threads):
    rows = [np.full(length, place, dtype=np.int64) for place, length in enumerate(lengths)]
    seen: list[int] = []
    for places, ids, counts in batches(rows, threads):
        assert ids.shape == (len(places), counts.max())
        assert len(places) == 1 or ids.size <= 512
        for at, place in enumerate(places.tolist()):
            assert ids[at, : counts[at]].tolist() == rows[place].tolist()
            assert not ids[at, counts[at] :].any()
        seen += places.tolist()
    assert sorted(seen) == list(range(len(lengths)))


@given(st.lists(st.integers(1, 300), max_size=100), st.sampled_from([1, 2]))
@settings(deadline=None)
def test_a_batch_has_less_padding_than_a_call_costs(lengths, threads):
    rows = [np.ones(length, dtype=np.int64) for length in lengths]
    for _, ids, counts in batches(rows, threads):
        assert ids.size - counts.sum() <= 10


def test_the_work_is_cut_for_all_threads():
    titles = np.random.default_rng(0).integers(4, 12, 100)
    sizes = [layout.owner.size for layout in layouts(titles, threads=4)]
    assert len(sizes) % 4 == 0
    assert max(sizes) - min(sizes) <= 16  # a row of packed titles
    passages = np.array([120, 130, 140, 150])
    assert [len(layout.places) for layout in layouts(passages, threads=4)] == [1, 1, 1, 1]
    # Too little to wake another core for; and one text needs a row as wide as itself.
    assert [layout.owner.shape for layout in layouts(np.array([5, 7]), threads=4)] == [(1, 12)]


@given(st.lists(st.integers(1, 80), max_size=200), st.sampled_from([1, 2, 16]))
@settings(deadline=None)
def test_every_text_is_whole_in_one_row_of_one_layout(lengths, threads):
    counts = np.array(lengths, dtype=np.int64)
    seen: list[int] = []
    found = layouts(counts, threads)
    sizes = [layout.owner.size for layout in found]
    assert sizes == sorted(sizes, reverse=True)
    for layout in found:
        rows, width = layout.owner.shape
        assert rows == 1 or layout.owner.size <= 512 + width
        assert layout.lengths.tolist() == counts[layout.places].tolist()
        # What `flat` and `places_in_text` say, text by text.
        expected = np.full(layout.owner.size, -1)
        at = 0
        for text, (start, length) in enumerate(zip(layout.starts, layout.lengths, strict=True)):
            assert start // width == (start + length - 1) // width
            assert (expected[start : start + length] == -1).all()
            expected[start : start + length] = text
            assert layout.flat[at : at + length].tolist() == list(range(start, start + length))
            assert layout.places_in_text[at : at + length].tolist() == list(range(length))
            at += length
        assert layout.owner.ravel().tolist() == expected.tolist()
        assert at == len(layout.flat)
        seen += layout.places.tolist()
    assert sorted(seen) == list(range(len(lengths)))


@pytest.mark.parametrize(("shortest", "longest"), [(2, 12), (8, 40), (17, 31)])
def test_little_is_computed_for_padding(shortest, longest):
    """Short texts share rows; of texts of twenty tokens a row of 32 would hold but one."""
    counts = np.random.default_rng(0).integers(shortest, longest + 1, 100)
    found = layouts(counts)
    computed = sum(layout.owner.size for layout in found)
    assert computed + 10 * len(found) < 1.16 * counts.sum()
    # Where texts share rows, there are fewer calls than lengths.
    assert len(found) <= (3 if longest == 12 else 12)


def test_few_texts_are_shared_evenly():
    """Of rows of 16 one of two threads would have two."""
    few = np.array([6, 5, 4, 4, 4, 4, 3, 3, 3, 2])
    assert [layout.owner.shape for layout in layouts(few, threads=2)] == [(1, 19), (1, 19)]
    assert [layout.owner.shape for layout in layouts(few, threads=1)] == [(3, 16)]
    more = np.append(few, [6, 6, 5])
    assert [layout.owner.shape for layout in layouts(more, threads=2)] == [(1, 28), (1, 28)]


@given(st.lists(st.integers(1, 32), min_size=1, max_size=60), st.sampled_from([1, 2, 4]))
@settings(deadline=None)
def test_shared_rows_compute_no_more_than_rows_of_the_usual_width(lengths, threads):
    counts = np.array(lengths, dtype=np.int64)
    width, rows = shared_rows(counts, threads)
    assert sorted(place for row in rows for place in row) == list(range(len(lengths)))
    assert all(sum(lengths[place] for place in row) <= width for row in rows)
    usual = min(sum(lengths), 16 if max(lengths) <= 16 else 32)
    packed = pack(counts, usual)
    assert width * len(rows) <= usual * len(packed)
    if len(packed) > 2 * threads:
        assert (width, rows) == (usual, packed)


@given(st.lists(st.integers(1, 16), max_size=200), st.sampled_from([16, 32]))
@settings(deadline=None)
def test_rows_are_packed_close_to_as_full_as_can_be(lengths, width):
    rows = pack(np.array(lengths, dtype=np.int64), width)
    assert sorted(place for row in rows for place in row) == list(range(len(lengths)))
    assert all(sum(lengths[place] for place in row) <= width for row in rows)
    fewest = -(-sum(lengths) // width)
    # Best-fit decreasing never takes more than 11/9 of the best, and 6/9 of a row (Dosa 2007
    # for first-fit); texts of at most half a row leave no row but the last half empty.
    assert len(rows) <= 2 * fewest + 1
    half = sum(sum(lengths[place] for place in row) <= width // 2 for row in rows)
    assert half <= 1


def some_texts(seed: int, count: int = 40) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    lengths = np.where(rng.random(count) < 0.9, rng.integers(1, 14, count), 40)
    return [np.array([2, *rng.integers(4, 64, length), 3]) for length in lengths.tolist()]


@pytest.fixture(scope="module", params=["fp32", "int8"])
def folder(request, tmp_path_factory):
    return write_model(
        tmp_path_factory.mktemp("model"), "title", random_encoder(SMALL), request.param
    )


def test_kept_states_change_no_score(folder):
    plain = BroadcastModel(folder, threads=1)
    cache = Cache(10_000_000)
    kept = BroadcastModel(folder, threads=1, cache=cache)
    texts = some_texts(0)
    for query in (QUERY, QUERY[:3]):
        for part in (texts[:1], texts[5:25], texts, texts[::-1], texts):
            expected = plain.score(plain.read(query), part)
            assert np.abs(kept.score(kept.read(query), part) - expected).max() < 1e-4
    use = cache.use()
    assert use.misses == len({text.tobytes() for text in texts}) == use.entries


def test_kept_states_are_the_same_bit_for_bit(folder):
    texts = some_texts(3)
    plain = BroadcastModel(folder, threads=1)
    kept = BroadcastModel(folder, threads=1, cache=Cache(10_000_000))
    expected = plain.score(plain.read(QUERY), texts).tolist()
    for _ in range(3):
        assert kept.score(kept.read(QUERY), texts).tolist() == expected


def test_what_is_kept_of_a_text_keeps_no_batch_alive(folder):
    cache = Cache(10_000_000)
    kept = BroadcastModel(folder, threads=1, cache=cache)
    texts = some_texts(4)
    for part in (texts[:5], texts):  # a batch of new texts only, and one of both
        kept.score(kept.read(QUERY), part)
    states = cache.get([text.tobytes() for text in texts])
    assert all(state is not None and state.base is None for state in states)


def test_a_cache_too_small_for_the_texts_changes_no_score(folder):
    plain = BroadcastModel(folder, threads=1)
    cache = Cache(8_000)
    kept = BroadcastModel(folder, threads=1, cache=cache)
    texts = some_texts(1)
    for part in (texts, texts[10:], texts):
        expected = plain.score(plain.read(QUERY), part)
        assert np.abs(kept.score(kept.read(QUERY), part) - expected).max() < 1e-4
    assert 0 < cache.use().entries < len(texts)


@pytest.mark.parametrize(
    "config",
    [replace(SMALL, first_query_layer=0), replace(SMALL, start="scratch", first_query_layer=1)],
    ids=["no layer below the query", "positions follow the query"],
)
def test_what_is_not_worth_keeping_is_not_kept(config, tmp_path):
    export(random_encoder(config), tmp_path)
    cache = Cache(1_000_000)
    model = BroadcastModel(tmp_path, threads=1, cache=cache)
    texts = some_texts(2)
    for query in (QUERY, QUERY[:3]):
        scores = model.score(model.read(query), texts)
        again = BroadcastModel(tmp_path, threads=1)
        assert np.abs(scores - again.score(again.read(query), texts)).max() < 1e-4
    assert cache.use() == (0, 0, 0, 0)


def test_threads_share_a_cache(folder):
    plain = BroadcastModel(folder, threads=1)
    kept = BroadcastModel(folder, threads=1, cache=Cache(30_000))
    lists = [some_texts(seed) for seed in range(4)]
    expected = [plain.score(plain.read(QUERY), texts) for texts in lists]
    worst = [1.0] * len(lists)

    def work(place: int) -> None:
        read = kept.read(QUERY)
        worst[place] = max(
            float(np.abs(kept.score(read, lists[at % 4]) - expected[at % 4]).max())
            for at in range(place, place + 6)
        )

    workers = [threading.Thread(target=work, args=[place]) for place in range(len(lists))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert max(worst) < 1e-4


@pytest.mark.parametrize("cache_bytes", [0, 30_000])
def test_threads_that_share_a_search_change_no_score(folder, cache_bytes):
    plain = BroadcastModel(folder, threads=1)
    shared = BroadcastModel(folder, threads=4, cache=Cache(cache_bytes))
    for seed in range(4):
        texts = some_texts(seed, 300)
        expected = plain.score(plain.read(QUERY), texts)
        for part in (texts, texts[:2]):
            scores = shared.score(shared.read(QUERY), part)
            assert np.abs(scores - expected[: len(part)]).max() < 1e-4


def test_threads_that_share_pairs_change_no_score(tmp_path):
    write_model(tmp_path, "title", PairEncoder(random_encoder(replace(SMALL, start="scratch"))))
    plain, shared = (PairModel(tmp_path, threads) for threads in (1, 4))
    texts = some_texts(0, 100)
    scores = shared.score(shared.read(QUERY), texts)
    assert np.abs(scores - plain.score(plain.read(QUERY), texts)).max() < 1e-4


def test_what_comes_later_is_computed_once():
    calls = []
    later = Later(lambda: calls.append(1) or len(calls))
    assert not later.done()
    assert [later.get(), later.get()] == [1, 1]
    assert later.done()


def test_what_failed_is_tried_again():
    answers = iter([ValueError("at first"), 3])

    def compute() -> int:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    later = Later(compute)
    with pytest.raises(ValueError, match="at first"):
        later.get()
    assert not later.done()
    assert later.get() == 3


def test_parts_run_once_each_in_as_many_threads_as_are_free():
    load = Load()
    crew = Crew(3, load)
    meet = threading.Barrier(3, timeout=30)
    seen: list[int] = []

    def run(part: int) -> None:
        if part < 3:
            meet.wait()  # nobody passes before three are at work
        assert load.running <= 3
        seen.append(part)

    crew.each(run, range(20))
    assert sorted(seen) == list(range(20))
    assert load.running == 0


@pytest.mark.parametrize("threads", [1, 3])
def test_what_parts_leave_is_run_once_each_too(threads):
    load = Load()
    crew = Crew(threads, load)
    seen: list[tuple[int, int]] = []

    def run(part: tuple[int, int]) -> list[tuple[int, int]]:
        seen.append(part)
        place, more = part
        return [(place, more - 1)] if more else []

    crew.each(run, [(place, place % 4) for place in range(40)])
    assert sorted(seen) == [(place, more) for place in range(40) for more in range(place % 4 + 1)]
    assert load.running == 0


def test_whoever_is_free_runs_what_another_part_left():
    """The caller, who has read a query, finishes one batch while a helper is at the next."""
    crew = Crew(2, Load())
    begun, finished = threading.Event(), threading.Event()

    def run(part: str) -> list[str]:
        if part == "query":
            assert begun.wait(30)
        elif part == "first":
            return ["rest of the first"]
        elif part == "second":
            begun.set()
            assert finished.wait(30)
        else:
            finished.set()
        return []

    crew.each(run, ["query", "first", "second"])
    assert finished.is_set()


@pytest.mark.parametrize("fails", [False, True])
def test_a_helper_calls_others_while_the_caller_is_busy(fails):
    """Two more cores begin with the texts while the caller still reads the query."""
    load = Load()
    crew = Crew(4, load)
    shared, meet = threading.Event(), threading.Barrier(3, timeout=30)

    def run(part: str) -> list[str]:
        if part == "query":
            assert shared.wait(30)
        elif part == "texts":
            return ["batch"] * 3
        else:
            last = meet.wait() == 0
            shared.set()
            if fails and last:
                raise RuntimeError("broken")
        return []

    with pytest.raises(RuntimeError, match="broken") if fails else nullcontext():
        crew.each(run, ["query", "texts"])
    assert shared.is_set()
    assert load.running == 0


def test_what_a_helper_leaves_as_it_goes_is_not_lost():
    load = Load()
    crew = Crew(2, load)
    meet = threading.Barrier(2, timeout=30)
    seen = []

    def run(part: str) -> list[str]:
        seen.append(part)
        if part != "more":
            meet.wait()
        if threading.current_thread() is not threading.main_thread():
            wait_until(lambda: load.running == 1)  # the caller has found nothing left
            for _ in range(2):
                load.enter()  # others come
            return ["more"]
        return []

    crew.each(run, ["one", "two"])
    assert seen[2:] == ["more"]
    assert load.running == 2


def test_a_search_beside_others_keeps_to_its_own_thread():
    load = Load()
    crew = Crew(2, load)
    load.enter()
    seen: set[int] = set()
    crew.each(lambda _: seen.add(threading.get_ident()), range(50))
    assert seen == {threading.get_ident()}
    assert load.running == 1


def test_helpers_go_when_others_come():
    load = Load()
    crew = Crew(2, load)
    meet = threading.Barrier(2, timeout=30)
    mine, theirs = [], []

    def run(part: int) -> None:
        me = threading.current_thread() is threading.main_thread()
        (mine if me else theirs).append(part)
        if part < 2:
            meet.wait()
            if part == 0:
                load.enter()  # another search begins while both work
            meet.wait()
        elif me:
            wait_until(lambda: load.running == 2)  # the helper is gone: it has all the time to stay

    crew.each(run, range(20))
    assert len(theirs) == 1
    assert load.running == 1


def test_helpers_begin_nothing_once_a_part_failed():
    load = Load()
    crew = Crew(2, load)
    meet = threading.Barrier(2, timeout=30)
    theirs = []

    def run(part: int) -> None:
        if part < 2:
            meet.wait()
        if threading.current_thread() is threading.main_thread():
            raise RuntimeError("broken")
        theirs.append(part)
        wait_until(lambda: load.running == 1)  # the caller has given up

    with pytest.raises(RuntimeError, match="broken"):
        crew.each(run, range(20))
    assert len(theirs) == 1
    assert load.running == 0


def test_helpers_that_find_no_thread_are_neither_counted_nor_waited_for():
    load = Load()
    crew = Crew(2, load)
    go = threading.Event()
    busy = [crew._pool.submit(go.wait, 30) for _ in range(2)]
    seen: list[int] = []
    crew.each(seen.append, range(20))
    assert seen == list(range(20))
    assert load.running == 0
    assert not any(future.done() for future in busy)
    go.set()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("others", [0, 1], ids=["quiet", "another thread computes"])
def test_a_child_process_shares_its_searches_among_threads_of_its_own(others):
    load = Load()
    crew = Crew(2, load)
    crew.each(lambda _: time.sleep(0.001), range(4))  # its thread waits for more
    meet = threading.Barrier(2)
    for _ in range(others):
        other = threading.Thread(target=load.enter)
        other.start()
        other.join()
        load._lock.acquire()
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # ends the child, rather than hang
        seen: list[int] = []

        def run(part: int) -> None:
            if part < 2:
                meet.wait()  # nobody passes before two are at work
            seen.append(part)

        try:
            crew.each(run, range(20))
            os._exit(sorted(seen) != list(range(20)) or load.running != 0)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("failing", [0, 1])
def test_a_part_that_fails_fails_the_whole_and_is_no_longer_counted(failing):
    load = Load()
    crew = Crew(2, load)
    meet = threading.Barrier(2, timeout=30)

    def run(part: int) -> None:
        if part < 2:
            meet.wait()
        if part == failing:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        crew.each(run, range(5))
    assert load.running == 0


def test_no_model_is_said_with_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match="titlecast export"):
        load_model(tmp_path)


def test_an_unknown_architecture_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "retro"}))
    with pytest.raises(ValueError, match="'retro'"):
        load_model(tmp_path)
