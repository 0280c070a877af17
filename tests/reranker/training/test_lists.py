"""Training lists: gold first, negatives only, the same at every resume."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from reranker.training.config import ListConfig, Recipe
from reranker.training.draws import Draws
from reranker.training.examples import example
from reranker.training.lists import (
    Tokens,
    draw_examples,
    draw_list,
    drop_tokens,
    make_batch,
)
from reranker.training.mining import Miner
from reranker.training.prepare import times
from reranker.training.processes import find_processes
from tests.reranker.conftest import small_tokenizer


@given(
    golds=st.sets(st.integers(0, 30), min_size=1, max_size=3),
    taken=st.integers(1, 3),
    window=st.lists(st.integers(0, 30), min_size=6, max_size=25, unique=True),
    size=st.integers(2, 12),
    near=st.integers(0, 4),
    random=st.integers(0, 3),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_a_list_is_golds_and_negatives(golds, taken, window, size, near, random, seed):
    scores = [float(30 - place) for place in range(len(window))]
    item = example("set", "query", golds, window, scores, others=[31, 32])
    if not item.candidates:
        return
    config = ListConfig(size=size, golds=taken, near=near, head=4, dense=1, random=random)
    texts, first = draw_list(item, config, 33, np.random.default_rng(seed))
    number = min(taken, len(golds), size - 1)
    assert set(texts[:number]) <= golds
    assert not golds & set(texts[number:])
    assert len(texts) > number
    assert len(texts) == len(set(texts)) == len(first) <= size
    known = dict(zip(item.candidates, item.first_stage, strict=True))
    for text, score in list(zip(texts, first, strict=True))[number:]:
        assert score == known.get(text, min(item.first_stage))


@given(count=st.integers(1, 50), size=st.integers(1, 8), seed=st.integers(0, 5))
def test_an_epoch_goes_through_every_example_once(count, size, seed):
    steps = -(-2 * count // size)
    drawn = [i for step in range(steps) for i in draw_examples(count, size, step, seed)]
    assert sorted(drawn[:count]) == list(range(count))
    assert sorted(drawn[count : 2 * count]) == list(range(count))


def test_skipped_texts_are_never_negatives():
    item = example("set", "q", [1], [0, 1, 2, 3], [4.0, 3.0, 2.0, 1.0], skip=[2], others=[2, 5])
    assert item.candidates == [0, 3]
    assert item.others == [5]
    assert item.gold_first_stage == [round(0.4472, 4)]


def test_texts_of_other_lists_stand_against_a_query_unless_they_are_its_own():
    texts = ["merge", "sort", "heap", "queue", "read", "file"]
    tokens = Tokens(Tokenizer.from_str(small_tokenizer()), texts, 6)
    lists = [([0, 1, 2], [3.0, 2.0, 1.0]), ([3, 0], [2.0, 1.0]), ([4, 5, 1], [3.0, 2.0, 1.0])]
    batch = make_batch([tokens[0]] * 3, lists, [{0, 5}, {3}, {4}], tokens, chunks=2)
    named = [0, 1, 2, 3, 0, -1, 4, 5, 1]
    for query, (own, golds) in enumerate([({0, 1, 2}, {0, 5}), ({3, 0}, {3}), ({4, 5, 1}, {4})]):
        wanted = [text >= 0 and text not in own | golds for text in named]
        assert batch.elsewhere[query].tolist() == wanted


def test_what_is_left_out_makes_room_for_what_follows():
    tokenizer = Tokenizer.from_str(small_tokenizer())
    texts = ["the merge of the sorted lists to read", "the of", "heap", ""]
    tokens = Tokens(tokenizer, texts, 6, ["the", "of", "to"])
    plain = Tokens(tokenizer, ["merge sorted lists read", "the of", "heap", ""], 6)
    for place in range(4):
        assert tokens[place].tolist() == plain[place].tolist()


def test_an_example_is_taken_as_often_as_its_source_weighs():
    items = [example("set", f"query {i}", [0], [1, 2], [2.0, 1.0]) for i in range(2000)]
    assert all(times(item, 1.0) == 1 for item in items)
    assert all(times(item, 3.0) == 3 for item in items)
    some = [times(item, 1.25) for item in items]
    assert set(some) == {1, 2}
    assert 0.2 < sum(some) / len(some) - 1 < 0.3
    assert some == [times(item, 1.25) for item in items]


def test_a_batch_holds_every_text_at_its_place():
    texts = ["merge", "merge sorted lists in python", "heap queue", "the", "read the file line"]
    tokens = Tokens(Tokenizer.from_str(small_tokenizer()), texts, 6)
    lists = [([0, 1, 2], [3.0, 2.0, 1.0]), ([3, 4], [5.0, 4.0])]
    batch = make_batch([tokens[2], tokens[0]], lists, [{0}, {4}], tokens, chunks=2)
    assert batch.valid.tolist() == [[True] * 3, [True, True, False]]
    assert batch.gold.tolist() == [[True, False, False], [False, True, False]]
    assert batch.first_stage.tolist() == [[3.0, 2.0, 1.0], [5.0, 4.0, 0.0]]
    flat = {0: 0, 1: 1, 2: 2, 3: 3, 4: 4}
    for chunk in batch.chunks:
        rows = zip(chunk.ids, chunk.mask, chunk.owner.tolist(), chunk.place.tolist(), strict=True)
        for ids, mask, owner, place in rows:
            assert owner == place // 3
            assert ids[mask].tolist() == tokens[flat[place]].tolist()
    assert max(len(tokens[i]) for i in range(5)) == 6  # cut, with its closing token kept
    assert tokens[1][-1] == 3


@given(length=st.integers(2, 30), share=st.floats(0.0, 0.95), seed=st.integers(0, 99))
def test_a_query_loses_a_share_of_its_tokens_and_never_all(length, share, seed):
    row = np.arange(length)
    kept = drop_tokens(row, share, np.random.default_rng(seed))
    assert kept[0] == 0
    assert kept[-1] == length - 1
    assert list(kept) == sorted(set(kept.tolist()))
    assert len(kept) >= min(length, 3)
    if share == 0:
        assert kept is row


def test_the_share_that_is_dropped_is_the_share_asked_for():
    rng = np.random.default_rng(0)
    lengths = [len(drop_tokens(np.arange(42), 0.25, rng)) - 2 for _ in range(300)]
    assert 0.72 < np.mean(lengths) / 40 < 0.78


def test_what_is_skipped_is_not_drawn_from_the_pool_either():
    config = ListConfig(size=5, near=0, random=4)
    item = example("s", "q", [0], [1], [1.0], skip=[2, 3])
    drawn: set[int] = set()
    for seed in range(50):
        drawn |= set(draw_list(item, config, 8, np.random.default_rng(seed))[0])
    assert drawn == {0, 1, 4, 5, 6, 7}


def test_skipped_texts_are_no_negatives_of_other_lists_either():
    texts = ["merge", "sort", "heap", "queue", "read", "file"]
    tokens = Tokens(Tokenizer.from_str(small_tokenizer()), texts, 6)
    source = {"sources": [{"path": "x"}]}
    recipe = Recipe.model_validate(
        {"task": "passage", "data": source, "queries_per_step": 2, "lists": {"size": 3}}
    )
    items = [
        example("set", "q", [0], [0, 1, 2], [3.0, 2.0, 1.0], skip=[3]),
        example("set", "r", [3], [3, 4, 5], [3.0, 2.0, 1.0]),
    ]
    miner = Miner(recipe, items, tokens, tokens)
    draws = Draws(recipe, items, tokens, tokens, len(texts), miner, None, find_processes())
    drawn = draws[0]
    row = drawn.chosen.index(0)
    named = [text for places, _ in drawn.lists for text in places]
    assert sorted(named) == [0, 1, 2, 3, 4, 5]
    wanted = [text in (4, 5) for text in named]
    assert drawn.batch.elsewhere[row].tolist() == wanted
    assert drawn.batch.gold[row].sum() == 1
