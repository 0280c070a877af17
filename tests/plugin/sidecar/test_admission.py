"""The line: what is let in, in which order, and what is refused before it costs anything."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugin.sidecar.admission import FullError, LateError, Line, Work, estimate
from reranker import Hit


class World:
    """A line by a clock that only computing moves on, and what became of each search."""

    def __init__(self, concurrent: int = 1, waiting: int = 100, tokens: int = 10**9) -> None:
        self.now = 0.0
        self.line = Line(concurrent, waiting, tokens, clock=lambda: self.now)
        self.begun: list[str] = []
        self.done: dict[str, str] = {}
        self.retry_after: dict[str, int] = {}
        self._go: dict[str, asyncio.Event] = {}

    async def search(self, name: str, work: Work, deadline: float | None = None) -> None:
        self._go[name] = asyncio.Event()
        try:
            async with self.line.turn(work, deadline):
                self.begun.append(name)
                await self._go[name].wait()
            self.done[name] = "computed"
        except (FullError, LateError) as error:
            self.done[name] = type(error).__name__
            self.retry_after[name] = error.retry_after

    async def enter(
        self, name: str, tokens: int = 100, deadline: float | None = None, titles: int = 0
    ) -> asyncio.Task[None]:
        work = Work(titles, tokens - titles)
        task = asyncio.ensure_future(self.search(name, work, deadline))
        await settle()
        return task

    async def finish(self, name: str, at: float | None = None) -> None:
        self.now = self.now if at is None else at
        self._go[name].set()
        await settle()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


def test_so_many_are_computed_and_the_others_wait() -> None:
    async def test() -> None:
        world = World(concurrent=2)
        for name in "abc":
            await world.enter(name)
        assert world.begun == ["a", "b"]
        assert (world.line.computed, world.line.waiting, world.line.waiting_tokens) == (2, 1, 100)
        await world.finish("b")
        assert world.begun == ["a", "b", "c"]
        await world.finish("a")
        await world.finish("c")
        assert set(world.done.values()) == {"computed"}
        assert (world.line.computed, world.line.waiting) == (0, 0)

    run(test())


def test_the_line_is_bounded_in_searches_and_in_work() -> None:
    async def test() -> None:
        world = World(waiting=2, tokens=1000)
        await world.enter("computed", 5000)
        await world.enter("large", 5000)  # nobody waits: however large it is
        await world.enter("more", 1)
        assert world.done == {"more": "FullError"}
        assert world.retry_after["more"] >= 1
        await world.finish("computed")
        await world.enter("small", 600)
        await world.enter("too much", 600)
        await world.enter("fits", 400)
        await world.enter("one too many", 0)
        assert world.done["too much"] == world.done["one too many"] == "FullError"
        for name in ("large", "small", "fits"):
            await world.finish(name)
            assert world.done[name] == "computed"

    run(test())


def test_a_token_of_small_searches_says_little_of_large_ones() -> None:
    async def test() -> None:
        world = World()
        line, large = world.line, Work(0, 3000)
        line.observe(2, 0.01)  # also where it comes first
        for _ in range(10):
            line.observe(3000, 1.0)
        for _ in range(100):
            line.observe(2, 0.01)
        await world.enter("computed", 3000)
        line.check(large, deadline=3.5)  # a second in line, and one or two of its own
        with pytest.raises(FullError, match=r"would wait 1... ms of the 1900 it has"):
            line.check(large, deadline=1.9)
        for _ in range(10):  # the machine has more to do
            line.observe(3000, 3.0)
        with pytest.raises(FullError, match=r"would wait 2... ms"):
            line.check(large, deadline=3.5)
        await world.finish("computed")

    run(test())


def test_small_work_goes_first_but_nobody_waits_for_ever() -> None:
    async def test() -> None:
        world = World()
        world.line.observe(1000, 1.0)  # 1 ms a token
        await world.enter("computed")
        await world.enter("large", 2000)
        await world.enter("small", 100)
        await world.finish("computed", at=0.1)
        assert world.begun[-1] == "small"
        # One small search after the other: each arrives just before the one before it is done.
        count = 0
        while "large" not in world.begun:
            before = world.begun[-1]
            count += 1
            await world.enter(f"small {count}", 100)
            await world.finish(before, at=world.now + 0.1)
            assert count < 1000
        assert 50 < count < 100  # about 8 s of them: 4 times the 2 s that it takes
        await world.finish("large")

    run(test())


def test_equal_searches_come_in_their_order() -> None:
    async def test() -> None:
        world = World()
        world.line.observe(1000, 1.0)
        for place in range(10):
            world.now += 0.01
            await world.enter(str(place))
        for place in range(10):
            await world.finish(str(place))
        assert world.begun == [str(place) for place in range(10)]

    run(test())


def test_whoever_cannot_be_in_time_is_refused_at_once() -> None:
    async def test() -> None:
        world = World()
        world.line.observe(1000, 1.0)
        await world.enter("computed", 1000)
        await world.enter("waits", 1000)
        await world.enter("hurried", 1000, deadline=3.0)  # 2 s of 3 in line
        assert world.done == {"hurried": "FullError"}
        assert world.retry_after["hurried"] == 2
        await world.enter("has time", 1000, deadline=4.1)
        await world.enter("small", 100, deadline=2.5)  # overtakes: its turn comes after 1 s
        await world.enter("long titles", 700, deadline=1.5, titles=600)
        assert world.done == {"hurried": "FullError", "long titles": "FullError"}
        await world.finish("computed", at=1.0)
        assert world.begun == ["computed", "small"]
        for name in ("small", "waits", "has time"):
            await world.finish(name)
        assert world.done["has time"] == "computed"

    run(test())


def test_checking_tells_what_joining_would_do_and_changes_nothing() -> None:
    async def test() -> None:
        world = World(waiting=1)
        world.line.observe(1000, 1.0)
        world.line.check(Work(0, 5000), deadline=0.001)  # nobody is there
        await world.enter("computed", 1000)
        world.line.check(Work(0, 100), deadline=2.1)
        with pytest.raises(FullError, match="1000 ms of the 1900"):
            world.line.check(Work(0, 100), deadline=1.9)
        await world.enter("waits", 1000)
        with pytest.raises(FullError, match="MAX_WAITING"):
            world.line.check(Work(0, 0))
        assert (world.line.computed, world.line.waiting) == (1, 1)
        for name in ("computed", "waits"):
            await world.finish(name)

    run(test())


def test_before_anything_was_measured_nobody_is_refused_for_time() -> None:
    async def test() -> None:
        world = World()
        await world.enter("computed")
        await world.enter("hurried", 10**6, deadline=0.001)
        assert world.line.waiting == 1
        await world.finish("computed")
        await world.finish("hurried")
        assert world.done["hurried"] == "computed"

    run(test())


def test_what_is_late_in_line_is_dropped_and_makes_room() -> None:
    async def test() -> None:
        world = World(waiting=1)
        await world.enter("computed")
        await world.enter("late", deadline=1.0)
        await world.enter("no room")
        world.now = 2.0
        await world.enter("room")  # its arrival alone shows that the other one is late
        assert world.done == {"no room": "FullError", "late": "LateError"}
        await world.finish("computed")
        await world.finish("room")
        assert world.begun == ["computed", "room"]

    run(test())


def test_without_a_line_the_shortest_time_is_tried() -> None:
    async def test() -> None:
        world = World()
        world.line.observe(1, 1000.0)
        world.now = 5.0
        await world.enter("late already", deadline=4.0)
        await world.finish("late already")
        assert world.done == {"late already": "computed"}

    run(test())


@pytest.mark.parametrize("moment", ["waiting", "called", "computed"])
def test_whoever_goes_away_leaves_the_line(moment: str) -> None:
    async def test() -> None:
        world = World()
        await world.enter("first")
        gone = await world.enter("gone")
        await world.enter("last")
        if moment == "called":  # its turn came, but it has not noticed yet
            world._go["first"].set()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        elif moment == "computed":
            await world.finish("first")
            assert world.begun == ["first", "gone"]
        gone.cancel()
        await settle()
        if moment == "waiting":
            await world.finish("first")
        assert world.begun[-1] == "last"
        await world.finish("last")
        assert (world.line.computed, world.line.waiting) == (0, 0)

    run(test())


def test_passages_count_as_far_as_searches_like_it_read_them() -> None:
    line = Line(1, 1, 1000)
    assert line.expect(Work(100, 2000)) == Work(100, 2000)  # nothing is known yet
    line.observe_passages(2000, 500)
    assert line.expect(Work(100, 2000)) == Work(100, 500)
    assert line.expect(Work(100, 0)) == Work(100, 0)
    line.observe_passages(200, 200)  # small ones are a small part of the work
    assert 500 < line.expect(Work(0, 2000)).passages < 700
    for _ in range(100):
        line.observe_passages(1000, 1000)
    assert line.expect(Work(0, 2000)).passages == pytest.approx(2000, rel=0.01)
    line.observe_passages(1, 10**6)  # more than was foreseen
    assert line.expect(Work(0, 2000)).passages > 2000


searches = st.lists(
    st.tuples(
        st.integers(0, 3000), st.none() | st.floats(0.01, 5), st.sampled_from(["go", "leave"])
    ),
    max_size=30,
)


@given(searches=searches, seed=st.integers(0, 10), concurrent=st.integers(1, 3))
def test_every_search_ends_and_the_bounds_hold(
    searches: list[tuple[int, float | None, str]], seed: int, concurrent: int
) -> None:
    async def test() -> None:
        rng = random.Random(seed)
        world = World(concurrent, waiting=5, tokens=4000)
        world.line.observe(1000, 1.0)
        tasks = []
        for place, (tokens, left, way) in enumerate(searches):
            deadline = None if left is None else world.now + left
            task = await world.enter(str(place), tokens, deadline)
            tasks.append(task)
            if way == "leave":
                task.cancel()
                await settle()
            assert world.line.computed <= concurrent
            assert world.line.waiting <= 5
            assert world.line.waiting <= 1 or world.line.waiting_tokens <= 4000 + 3000
            # No slot stays empty while somebody waits.
            assert world.line.computed == concurrent or world.line.waiting == 0
            running = [name for name in world.begun if name not in world.done]
            if running and rng.random() < 0.5:
                await world.finish(rng.choice(running), at=world.now + rng.random())
        while world.line.computed:
            for name in world.begun:
                await world.finish(name)
        assert all(task.done() for task in tasks)
        assert (world.line.computed, world.line.waiting, world.line.waiting_tokens) == (0, 0, 0)

    run(test())


def test_work_is_what_the_models_would_read() -> None:
    hits = [Hit("a", "t" * 40, "p" * 400), Hit("b", "t" * 40, "p" * 400)]
    both = estimate("q" * 40, hits, 2)
    assert both.titles == 12 + 12  # equal titles are read once
    assert both.passages == 2 * (2 + 441 // 4)
    assert estimate("q" * 40, hits, 1).passages == both.passages / 2
    assert estimate("q", hits, 0).passages == 0
    assert estimate("q" * 40, hits, 2, most_tokens=10**6) == both
    assert estimate("q" * 40, hits, 2, most_tokens=5) == Work(7 + 12, 2 * 7)
    huge = estimate("q" * 10**6, [Hit("a", "t" * 10**6, "p" * 10**6)], 10**9)
    assert huge == Work(256 + 64, 1024)
    assert estimate("\ud800", [Hit("a", "\ud800", "\ud800")], 1).tokens < 20
    assert estimate("merge", [], 5).passages == 0
