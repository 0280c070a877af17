"""Unlabelled lists, and the network held on them to what was known before."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from reranker.evaluation.collections import Document
from reranker.training import losses
from reranker.training.config import Recipe, read_recipe
from reranker.training.examples import Example, load
from reranker.training.inputs import keep_inputs
from reranker.training.keep import (
    KeepLists,
    known_before,
    phrase_lists,
    prepare_keep,
    whole_words,
    word_lists,
)
from reranker.training.loop import train
from reranker.training.pairs import phrase, sentences_of
from reranker.training.prepare import prepare_once
from reranker.training.scoring import list_logits
from reranker.training.start import load_any, new_model, tokenizer_of
from reranker.training.teachers import find_teacher
from tests.reranker.training.conftest import prepared, recipe_text

KEEP = '[keep]\ncorpora = ["beir"]\nqueries = 20\nsize = 5\n'
ALL = slice(None)
WORDS = "[keep]\nwords = 10\nsize = 5\n"


def texts_of(item: Example, pool: list[str]) -> list[str]:
    return [pool[place] for place in item.candidates]


@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=30), st.integers(1, 12))
def test_a_phrase_is_some_neighbouring_words(words, most):
    found = phrase(" ".join(words), np.random.default_rng(len(words)), most)
    assert 1 <= len(found.split()) <= most
    assert found in " ".join(words)


def test_sentences_have_no_line_breaks_and_none_is_empty():
    assert sentences_of("One\n is. Two  is!\n\nThree is?  ") == ["One is.", "Two is!", "Three is?"]
    assert sentences_of(" \n ") == []


def test_phrases_stand_against_phrases_of_their_own_and_of_other_documents():
    texts = [
        " ".join(f"Word{n}{i} word{n}{i + 1} stands shared." for i in range(4)) for n in range(30)
    ]
    documents = [Document(str(n), "", text) for n, text in enumerate(texts)]
    documents.append(Document("short", "", "One sentence alone."))
    pool, items = phrase_lists("x", documents, 25, 12, np.random.default_rng(0))
    assert len(items) == 25
    assert len(set(pool)) == len(pool)
    own = 0
    for item in items:
        assert not item.golds
        asked = next(n for n, text in enumerate(texts) if item.query in text)
        found = texts_of(item, pool)
        assert 6 <= len(found) <= 12  # short ones may be drawn twice
        for one in found:
            assert any(one in text for text in texts)  # never of the document with one sentence
        own += any(one in texts[asked] for one in found)
    assert own > 15
    again = phrase_lists("x", documents, 25, 12, np.random.default_rng(0))
    assert again == (pool, items)


def test_nothing_is_made_of_documents_without_sentences():
    documents = [Document("1", "Title", "One sentence alone."), Document("2", "", "")]
    assert phrase_lists("x", documents, 5, 4, np.random.default_rng(0)) == ([], [])


def test_words_drawn_at_random_return_in_some_of_a_lists_texts():
    words = [f"word{n:03}" for n in range(500)]
    pool, items = word_lists(words, 200, 16, np.random.default_rng(0))
    assert len(items) == 200
    shares = []
    for item in items:
        query = item.query.split()
        assert set(query) <= set(words)
        assert not item.golds
        for text in texts_of(item, pool):
            parts = re.split(r"[-._:]? |[-._]", text)
            assert set(parts) <= set(words), text
            shares.append(np.mean([part in query for part in parts]))
    # A quarter of the texts is to have a quarter of the query's words, another a half.
    assert 0.1 < np.mean(shares) < 0.25
    assert np.mean(np.array(shares) == 0) > 0.4
    assert word_lists(words, 200, 16, np.random.default_rng(0)) == (pool, items)


def test_whole_words_are_no_pieces_and_no_signs(backbone, data, tmp_path):
    recipe = prepared(tmp_path, data, recipe_text("title", backbone) + WORDS)
    tokenizer = Tokenizer.from_str(tokenizer_of(recipe))
    words = whole_words(tokenizer)
    assert words
    assert all(word.isalpha() and len(word) > 1 for word in words)
    ids = [tokenizer.token_to_id(word) for word in words]
    assert ids == sorted(ids)


def held(recipe, folder, teacher=None):
    """What scores lists as was known before."""
    return known_before(recipe, folder, torch.device("cpu"), teacher)


def test_what_is_kept_are_the_bi_encoder_s_scores(data, backbone, tmp_path):
    text = recipe_text("title", backbone) + KEEP
    recipe = prepared(tmp_path, data, text)
    _, items = load(tmp_path / "keep")
    assert items
    keep, known = KeepLists(recipe, tmp_path), held(recipe, tmp_path)
    batch = keep.of(3, ALL)
    scores = known(batch)
    model = new_model(recipe).eval()
    with torch.no_grad():
        model.query_bias.fill_(-1e4)  # texts that do not see the query: a bi-encoder
        read = model.encode_query(batch.query_ids, batch.query_mask)
        for chunk in batch.chunks:
            wanted = model.score(read, chunk.ids, chunk.mask, chunk.owner)
            got = scores.flatten()[chunk.place]
            assert torch.allclose(wanted, got, atol=1e-4)
    again = keep.of(3, ALL)
    assert torch.equal(batch.query_ids, again.query_ids)
    shares = [keep.of(3, slice(place, None, 2)).query_ids for place in range(2)]
    assert sum(map(len, shares)) == len(batch.query_ids)


def test_what_is_kept_are_the_teachers_scores_where_one_teaches(data, backbone, tmp_path):
    plain = prepared(
        tmp_path / "teacher", data, recipe_text("title", backbone, learning_rate="1e-2")
    )
    train(plain, tmp_path / "teacher")
    text = recipe_text("title", backbone) + KEEP + "words = 10\n"
    text += f'[taught_by]\nfolder = "{tmp_path / "teacher"}"\n'
    recipe = prepared(tmp_path / "student", data, text)
    pool, items = load(tmp_path / "student" / "keep")
    assert len(items) > 10
    assert sum(item.golds == [] for item in items) == 10
    assert max(max(item.texts) for item in items) < len(pool)
    teaches = find_teacher(recipe, pool, items, torch.device("cpu"))
    keep, known = KeepLists(recipe, tmp_path / "student"), held(recipe, tmp_path, teaches)
    teacher, start = load_any(tmp_path / "teacher"), new_model(recipe).eval()
    for draw in range(8):
        batch = keep.of(draw, ALL)
        scores = known(batch)
        with torch.no_grad():
            assert torch.allclose(scores, list_logits(teacher, batch), atol=1e-4)
            assert not torch.allclose(scores, list_logits(start, batch), atol=1e-2)
    train(recipe, tmp_path / "student", stop_at=2)


def test_lists_of_several_kinds_share_a_pool(backbone, tmp_path):
    lines = [
        {"_id": f"{n}", "title": f"Page {n}", "text": f"Heap {n} is here. Queue {n} was there."}
        for n in range(12)
    ]
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "corpus.jsonl").write_text("\n".join(map(json.dumps, lines)), "utf-8")
    keep = {"corpora": ["docs"], "queries": 5, "phrases": 6, "words": 7, "size": 4}
    source = {"sources": [{"path": "docs"}]}
    recipe = Recipe.model_validate(
        {"task": "title", "backbone": str(backbone), "data": source, "keep": keep}
    )
    prepare_keep(recipe, tmp_path, tmp_path)
    pool, items = load(tmp_path / "keep")
    assert sorted(item.source for item in items) == ["docs"] * 11 + ["words"] * 7
    for item in items:
        found = [pool[place] for place in item.texts]
        if item.golds:
            assert all(text.startswith("Page") for text in found)
        elif item.source == "docs":
            whole = " ".join(line["text"] for line in lines)
            assert all(text in whole for text in found)
        else:
            assert not any(text[0].isupper() or " is " in text for text in found)


def test_words_alone_can_be_kept(data, backbone, tmp_path):
    recipe = prepared(tmp_path, data, recipe_text("title", backbone) + WORDS)
    _, items = load(tmp_path / "keep")
    assert {item.source for item in items} == {"words"}
    train(recipe, tmp_path, stop_at=2)


def test_examples_of_a_training_without_such_lists_get_them(data, backbone, tmp_path):
    text = recipe_text("title", backbone)
    prepared(tmp_path, data, text)
    keep_inputs(tmp_path, {"--data": str(data.resolve()), "--exclude": []})
    (tmp_path / "recipe.toml").write_text(text + WORDS, "utf-8")
    before = (tmp_path / "train" / "examples.jsonl").stat()
    for _ in range(2):
        assert not prepare_once(read_recipe(tmp_path / "recipe.toml"), data, tmp_path)
    assert (tmp_path / "train" / "examples.jsonl").stat() == before
    assert len(load(tmp_path / "keep")[1]) == 10


def test_keeping_pulls_towards_the_start(data, backbone, tmp_path):
    moved = {}
    for weight in (0.1, 50.0):
        text = recipe_text("title", backbone, learning_rate="1e-3")
        text += f"{KEEP}weight = {weight}\n"
        folder = tmp_path / str(weight)
        recipe = prepared(folder, data, text)
        train(recipe, folder)
        keep, known = KeepLists(recipe, folder), held(recipe, folder)
        model = new_model(recipe).eval()
        model.load_state_dict(torch.load(folder / "checkpoint.pt", weights_only=True)["model"])
        total = 0.0
        with torch.no_grad():
            for draw in range(6):
                batch = keep.of(draw, ALL)
                before = known(batch)
                read = model.encode_query(batch.query_ids, batch.query_mask)
                now = torch.zeros_like(before).flatten()
                for chunk in batch.chunks:
                    now[chunk.place] = model.score(read, chunk.ids, chunk.mask, chunk.owner)
                now = now.view(before.shape)
                total += float(losses.dynamic_distillation(before, now, batch.valid))
        moved[weight] = total
    assert moved[50.0] < moved[0.1]


@pytest.mark.parametrize("keep", [{}, {"corpora": ["x"], "queries": 0}, {"phrases": 3}])
def test_nothing_to_make_lists_of_is_refused(keep):
    recipe = {"task": "title", "data": {"sources": [{"path": "x"}]}, "keep": keep}
    with pytest.raises(ValueError, match="nothing to make lists of"):
        Recipe.model_validate(recipe)


def test_a_passage_model_is_held_to_its_start(data, backbone, tmp_path):
    plain = prepared(
        tmp_path / "start", data, recipe_text("passage", backbone, learning_rate="1e-2")
    )
    train(plain, tmp_path / "start")
    text = recipe_text("passage", backbone, start=f'"{tmp_path / "start"}"')
    text += WORDS
    text += 'text_words = 30\nheld_to = "start"\n'
    recipe = prepared(tmp_path / "more", data, text)
    pool, items = load(tmp_path / "more" / "keep")
    assert {item.source for item in items} == {"words"}
    assert max(len(text.split()) for text in pool) > 20
    keep, known = KeepLists(recipe, tmp_path / "more"), held(recipe, tmp_path)
    batch = keep.of(0, ALL)
    with torch.no_grad():
        wanted = list_logits(load_any(tmp_path / "start"), batch)
    assert torch.allclose(known(batch), wanted, atol=1e-4)
    train(recipe, tmp_path / "more", stop_at=2)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"task": "passage"}, "keep.queries are for titles"),
        ({"architecture": "pair"}, "broadcast architecture"),
        ({"keep": {"words": 3, "held_to": "start"}}, "needs a start"),
    ],
)
def test_what_cannot_be_kept_is_refused(changes, named):
    recipe = {"task": "title", "data": {"sources": [{"path": "x"}]}, "keep": {"corpora": ["x"]}}
    assert json.loads(Recipe.model_validate(recipe).model_dump_json())
    with pytest.raises(ValueError, match=named):
        Recipe.model_validate(recipe | changes)
