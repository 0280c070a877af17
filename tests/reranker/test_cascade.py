"""The cascade: all hits in one order, passages only where they count, time kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reranker import Cascade, Hit
from reranker.cascade import Cancelled, Cost
from reranker.coverage import Coverage, Covered
from reranker.fusion import Fusion, squash, standardise
from reranker.stopping import Stopping
from tests.reranker.conftest import WORDS

if TYPE_CHECKING:
    from collections.abc import Sequence


QUERY = "merge sorted lists"
words = st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join)
hits_ = st.lists(
    st.builds(Hit, st.just("x"), words, words, st.floats() | st.floats(0, 30)), max_size=14
)


@pytest.fixture(scope="module")
def cascade(small_models) -> Cascade:
    return Cascade.load(small_models, threads=1)


def some_hits(count: int, seed: int = 0) -> list[Hit]:
    rng = np.random.default_rng(seed)
    return [
        Hit(
            f"h{place}",
            " ".join(rng.choice(WORDS, 4)),
            " ".join(rng.choice(WORDS, 12)),
            float(30 - place),
        )
        for place in range(count)
    ]


def covered_by(cascade: Cascade, hits: list[Hit]) -> Covered:
    covers = Coverage(cascade.passage.tokenizer.vocabulary)
    return covers.of(QUERY, [f"{hit.title} {hit.passage}" for hit in hits])


def coverage_of(cascade: Cascade, hits: list[Hit]) -> np.ndarray:
    """The share of the query's words that each hit holds; some hold more than others."""
    shares = covered_by(cascade, hits).shares
    assert len(set(shares)) > 2  # else it would show nothing
    return shares


def first_stage_of(cascade: Cascade, hits: list[Hit]) -> np.ndarray:
    """The first stage's scores over texts: the longer the query, the more they count."""
    tokens = cascade.passage.tokenizer.encode_queries([QUERY], 256)[0].ids[1:-1]
    assert 0 < len(tokens) < 20
    return standardise(np.array([hit.score for hit in hits])) * len(tokens) / 10


@pytest.mark.parametrize(
    ("opening", "limit", "counts"),
    [("", 6.0, 3.3**1.5), ("", 4.0, 4.0), ("which ", 6.0, 2.0), ("", 2.0, 2.0)],
)
def test_a_long_statement_trusts_the_first_stage_as_far_as_the_fusion_says(
    cascade, monkeypatch, opening, limit, counts
):
    query = opening + "merge sorted lists " * 11
    for stage in (cascade.title, cascade.passage):
        monkeypatch.setitem(stage.config, "max_query_tokens", 40)
    assert cascade.title.read(query).tokens == len(query.split()) >= 33
    hits = some_hits(8)
    # Nothing but the first stage counts.
    fusion = Fusion(0, 1, 0, 0, 1, 0, 1, most_trust=limit)
    result = Cascade(cascade.title, cascade.passage, fusion).rerank(query, hits, passage_depth=8)
    usual = standardise(np.array([hit.score for hit in hits]))
    expected = 2 + squash(usual * counts)
    assert [hit.score for hit in result.hits] == pytest.approx(expected.tolist(), abs=1e-6)
    # Over titles alone a query's length says nothing.
    titles = [hit._replace(passage="") for hit in hits]
    alone = Cascade(cascade.title, cascade.passage, fusion).rerank(query, titles, passage_depth=0)
    expected = 1 + squash(usual)
    assert [hit.score for hit in alone.hits] == pytest.approx(expected.tolist(), abs=1e-6)


@given(hits=hits_, depth=st.integers(0, 20))
@settings(deadline=None, max_examples=60)
def test_every_hit_once_in_descending_positive_scores(cascade, hits, depth):
    result = cascade.rerank(QUERY, hits, depth)
    assert sorted(hit.index for hit in result.hits) == list(range(len(hits)))
    scores = [hit.score for hit in result.hits]
    assert all(score > 0 for score in scores)
    assert scores == sorted(scores, reverse=True)
    read = [hit.passage_score is not None for hit in result.hits]
    assert read == sorted(read, reverse=True)
    readable = sum(bool(hit.title or hit.passage) for hit in hits)
    assert sum(read) == min(depth, readable)
    assert result.complete


