"""Mining: what is hard, what is positive, what is dropped; queries made from passages."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from reranker.models.broadcast import BroadcastEncoder
from reranker.models.pair import PairEncoder
from reranker.training.augment import (
    Mined,
    MinedList,
    MoreTokens,
    confidence,
    draw_mined,
    make_queries,
    mine,
    mining_step,
    nearest,
    score_texts,
    share_of_top,
    sort_out,
    text_vectors,
)
from reranker.training.config import AugmentConfig, Recipe
from reranker.training.examples import Example, example
from reranker.training.lists import Tokens, padded
from tests.reranker.conftest import SMALL, WORDS, random_encoder, small_tokenizer

CONFIG = AugmentConfig(every=10, labelled=6, made=6, pool=40, depth=8, denoised=0.5)


def recipe(config: AugmentConfig = CONFIG, **lists: int) -> Recipe:
    return Recipe.model_validate(
        {
            "task": "passage",
            "data": {"sources": [{"path": "x"}]},
            "lists": {"size": 6, "max_text_tokens": 16, "max_query_tokens": 12, **lists},
            "augment": config.model_dump(),
        }
    )


@pytest.fixture(scope="module")
def pool() -> list[str]:
    rng = np.random.default_rng(0)
    texts = []
    for _ in range(60):
        title = " ".join(rng.choice(WORDS, 2)).title()
        sentences = (" ".join(rng.choice(WORDS, 7)).capitalize() for _ in range(3))
        texts.append(f"{title}. {'. '.join(sentences)}.")
    return texts


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_str(small_tokenizer())


@pytest.fixture(scope="module")
def items(pool: list[str]) -> list[Example]:
    rng = np.random.default_rng(1)
    made = []
    for place in range(12):
        window = rng.permutation(60)[:15].tolist()
        query = " ".join(pool[place].split()[1:4])
        made.append(example("s", query, [place], window, rng.random(15).tolist()))
    return made


def test_confidence_by_hand():
    sure = confidence(np.array([2.0, 4.0, -1e9, 1e9], dtype=np.float32), 2.0)
    assert sure.tolist() == pytest.approx([0.5, 1 / (1 + np.exp(-2)), 0.0, 1.0])
    assert share_of_top(np.array([0.0, np.log(3.0)])) == pytest.approx(0.75)
    assert share_of_top(np.array([1e9, -1e9])) == 1.0


@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=30),
    st.floats(-1e6, 1e6, width=32),
)
def test_no_text_is_both_positive_and_negative(logits, reference):
    positives, negatives = sort_out(np.array(logits, dtype=np.float32), reference, CONFIG)
    assert not set(positives) & set(negatives)
    assert all(logits[i] > reference for i in positives)
    assert all(logits[i] < reference for i in negatives)
    ranked = [logits[i] for i in negatives]
    assert ranked == sorted(ranked, reverse=True)  # the hardest first


def test_what_the_reranker_is_not_sure_of_is_dropped():
    logits = np.array([5.0, 0.5, 0.0, -0.5, -5.0, -4.0], dtype=np.float32)
    assert sort_out(logits, 0.0, CONFIG) == ([0], [5, 4])


@given(
    golds=st.integers(1, 5),
    negatives=st.integers(0, 20),
    retrieved=st.integers(0, 20),
    size=st.integers(2, 12),
    kept=st.integers(1, 4),
    seed=st.integers(0, 9),
)
@settings(max_examples=80)
def test_a_mined_list_is_gold_then_both_kinds_of_negatives(
    golds, negatives, retrieved, size, kept, seed
):
    item = MinedList(
        "labelled",
        "q",
        list(range(golds)),
        list(range(100, 100 + negatives)),
        list(range(105, 105 + retrieved)),  # the two overlap, as they do in truth
        {0: 1.5},
    )
    if not negatives and not retrieved:
        return
    drawn, scores = draw_mined(item, recipe(size=size, golds=kept), np.random.default_rng(seed))
    assert len(drawn) == len(set(drawn)) == len(scores) <= size
    number = sum(text < 100 for text in drawn)
    assert 1 <= number <= min(kept, golds)
    assert number < len(drawn)  # there is a negative
    assert all(text < 100 for text in drawn[:number])
    sources = set(item.negatives) | set(item.retrieved)
    assert set(drawn[number:]) <= sources
    assert len(drawn) == min(size, number + len(sources))
    hard = round((size - number) * 0.5)
    assert sum(text in item.negatives for text in drawn[number:]) >= min(hard, negatives)
    pairs = zip(drawn, scores, strict=True)
    assert all(score == item.first_stage.get(text, 0) for text, score in pairs)


def test_made_queries_are_taken_out_of_their_passages(pool):
    made = make_queries(pool, 30, np.random.default_rng(0))
    assert len(made) == 30
    forms = {"sentence": 0, "title": 0, "words": 0}
    for one in made:
        whole = pool[one.place]
        if one.text == whole:
            forms["words"] += 1
            assert set(one.query.split()) <= set(whole.lower().replace(".", "").split())
            assert not set(one.query.split()) & {"the", "a", "of", "to", "and"}
        elif whole.startswith(f"{one.query}. "):
            forms["title"] += 1
            assert whole == f"{one.query}. {one.text}"
        else:
            forms["sentence"] += 1
            assert one.query in whole
            assert one.query not in one.text
            assert whole.startswith(one.text.split(". ")[0])
    assert set(forms.values()) == {10}
    assert make_queries(["Title only", "", "x. y"], 5, np.random.default_rng(0)) in (
        [],
        make_queries(["x. y"], 5, np.random.default_rng(0)),
    )


def test_texts_keep_their_order_whatever_their_lengths(pool, tokenizer):
    model = random_encoder(SMALL)
    rows = MoreTokens(Tokens(tokenizer, pool, 16), len(pool), tokenizer, ["a list"], recipe())
    places = [40, 3, 60, 17]  # 60 is the further text
    with torch.no_grad():
        read = model.encode_query(*padded([Tokens(tokenizer, ["sorted list"], 12)[0]]))
        vectors = text_vectors(model, rows, places)
        scores = score_texts(model, read, rows, places)
        for at, place in enumerate(places):
            ids, mask = padded([rows[place]])
            alone = torch.nn.functional.normalize(model.encode_text(None, ids, mask), dim=-1)
            assert torch.allclose(vectors[at], alone[0], atol=1e-5)
            assert scores[at] == pytest.approx(float(model.score(read, ids, mask)), abs=1e-4)
        dual = [float(model.dual_score(read, *padded([rows[place]]))) for place in places]
    assert nearest(vectors, read, 4) == np.argsort(-np.array(dual)).tolist()


def test_mining_follows_the_model(pool, tokenizer, items, tmp_path):
    texts = Tokens(tokenizer, pool, 16)
    model = sharp()
    unlabelled = ["sorted list", "read a file", "merge lines of strings"]
    config = replace_config(unlabelled=3, positive_above=0.7, depth=20)
    mined = mine(recipe(config), model, 20, pool, texts, items, tokenizer, unlabelled)
    again = mine(recipe(config), model, 20, pool, texts, items, tokenizer, unlabelled)
    assert mined == again  # nothing but seed, step and weights decides
    other = mine(recipe(config), sharp(5), 20, pool, texts, items, tokenizer)
    assert [x.retrieved for x in other.lists] != [x.retrieved for x in mined.lists]
    kinds = [one.kind for one in mined.lists]
    assert "labelled" in kinds
    assert "unlabelled" in kinds
    assert "made" in kinds
    by_query = {item.query: item for item in items}
    rows = MoreTokens(texts, len(pool), tokenizer, mined.texts, recipe(config))
    for one in mined.lists:
        assert one.golds
        assert not set(one.golds) & set(one.negatives + one.retrieved)
        assert set(one.negatives) <= set(one.retrieved)
        if one.kind == "labelled":
            assert set(by_query[one.query].golds) <= set(one.golds)
            assert all(text in one.first_stage for text in one.golds + one.retrieved)
        query = Tokens(tokenizer, [one.query], 12)[0]
        with torch.no_grad():
            read = model.encode_query(*padded([query]))
            gold = score_texts(model, read, rows, one.golds).max()
            if one.negatives:
                assert score_texts(model, read, rows, one.negatives).max() < gold
    mined.write(tmp_path / "mined" / "20.json")
    assert Mined.read(tmp_path / "mined" / "20.json") == mined


def test_judged_queries_are_not_mined_against_copies_of_their_gold_texts(pool, tokenizer, items):
    skipping = [
        example("s", i.query, i.golds, range(12, 27), range(15), skip=[i.golds[0] + 30])
        for i in items
    ]
    config = replace_config(labelled=12, made=60, pool=60, depth=100)
    model, texts = random_encoder(SMALL), Tokens(tokenizer, pool, 16)
    mined = mine(recipe(config), model, 0, pool, texts, skipping, tokenizer)
    labelled = [one for one in mined.lists if one.kind == "labelled"]
    assert len(labelled) == len(items)
    for one in labelled:
        item = next(item for item in skipping if item.query == one.query)
        out = {*item.golds, *item.skipped}
        found = {*one.negatives, *one.retrieved, *one.golds} - set(item.golds)
        sources = {at if at < 60 else passage_of(mined.texts[at - 60], pool) for at in found}
        assert len(found) > 60
        assert not sources & out


def test_a_model_that_is_sure_of_a_wrong_gold_text_gains_a_pseudo_positive(pool, tokenizer, items):
    # Confidence that is always above one half makes of everything better than the gold a positive.
    config = replace_config(positive_above=0.500001, negative_below=0.499, made=0)
    mined = mine(
        recipe(config),
        random_encoder(SMALL),
        0,
        pool,
        Tokens(tokenizer, pool, 16),
        items,
        tokenizer,
    )
    extra = [len(one.golds) - 1 for one in mined.lists]
    assert any(extra)


def test_mining_needs_a_dual_encoder(pool, tokenizer, items):
    texts = Tokens(tokenizer, pool, 16)
    with pytest.raises(ValueError, match="dual encoder"):
        mine(recipe(), PairEncoder(random_encoder(SMALL)), 0, pool, texts, items, tokenizer)
    plain = recipe().model_copy(update={"augment": None})
    with pytest.raises(ValueError, match=r"\[augment\]"):
        mine(plain, random_encoder(SMALL), 0, pool, texts, items, tokenizer)


def test_every_step_knows_its_mining():
    config = AugmentConfig(every=10, first=20)
    steps = [mining_step(config, step) for step in (0, 19, 20, 29, 30, 45)]
    assert steps == [None, None, 20, 20, 30, 40]


def sharp(seed: int = 0) -> BroadcastEncoder:
    """A random network whose scores lie far apart."""
    model = random_encoder(SMALL, seed)
    model.scale.data.fill_(1000.0)
    return model


def replace_config(**changes: float) -> AugmentConfig:
    return CONFIG.model_copy(update=changes)


def passage_of(made: str, pool: list[str]) -> int:
    """The place of the passage whose words a made query's text has, or what is left of them."""
    (place,) = (
        at for at, text in enumerate(pool) if Counter(made.split()) <= Counter(text.split())
    )
    return place
