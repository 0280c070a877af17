"""The stages: one score per text, independent of the others, long passages in windows."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reranker import DualEncoder, PassageReranker, TitleReranker
from reranker.models.pair import PairEncoder
from tests.reranker.conftest import SMALL, WORDS, random_encoder, write_model

QUERY = "merge sorted lists"
texts = st.lists(st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join), max_size=12)


@pytest.fixture(scope="module")
def titles(small_models) -> TitleReranker:
    return TitleReranker.load(small_models / "title", threads=1)


@pytest.fixture(scope="module")
def passages(small_models) -> PassageReranker:
    return PassageReranker.load(small_models / "passage", threads=1)


@given(texts)
@settings(deadline=None, max_examples=40)
def test_a_title_depends_on_no_other(titles, items):
    together = titles.score(QUERY, items)
    assert together.dtype == np.float32
    assert together.shape == (len(items),)
    for item, score in zip(items, together.tolist(), strict=True):
        assert titles.score(QUERY, [item])[0] == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("count", [128, 129, 1153, 1400])
def test_many_texts_are_scored_part_by_part_as_in_short_lists(small_models, threads, count):
    """Parts of 128, 1,024 and the rest are made into tokens while those before are scored."""
    words = [" ".join(pair) for pair in itertools.product(WORDS, repeat=3)][:count]
    assert len(set(words)) == count
    model = TitleReranker.load(small_models / "title", threads)
    read = model.read(QUERY)
    slow = [model.score_read(read, words[at : at + 50]) for at in range(0, count, 50)]
    found = model.score_read(model.read(QUERY), words)
    assert found.logits == pytest.approx(np.concatenate([one.logits for one in slow]), abs=1e-4)
    assert found.tokens == sum(one.tokens for one in slow)
    passages = PassageReranker.load(small_models / "passage", threads)
    logits = passages.score(QUERY, ["heap"] * count, words)
    assert logits[::97] == pytest.approx(
        passages.score(QUERY, ["heap"] * len(words[::97]), words[::97]), abs=1e-4
    )


def test_distinct_titles_are_scored_once(titles):
    read = titles.read(QUERY)
    once = titles.score_read(read, ["read file", "heap"])
    often = titles.score_read(read, ["read file", "heap", "read file"] * 50)
    assert often.tokens == once.tokens
    assert len(set(often.logits.tolist())) == 2


def test_a_query_says_whether_it_was_cut(titles):
    assert [titles.read(query).truncated for query in (QUERY, "merge " * 30)] == [False, True]


def test_cut_titles_are_counted(titles):
    scored = titles.score_read(titles.read(QUERY), ["merge " * 30, "heap", "merge " * 30])
    assert scored.truncated == 2


def test_a_long_passage_is_as_good_as_its_best_window(passages):
    body = " ".join(WORDS[i % len(WORDS)] for i in range(40))
    whole = passages.score(QUERY, [""], [body])[0]
    step, room = 22 - 4, 22
    parts = [" ".join(body.split()[start : start + room]) for start in (0, step, 2 * step)]
    assert whole == pytest.approx(passages.score(QUERY, [""] * 3, parts).max(), abs=1e-4)


def test_what_a_model_leaves_out_of_texts_it_does_not_read(small_models, tmp_path):
    for task in ("title", "passage"):
        shutil.copytree(small_models / task, tmp_path / task)
        path = tmp_path / task / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"left_out": ["the", "of"]}))
    query = "the heap of files"
    with_fillers, without = ["the merge of the lists", "of", "heap"], ["merge lists", "of", "heap"]
    for folder, same in ((tmp_path, True), (small_models, False)):
        titles = TitleReranker.load(folder / "title", threads=1)
        passages = PassageReranker.load(folder / "passage", threads=1)
        dual = DualEncoder.load(folder / "passage", threads=1)
        for found, expected in (
            (titles.score(query, with_fillers), titles.score(query, without)),
            (
                passages.score(query, ["the heap"] * 3, with_fillers),
                passages.score(query, ["heap"] * 3, without),
            ),
            (
                dual.encode_passages(["the heap"] * 3, with_fillers),
                dual.encode_passages(["heap"] * 3, without),
            ),
        ):
            assert np.allclose(found, expected, atol=1e-4) == same
        plain = TitleReranker.load(small_models / "title", threads=1)
        assert titles.score(query, ["heap"])[0] == pytest.approx(plain.score(query, ["heap"])[0])


def test_what_no_window_reaches_is_counted(passages):
    read = passages.read(QUERY)
    scored = passages.score_read(read, [""] * 3, ["merge " * 500, "merge", "merge " * 500])
    assert scored.truncated == 2


def test_empty_titles_and_passages_are_allowed(passages):
    scores = passages.score(QUERY, ["", "heap", ""], ["merge", "", ""])
    assert np.isfinite(scores).all()


def test_title_and_passage_are_read_as_they_were_trained(passages):
    both = passages.score(QUERY, ["heap"], ["merge lists"])[0]
    assert both == pytest.approx(passages.score(QUERY, ["heap. merge lists"], [""])[0], abs=1e-4)


def test_a_pairwise_model_serves_too(tmp_path):
    model = PairEncoder(random_encoder(SMALL, 3)).eval()
    reranker = PassageReranker.load(write_model(tmp_path, "passage", model), threads=1)
    scores = reranker.score(QUERY, ["heap", "read"], ["merge lists", "file"])
    alone = [
        reranker.score(QUERY, [title], [passage])[0]
        for title, passage in (("heap", "merge lists"), ("read", "file"))
    ]
    assert scores.tolist() == pytest.approx(alone, abs=1e-4)


@pytest.mark.parametrize("query", ["", "  \n", "\u200b", "\x00", " \u200b\t\x00"])
def test_an_empty_query_is_refused(titles, query):
    """One of which the tokenizer leaves nothing, too."""
    with pytest.raises(ValueError, match="query is empty"):
        titles.score(query, ["heap"])


def test_lists_of_different_lengths_are_refused(passages):
    with pytest.raises(ValueError, match="2 titles for 1 passages"):
        passages.score(QUERY, ["a", "b"], ["c"])


def test_the_other_stage_s_model_is_refused(small_models):
    with pytest.raises(ValueError, match="passage model, not a title model"):
        TitleReranker.load(small_models / "passage")


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("config.json", "{", "export the model again"),
        ("config.json", "[]", "export the model again"),
        ("config.json", '{"architecture": "broadcast", "task": "title"}', "lacks max_query_tokens"),
        ("tokenizer.json", "{", "is no tokenizer"),
        ("tokenizer.json", None, "is not complete"),
        ("upper.onnx", None, "is not complete"),
        ("upper.onnx", "version https://git-lfs.github.com/spec/v1", "copy the model folder again"),
        ("weights.bin", None, "copy the model folder again"),
        ("weights.bin", "cut short", "copy the model folder again"),
    ],
)
def test_a_folder_that_was_not_copied_whole_is_refused_with_the_remedy(
    small_models, tmp_path, file, content, reason
):
    folder = shutil.copytree(small_models / "title", tmp_path / "title")
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content, "utf-8")
    with pytest.raises((FileNotFoundError, ValueError), match=reason) as refused:
        TitleReranker.load(folder)
    assert file in str(refused.value)


def test_serving_needs_neither_torch_nor_transformers(small_models):
    program = f"""