def test_the_order_is_the_one_of_the_slow_twin(cascade):
    hits = some_hits(12)
    first = first_stage_of(cascade, hits)
    title = [float(cascade.title.score(QUERY, [hit.title])[0]) for hit in hits]
    share = coverage_of(cascade, hits)
    f = cascade.fusion
    stage_one = [
        f.title * title[i] + f.title_first_stage * first[i] + f.title_coverage * share[i]
        for i in range(12)
    ]
    by_title = sorted(range(12), key=lambda i: -stage_one[i])

    def final(i: int) -> float:
        passage = float(cascade.passage.score(QUERY, [hits[i].title], [hits[i].passage])[0])
        return (
            f.passage * passage
            + f.passage_title * title[i]
            + f.passage_first_stage * first[i]
            + f.passage_coverage * share[i]
        )

    expected = sorted(by_title[:5], key=lambda i: -final(i)) + by_title[5:]
    result = cascade.rerank(QUERY, hits, passage_depth=5)
    assert [hit.index for hit in result.hits] == expected
    assert [stage.name for stage in result.stages] == ["title", "passage"]
    assert [stage.scored for stage in result.stages] == [12, 5]
    by_index = {hit.index: hit for hit in result.hits}
    assert [by_index[i].title_rank for i in by_title] == list(range(1, 13))
    assert [by_index[i].passage_rank for i in expected[:5]] == [1, 2, 3, 4, 5]
    assert [by_index[i].first_stage_rank for i in range(12)] == list(range(1, 13))


def test_of_a_huge_text_only_the_start_is_looked_at_for_the_query_s_words(cascade):
    config = cascade.passage.config
    limit = 8 * config["max_passage_tokens"] * config["max_windows"]
    filling = "of " * limit
    hits = [
        Hit("start", "", f"{QUERY} {filling}", 1.0),
        Hit("end", "", f"{filling} {QUERY}", 1.0),
    ]
    seen: list[str] = []

    class Spy(Coverage):
        def of(self, query: str, texts: Sequence[str]) -> Covered:
            seen.extend(texts)
            return super().of(query, texts)

    spied = Cascade(cascade.title, cascade.passage, cascade.fusion)
    spied._coverage = Spy(cascade.passage.tokenizer.vocabulary)
    spied.rerank(QUERY, hits, passage_depth=0)
    assert [QUERY in text for text in seen] == [True, False]
    assert [len(text) for text in seen] == [limit + 1] * 2


def test_coverage_may_count_beside_passages_alone(cascade):
    hits = some_hits(12)
    weights = cascade.fusion._replace(title_coverage=0.0)
    result = Cascade(cascade.title, cascade.passage, weights).rerank(QUERY, hits, 12)
    share = coverage_of(cascade, hits)
    assert [hit.coverage for hit in result.hits] == [share[hit.index] for hit in result.hits]


def test_coverage_counts_nowhere_where_no_hit_has_a_passage(cascade):
    hits = [hit._replace(passage=" ") for hit in some_hits(12)]
    coverage_of(cascade, hits)  # there would be some
    weights = cascade.fusion._replace(title_coverage=0.0, passage_coverage=0.0)
    without = Cascade(cascade.title, cascade.passage, weights)
    result = cascade.rerank(QUERY, hits, 12)
    assert result.hits == without.rerank(QUERY, hits, 12).hits
    assert {hit.coverage for hit in result.hits} == {0.0}


def naming(cascade: Cascade, weight: float, stopping: Stopping | None = None) -> Cascade:
    """The same cascade, in which links count so much."""
    return Cascade(
        cascade.title, cascade.passage, cascade.fusion._replace(mention=weight), stopping
    )


def hits_that_lack_a_word(count: int) -> list[Hit]:
    """Hits of which none holds the query's last word, so that another page may add it."""
    *_, last = QUERY.split()
    return [
        hit._replace(title=hit.title.replace(last, "of"), passage=hit.passage.replace(last, "of"))
        for hit in some_hits(count)
    ]


def adding_a_word(hit: Hit) -> Hit:
    """The same hit with a name and the query's last word."""
    *_, last = QUERY.split()
    return hit._replace(title=f"{hit.title} Kahn", passage=f"{hit.passage} {last}")


def chain_of_hits(count: int, seed: int = 3) -> list[Hit]:
    """Hits with names, every passage naming some other hit."""
    rng = np.random.default_rng(seed)
    hits = [hit._replace(title=f"{hit.title} No{at}") for at, hit in enumerate(some_hits(count))]
    others = rng.integers(count, size=count).tolist()
    return [
        hit._replace(passage=f"{hit.passage} {hits[other].title}")
        for hit, other in zip(hits, others, strict=True)
    ]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6])
@pytest.mark.parametrize("weight", [0.5, 4.0, 12.0])
def test_what_has_links_comes_as_in_the_slow_twin(cascade, weight, share):
    rule = Stopping(1.0, 0.5, share)
    hits = chain_of_hits(30)
    names = [hit.title for hit in hits]
    first = first_stage_of(cascade, hits)
    title = cascade.title.score(QUERY, names)
    passage = cascade.passage.score(QUERY, names, [hit.passage for hit in hits])
    held = coverage_of(cascade, hits)
    f = cascade.fusion
    promise = f.title * title + f.title_first_stage * first + f.title_coverage * held
    final = f.passage * passage + f.passage_title * title + f.passage_first_stage * first
    final += f.passage_coverage * held
    covered = covered_by(cascade, hits)

    def link(i: int, j: int) -> float:
        """What hit i adds to the passage j that was read, where one names the other."""
        if i == j:
            return 0.0
        named, naming = names[i] in hits[j].passage, names[j] in hits[i].passage
        return (named + naming) * covered.added_to(j)[i] + named * covered.lacked_by(j) / 3

    read: list[int] = []
    gain = np.zeros(30)
    settled = False
    while len(read) < 12:
        unread = sorted(set(range(30)) - set(read), key=lambda i: -(promise[i] + gain[i]))
        if read:
            height = (final[read] - promise[read]).mean()
            rest = unread[: 12 - len(read)]
            left = np.exp(height + promise[rest] + gain[rest] + 0.125).sum()
            settled = left / (left + np.exp(final[read]).sum()) < share
            if settled:
                break
        read += unread[:4]
        likely = np.exp(final[read]) / np.exp(final[read]).sum()
        for i in range(30):
            gain[i] = weight * sum(p * link(i, j) for p, j in zip(likely, read, strict=True))
    rest = [i for i in range(30) if i not in read]
    lifted = list(final)
    for i in read:
        by = [final[j] for j in read if link(i, j) > 0]
        if by and final[i] < max(by):  # up to right behind the best of those it is linked to
            lifted[i] = min(final[i] + gain[i], max(by) - 1e-9)
    if settled:  # the others by what they were expected to score
        for i in rest:
            lifted[i] = height + promise[i] + gain[i] + 0.125
        expected = sorted(range(30), key=lambda i: -lifted[i])
    else:
        expected = sorted(read, key=lambda i: -lifted[i])
        expected += sorted(rest, key=lambda i: -(promise[i] + gain[i]))
    result = naming(cascade, weight, rule).rerank(QUERY, hits, passage_depth=12)
    assert result.stages[1].scored == len(read)
    assert [hit.index for hit in result.hits] == expected
    gained = [lifted[i] - final[i] if i in read else gain[i] for i in expected]
    assert [hit.mention for hit in result.hits] == pytest.approx(gained, abs=1e-6)
    assert [hit.coverage for hit in result.hits] == pytest.approx([held[i] for i in expected])
    usual = Cascade(cascade.title, cascade.passage, f, rule).rerank(QUERY, hits, passage_depth=12)
    assert [hit.index for hit in usual.hits] != expected  # else this would show nothing