import sys
for name in ("torch", "transformers", "sentence_transformers", "onnx"):
    sys.modules[name] = None  # importing it raises ImportError
from reranker import Cascade, Hit, PassageReranker, RerankResult, TitleReranker
cascade = Cascade.load({str(small_models)!r}, threads=1)
print(cascade.rerank("merge lists", [Hit("a", "heap", "merge", 1.0)]).hits[0].id)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.strip() == "a", done.stderr


def test_titles_seen_before_are_neither_tokenized_nor_read_by_the_lower_layers_again(small_models):
    plain = TitleReranker.load(small_models / "title", threads=1)
    keeping = TitleReranker.load(small_models / "title", threads=1, cache_mb=1)
    for query in (QUERY, "read lines of files"):
        for items in (["heap queue", "merge"], ["merge", "", "read file", "heap queue"]):
            scores = keeping.score(query, items)
            assert scores.tolist() == pytest.approx(plain.score(query, items).tolist(), abs=1e-4)
    use = keeping.cache_use
    assert use.misses == 2 * 4  # the tokens and the states of four titles
    assert use.hits == 2 * (12 - 4)
    assert use.entries == 8
    assert 0 < use.bytes < 1e6
    assert plain.cache_use == (0, 0, 0, 0)


def test_passages_can_be_kept_too(small_models):
    plain = PassageReranker.load(small_models / "passage", threads=1)
    keeping = PassageReranker.load(small_models / "passage", threads=1, cache_mb=1)
    body = " ".join(WORDS[i % len(WORDS)] for i in range(40))
    for query in (QUERY, "read lines of files"):
        expected = plain.score(query, ["heap", ""], [body, "merge"])
        found = keeping.score(query, ["heap", ""], [body, "merge"])
        assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-4)
    use = keeping.cache_use
    assert use.misses == use.entries == 2 + 4  # two passages' tokens, the states of 3 + 1 windows
    assert use.hits == use.misses