def test_a_page_that_is_named_stays_behind_the_one_that_names_it(cascade):
    hits = hits_that_lack_a_word(12)
    usual = [hit.index for hit in cascade.rerank(QUERY, hits, passage_depth=12).hits]
    best, worst = usual[0], usual[-1]
    hits[worst] = adding_a_word(hits[worst])
    hits[best] = hits[best]._replace(passage=f"{hits[best].passage} ({hits[worst].title})")
    before = [hit.index for hit in cascade.rerank(QUERY, hits, passage_depth=12).hits]
    assert before.index(worst) > before.index(best) + 1
    after = [hit.index for hit in naming(cascade, 1e6).rerank(QUERY, hits, passage_depth=12).hits]
    assert after.index(worst) == after.index(best) + 1
    after.remove(worst)
    before.remove(worst)
    assert after == before  # the others as they were


@pytest.mark.parametrize("names_it", [False, True])
def test_an_unread_page_that_the_best_passage_names_or_that_names_it_is_read(cascade, names_it):
    hits = hits_that_lack_a_word(30)
    last = cascade.rerank(QUERY, hits, passage_depth=0).hits[-1].index
    best = cascade.rerank(QUERY, hits, passage_depth=4).hits[0].index
    hits[last] = adding_a_word(hits[last])
    one, other = (last, best) if names_it else (best, last)
    hits[one] = hits[one]._replace(passage=f"{hits[one].passage} ({hits[other].title})")

    def reads_last(weight: float) -> bool:
        result = naming(cascade, weight).rerank(QUERY, hits, passage_depth=8)
        assert result.stages[1].scored == 8
        return next(hit for hit in result.hits if hit.index == last).passage_score is not None

    assert reads_last(50.0)
    assert not reads_last(0.0)


@pytest.mark.parametrize("seed", range(4))
def test_a_deadline_that_is_met_changes_nothing_of_what_is_named(slow, seed):
    hits = chain_of_hits(40, seed)
    slow.fusion = slow.fusion._replace(mention=30.0)
    before, calls = slow.passage.now, slow.passage.calls
    at_leisure = slow.rerank(QUERY, hits, 20)
    took = (slow.passage.now - before) * 1000
    usual = slow.passage.calls - calls
    chunked = 0
    for share in np.arange(1.0, 3, 0.1):
        calls = slow.passage.calls
        result = slow.rerank(QUERY, hits, 20, deadline_ms=share * took)
        if result.complete:
            assert [hit.id for hit in result.hits] == [hit.id for hit in at_leisure.hits]
            chunked += slow.passage.calls - calls > usual
    assert chunked > 0


def test_hits_without_any_passage_are_fused_by_weights_of_their_own(cascade):
    texts = some_hits(12)
    hits = [hit._replace(passage=" ") for hit in texts]
    first = standardise(np.array([hit.score for hit in hits]))
    title = np.array([cascade.title.score(QUERY, [hit.title])[0] for hit in hits], dtype=float)
    f = cascade.fusion
    expected = np.argsort(-(f.title_only * title + f.title_only_first_stage * first))
    assert (
        expected.tolist() != np.argsort(-(f.title * title + f.title_first_stage * first)).tolist()
    )
    result = cascade.rerank(QUERY, hits, passage_depth=0)
    assert [hit.index for hit in result.hits] == expected.tolist()
    # One hit with a passage: the first stage searched texts.
    one = [texts[0], *hits[1:]]
    share = coverage_of(cascade, one)
    first = first_stage_of(cascade, one)
    usual = np.argsort(-(f.title * title + f.title_first_stage * first + f.title_coverage * share))
    result = cascade.rerank(QUERY, one, passage_depth=0)
    assert [hit.index for hit in result.hits] == usual.tolist()


@pytest.mark.parametrize("depth", [0, 2, 5])
def test_hits_that_are_equal_stay_in_the_engine_s_order(cascade, depth):
    hits = [Hit(str(place), "merge lists", "a heap", 1.0) for place in range(5)]
    result = cascade.rerank(QUERY, hits, passage_depth=depth)
    assert [hit.index for hit in result.hits] == [0, 1, 2, 3, 4]
    assert [hit.title_rank for hit in result.hits] == [1, 2, 3, 4, 5]
    read = [hit.passage_rank for hit in result.hits]
    assert read == [*range(1, depth + 1), *[None] * (5 - depth)]


def test_depth_zero_is_titles_only(cascade):
    result = cascade.rerank(QUERY, some_hits(6), passage_depth=0)
    assert [stage.name for stage in result.stages] == ["title"]
    assert all(hit.passage_score is None and 1 < hit.score < 2 for hit in result.hits)


def test_a_hit_without_a_title_keeps_what_the_first_stage_says(cascade):
    hits = [hit._replace(title="", passage="of") for hit in some_hits(5)]
    result = cascade.rerank(QUERY, hits, passage_depth=0)
    assert [hit.index for hit in result.hits] == [0, 1, 2, 3, 4]
    assert all(hit.title_score is None for hit in result.hits)
    hits[2] = hits[2]._replace(title="heap")
    assert cascade.rerank(QUERY, hits, passage_depth=0).stages[0].scored == 1


def test_a_hit_without_any_text_takes_no_place_in_the_passage_stage(cascade):
    hits = [Hit("empty", "", "", 99.0), *some_hits(3)]
    result = cascade.rerank(QUERY, hits, passage_depth=3)
    assert result.hits[-1].id == "empty"
    assert result.stages[1].scored == 3


def test_nothing_to_rank(cascade):
    assert cascade.rerank(QUERY, []).hits == []


def test_a_chunk_leaves_time_for_the_answer(cascade):
    lone = Cascade(cascade.title, cascade.passage, cascade.fusion)
    lone._cost = Cost(1.0)  # ms a token
    assert lone._fitting([70.0, 70.0], 100.0) == 1
    assert lone._fitting([80.0, 80.0], 100.0) == 0
    assert lone._fitting([20.0] * 4, 100.0) == 2


def test_a_used_deadline_leaves_passages_out_and_says_so(cascade):
    hits = some_hits(10)
    result = cascade.rerank(QUERY, hits, passage_depth=10, deadline_ms=1e-6)
    assert not result.complete
    assert "deadline" in result.stages[1].skipped
    assert result.stages[1].scored == 0
    titles_only = cascade.rerank(QUERY, hits, passage_depth=0)
    assert [hit.index for hit in result.hits] == [hit.index for hit in titles_only.hits]


class Slow:
    """A stage whose every token moves a clock on, and that counts its calls."""

    def __init__(self, stage: Any, ms_per_token: float) -> None:
        self._stage = stage
        self.ms_per_token = ms_per_token
        self.now = 0.0  # seconds
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stage, name)

    def score_read(self, *args: Any) -> Any:
        scores = self._stage.score_read(*args)
        self.now += scores.tokens * self.ms_per_token / 1000
        self.calls += 1
        return scores


@pytest.fixture
def slow(cascade, monkeypatch) -> Cascade:
    """A cascade of its own, whose passages take 2 ms a token by the clock that it sees."""
    passage = Slow(cascade.passage, 2.0)
    monkeypatch.setattr("reranker.cascade.time.monotonic", lambda: passage.now)
    slow = Cascade(cascade.title, passage, cascade.fusion)  # type: ignore[arg-type]
    for _ in range(20):  # until the cost of a token is known
        slow.rerank(QUERY, some_hits(16), passage_depth=16)
    return slow


def test_passages_go_in_the_order_of_promise_until_the_time_is_used(slow):
    hits = some_hits(16)
    before = slow.passage.now
    assert slow.rerank(QUERY, hits, passage_depth=16).complete
    whole = (slow.passage.now - before) * 1000
    before_ = 0
    for share in (0.2, 0.4, 0.6, 0.8):
        before = slow.passage.now
        result = slow.rerank(QUERY, hits, passage_depth=16, deadline_ms=share * whole)
        used = (slow.passage.now - before) * 1000
        scored = result.stages[1].scored
        # Nearly all the time and no more: not even the shortest passage would have fitted in.
        assert 0.5 * share * whole < used <= share * whole
        assert before_ < scored < 16
        assert not result.complete
        assert result.stages[1].skipped == f"deadline: {16 - scored} passages left unscored"
        assert result.stages[1].unscored == 16 - scored
        ranks = sorted(hit.title_rank or 0 for hit in result.hits[:scored])
        assert ranks == list(range(1, scored + 1))
        before_ = scored
    assert slow.rerank(QUERY, hits, passage_depth=16, deadline_ms=2 * whole).complete


def test_titles_take_of_the_deadline_too(cascade, monkeypatch):
    titles, passages = Slow(cascade.title, 4.0), Slow(cascade.passage, 2.0)
    monkeypatch.setattr("reranker.cascade.time.monotonic", lambda: titles.now + passages.now)
    slow = Cascade(titles, passages, cascade.fusion)  # type: ignore[arg-type]
    hits = some_hits(16)
    for _ in range(20):  # until the cost of a token is known
        slow.rerank(QUERY, hits, passage_depth=16)
    before, titles_before = titles.now + passages.now, titles.now
    slow.rerank(QUERY, hits, passage_depth=16)
    whole = (titles.now + passages.now - before) * 1000
    assert (titles.now - titles_before) * 1000 > 0.3 * whole
    for share in (0.6, 0.7, 0.8, 0.9):
        before = titles.now + passages.now
        result = slow.rerank(QUERY, hits, passage_depth=16, deadline_ms=share * whole)
        assert (titles.now + passages.now - before) * 1000 <= share * whole
        assert 0 < result.stages[1].scored < 16


def test_searches_without_any_time_left_say_nothing_of_a_cost():
    cost = Cost()
    for milliseconds in (50, 150, 100):
        cost.observe(1000, milliseconds)
    expected = cost.of(1000)
    for left in (0, -3, 49):  # too little for the cheapest that was ever seen
        cost.doubt(1000, left)
    assert cost.of(1000) == expected
    cost.doubt(1000, 51)
    assert cost.of(1000) < expected


def test_a_cost_that_was_measured_too_high_does_not_end_the_passage_stage(slow):
    hits = some_hits(8)
    for _ in range(20):
        slow._cost.observe(600, 6e6)  # as after a pause of the machine
    deadlines = [slow.rerank(QUERY, hits, 8, deadline_ms=10_000) for _ in range(400)]
    assert deadlines[0].stages[1].scored == 0
    assert deadlines[-1].complete


def test_deadlines_that_nothing_can_meet_do_not_make_tokens_cheap(slow):
    hits = some_hits(8)
    expected = slow._cost.of(100)
    for _ in range(150):
        assert slow.rerank(QUERY, hits, 8, deadline_ms=0.001).stages[1].scored == 0
    assert slow._cost.of(100) >= 0.5 * expected


def test_the_first_measurement_replaces_the_guess():
    cost = Cost(first_guess_ms=1000)
    assert cost.of(10) == 10_000
    cost.observe(600, 20)
    assert cost.of(600) == pytest.approx(20)
    for milliseconds in (10, 30) * 50:
        cost.observe(600, milliseconds)
    assert cost.of(600) > 30  # rather too high than too low


def test_many_chunks_of_a_few_tokens_do_not_make_large_ones_dear():
    cost = Cost()
    cost.observe(600, 60)
    for _ in range(50):
        cost.observe(2, 2)  # what any call costs
    assert 60 <= cost.of(600) < 150


@given(text=st.text(max_size=3000) | st.text("\ud800x", max_size=50))
def test_a_passages_length_is_estimated_whatever_it_is(cascade, text):
    estimate = cascade._tokens_of(Hit("a", text, text))
    assert 2 <= estimate <= 24 * 3  # its windows


@pytest.mark.parametrize("after", range(5))
def test_nothing_is_computed_once_the_caller_is_gone(cascade, after):
    titles, passages = Slow(cascade.title, 0), Slow(cascade.passage, 0)
    counted = Cascade(titles, passages, cascade.fusion)  # type: ignore[arg-type]
    hits = some_hits(300)  # two chunks of titles, then three of passages
    with pytest.raises(Cancelled):
        counted.rerank(QUERY, hits, 12, cancelled=lambda: titles.calls + passages.calls >= after)
    assert titles.calls + passages.calls == after
    counted.rerank(QUERY, hits, 12)
    assert (titles.calls, passages.calls) == (min(after, 2) + 2, max(after - 2, 0) + 3)


def test_chunks_change_no_score(cascade):
    hits = some_hits(300)
    titles = cascade.title.score(QUERY, [hit.title for hit in hits])
    passages = cascade.passage.score(
        QUERY, [hit.title for hit in hits], [hit.passage for hit in hits]
    )
    result = cascade.rerank(QUERY, hits, 30)
    for hit in result.hits:
        assert hit.title_score == pytest.approx(titles[hit.index], abs=1e-4)
        if hit.passage_score is not None:
            assert hit.passage_score == pytest.approx(passages[hit.index], abs=1e-4)
    assert result.stages[0].tokens > 300
    assert result.stages[1].tokens > 30
    assert sum(stage.unscored for stage in result.stages) == 0


def test_a_deadline_far_away_changes_no_order(cascade):
    hits = some_hits(10)
    one = cascade.rerank(QUERY, hits, passage_depth=7)
    two = cascade.rerank(QUERY, hits, passage_depth=7, deadline_ms=1e9)
    assert [hit.id for hit in one.hits] == [hit.id for hit in two.hits]
    assert two.complete


SHARES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 1.0)


def stopping(cascade: Cascade, share: float) -> Cascade:
    """The same cascade with a rule: final scores are about as far apart as the promises."""
    return Cascade(cascade.title, cascade.passage, cascade.fusion, Stopping(1.0, 0.5, share))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", SHARES)
def test_the_passage_stage_stops_where_the_slow_twin_does(cascade, share, seed):
    hits = some_hits(40, seed)
    whole = cascade.rerank(QUERY, hits, passage_depth=20)
    f = cascade.fusion
    first = first_stage_of(cascade, hits)
    by_index = {hit.index: hit for hit in whole.hits}
    order = sorted(range(40), key=lambda i: by_index[i].title_rank or 0)
    title = np.array([by_index[i].title_score for i in order])
    z = first[order]
    held = coverage_of(cascade, hits)[order]
    promise = f.title * title + f.title_first_stage * z + f.title_coverage * held
    passage = np.array([by_index[i].passage_score for i in order[:20]])
    final = f.passage * passage + f.passage_title * title[:20] + f.passage_first_stage * z[:20]
    final += f.passage_coverage * held[:20]
    expected = 20
    for read in (4, 8, 12, 16):
        height = (final[:read] - promise[:read]).mean()
        left = np.exp(height + promise[read:20] + 0.125).sum()
        if left / (left + np.exp(final[:read]).sum()) < share:
            expected = read
            break
    result = stopping(cascade, share).rerank(QUERY, hits, passage_depth=20)
    report = result.stages[1]
    assert report.scored == expected
    assert report.unscored == 0
    assert result.complete  # what is settled needed no time
    left_out = 20 - expected
    assert report.skipped == (f"settled: {left_out} passages left unscored" if left_out else "")
    asked = stopping(cascade, share).rerank(QUERY, hits, passage_depth=20, early_stop=False)
    assert asked.hits == whole.hits
    assert asked.stages[1].scored == 20
    placed = sorted(range(expected), key=lambda at: -final[at])
    if left_out:  # the others stand where they were expected to
        hoped = [*final[:expected], *(height + promise[expected:] + 0.125)]
        placed = sorted(range(40), key=lambda at: -hoped[at])
    assert [hit.index for hit in result.hits][: len(placed)] == [order[at] for at in placed]
    assert [hit.index for hit in result.hits][len(placed) :] == order[len(placed) :]
    assert [int(hit.score) for hit in result.hits] == [2] * len(placed) + [1] * (40 - len(placed))
    unread = [hit for hit in result.hits if hit.passage_score is None]
    assert len(unread) == 40 - expected
    assert all(hit.passage_rank is None for hit in unread)


def test_a_hit_without_text_comes_last_where_the_rest_is_settled(cascade):
    """Nothing can be expected of it, however high the first stage put it."""
    hits = [Hit("bare", score=1000.0), *some_hits(20)]
    result = stopping(cascade, 1.0).rerank(QUERY, hits, passage_depth=20)
    assert result.stages[1].skipped.startswith("settled")
    assert result.hits[-1].id == "bare"
    assert [int(hit.score) for hit in result.hits] == [2] * 20 + [1]


def test_shares_end_the_passage_stage_at_different_places(cascade):
    """Else the test above would show nothing."""
    hits = some_hits(40)
    scored = [stopping(cascade, share).rerank(QUERY, hits, 20).stages[1].scored for share in SHARES]
    assert scored == sorted(scored, reverse=True)
    assert scored[0] == 20
    assert scored[-1] == 4
    assert len(set(scored)) > 2


def test_stopping_needs_something_to_stop_and_something_read(cascade):
    early = stopping(cascade, 1.0)
    for count in (1, 4):
        report = early.rerank(QUERY, some_hits(count), 20).stages[1]
        assert (report.scored, report.skipped) == (count, "")
    assert [stage.name for stage in early.rerank(QUERY, some_hits(9), 0).stages] == ["title"]


def test_a_deadline_moves_no_place_where_the_passage_stage_stops(slow):
    hits = some_hits(40)
    slow.stopping = Stopping(1.0, 0.5, 0.2)
    before, calls = slow.passage.now, slow.passage.calls
    at_leisure = slow.rerank(QUERY, hits, 20)
    took = (slow.passage.now - before) * 1000
    stops = at_leisure.stages[1].scored
    assert 8 <= stops < 20
    usual = slow.passage.calls - calls
    assert usual == stops / 4
    more_calls = 0
    for share in np.arange(0.1, 3, 0.1):
        calls = slow.passage.calls
        result = slow.rerank(QUERY, hits, 20, deadline_ms=share * took)
        report = result.stages[1]
        if result.complete:  # though the time was short enough for smaller chunks
            assert report.scored == stops
            assert [hit.id for hit in result.hits] == [hit.id for hit in at_leisure.hits]
            more_calls += slow.passage.calls - calls - usual
        else:
            assert report.scored < stops
            assert report.unscored == 20 - report.scored
            assert report.skipped.startswith("deadline")
    assert more_calls > 0


def test_a_rule_beside_the_models_is_used_unless_it_is_not_wanted(small_models, tmp_path):
    for name in ("title", "passage", "fusion.json"):
        (tmp_path / name).symlink_to(small_models / name)
    assert Cascade.load(tmp_path, threads=1).stopping is None
    Stopping(1.0, 0.5, 1.0).write(tmp_path / "stopping.json")
    scored = [
        Cascade.load(tmp_path, threads=1, early_stop=early)
        .rerank(QUERY, some_hits(9), 9)
        .stages[1]
        .scored
        for early in (True, False)
    ]
    assert scored == [4, 9]


def test_cut_texts_are_counted(cascade):
    hits = [Hit("a", "merge " * 40, "heap " * 400, 1.0), Hit("b", "read", "file", 0.5)]
    title, passage = cascade.rerank(QUERY, hits).stages
    assert (title.truncated, passage.truncated) == (1, 1)


def test_a_cut_query_is_said(cascade):
    for query, cut in ((QUERY, False), ("merge " * 40, True)):
        assert cascade.rerank(query, some_hits(3)).query_cut is cut


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query": " "}, "query is empty"),
        ({"query": "\u200b"}, "query is empty"),
        ({"query": "a", "passage_depth": -1}, "passage_depth"),
    ],
)
def test_wrong_arguments_are_named(cascade, arguments: dict[str, Any], message):
    with pytest.raises(ValueError, match=message):
        cascade.rerank(hits=some_hits(2), **arguments)


def test_a_folder_without_fusion_is_named(small_models, tmp_path):
    for task in ("title", "passage"):
        (tmp_path / task).symlink_to(small_models / task)
    with pytest.raises(FileNotFoundError, match="fusion"):
        Cascade.load(tmp_path)
