"""A small training from end to end: prepare, train, resume bit for bit, export, fuse."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from reranker import Cascade, Hit, PassageReranker, TitleReranker
from reranker.evaluation.contamination import fingerprint, trained_on
from reranker.evaluation.split import side
from reranker.runtime import read_config
from reranker.training.adapt import reciprocal_rank as reciprocal_rank_of_arrays
from reranker.training.config import RECIPES, changed, read_recipe
from reranker.training.examples import MADE, load, save
from reranker.training.finish import export_trained, kendall_tau
from reranker.training.fusing import Scorer, Window, fit_fusion, score_windows, without_small
from reranker.training.loop import load_data, reciprocal_rank, schedule, train
from reranker.training.start import left_out_of, load_trained, tokenizer_of
from tests.reranker.training.conftest import QUERIES, prepared, recipe_text, records

NAN = float("nan")
SHORT = 'task = "passage"\ndata.sources = [{path = "x"}]\n'


def test_prepare_keeps_held_out_queries_out(data, backbone, tmp_path):
    excluded = "q3"
    prepared(tmp_path, data, recipe_text("title", backbone), [excluded])
    pool, kept = load(tmp_path / "train")
    _, dev = load(tmp_path / "dev")
    assert {side(item.query) for item in kept} == {"train"}
    assert {side(item.query) for item in dev} == {"dev"}
    trained = {item.query for item in kept}
    assert records(data / "beir/all-queries.jsonl")[3]["text"] not in trained
    # A claim made from a held-out question would give that question away.
    kilt, hover = records(data / "kilt.jsonl"), records(data / "hover.jsonl")
    lost = [c for k, c in zip(kilt, hover, strict=True) if side(k["input"]) != "train"]
    assert lost
    assert not trained & {claim["claim"] for claim in lost}
    prints = np.load(tmp_path / "trained-on.npy")
    assert sorted(prints.tolist()) == sorted({fingerprint(query) for query in trained})
    for item in kept:
        assert not set(item.golds) & set(item.candidates)
        assert all(0 <= text < len(pool) for text in item.golds + item.candidates)


def test_documents_own_sentences_are_queries_for_their_titles(data, backbone, tmp_path):
    text = recipe_text("title", backbone)
    prepared(tmp_path / "without", data, text)
    prepared(tmp_path / "with", data, text.replace("window = 20", "window = 20\nmade = 1"))
    pool, kept = load(tmp_path / "with" / "train")
    made = [item for item in kept if item.source == MADE]
    # One of each document, though two sources read the same corpus; some are held out.
    assert 0.7 * QUERIES < len(made) < QUERIES
    texts = {one["title"]: one["text"] for one in records(data / "beir/corpus.jsonl")}
    for item in made:
        assert item.query == texts[pool[item.golds[0]]]
        assert item.candidates
        assert item.golds[0] not in item.candidates
    # Nobody's queries: what is measured, and what is known to be trained on, does not change.
    dev = {name: load(tmp_path / name / "dev")[1] for name in ("with", "without")}
    assert dev["with"] == dev["without"]
    prints = [np.load(tmp_path / name / "trained-on.npy").tolist() for name in dev]
    assert prints[0] == prints[1]
    assert [item for item in kept if item.source != MADE] == load(tmp_path / "without" / "train")[1]


@pytest.mark.parametrize("source", ["beir/all", MADE])
def test_made_queries_say_nothing_of_the_first_stage(data, backbone, tmp_path, source):
    text = recipe_text("title", backbone, with_first_stage="1.0", bias_learning_rate="0.1")
    recipe = prepared(tmp_path, data, text)
    for name in ("train", "dev"):
        pool, items = load(tmp_path / name)
        save(tmp_path / name, pool, [replace(item, source=source) for item in items])
    train(recipe, tmp_path, stop_at=4)
    weight = float(torch.load(tmp_path / "checkpoint.pt", weights_only=True)["first_stage"])
    assert (weight == 1.0) == (source == MADE)


def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(data, backbone, tmp_path):
    recipe = prepared(tmp_path / "one", data, recipe_text("passage", backbone))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    train(recipe, tmp_path / "one")
    for stop in (3, 7, 12):  # 3 and 7 are not among the steps that are saved anyway
        train(recipe, tmp_path / "two", stop_at=stop)
    one, two = (
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("one", "two")
    )
    assert one["step"] == two["step"] == 12
    assert one["model"].keys() == two["model"].keys()
    for name, value in one["model"].items():
        assert torch.equal(value, two["model"][name]), name
    assert torch.equal(one["first_stage"], two["first_stage"])


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": '"sigmoid-trick"'},
        {"loss": '"pairwise"', "accumulate": "2"},
        {"distillation": "0.5"},
        {"architecture": '"pair"'},
        {"frozen_layers": "1", "train_embeddings": "true"},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_every_form_of_training_moves_what_it_should(data, backbone, tmp_path, changes):
    recipe = prepared(tmp_path, data, recipe_text("passage", backbone, **changes))
    train(recipe, tmp_path, stop_at=4)
    _, start = load_trained(tmp_path, blend=0.0)
    _, moved = load_trained(tmp_path, blend=1.0)
    changed = {
        name
        for (name, a), (_, b) in zip(
            start.state_dict().items(), moved.state_dict().items(), strict=True
        )
        if not torch.equal(a, b)
    }
    assert any("layers.1." in name for name in changed)
    assert any("layers.0." in name for name in changed) == ("frozen_layers" not in changes)
    assert any("words" in name for name in changed) == ("train_embeddings" in changes)


def test_the_best_and_the_last_weights_can_be_averaged(data, backbone, tmp_path):
    recipe = prepared(tmp_path, data, recipe_text("title", backbone))
    train(recipe, tmp_path, stop_at=4)
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    kept["model"] = {name: value + 0.5 for name, value in kept["model"].items()}
    torch.save(kept, tmp_path / "checkpoint.pt")
    _, best = load_trained(tmp_path)
    _, mean = load_trained(tmp_path, average=True)
    for name, value in best.state_dict().items():
        wanted = (value + kept["model"][name]) / 2
        assert torch.allclose(mean.state_dict()[name], wanted, atol=1e-6)


@pytest.mark.parametrize("network", ["pair", "scratch"])
def test_what_is_mixed_with_its_start_is_mixed_with_its_own(data, backbone, tmp_path, network):
    text = recipe_text("title", backbone, seed="3", learning_rate="1e-12")
    if network == "pair":
        text = f'architecture = "pair"\n{text}'
    else:
        text = text.replace("[data]", '[model]\nstart = "scratch"\n[data]')
    text = "bias_learning_rate = 1e-12\nhead_learning_rate = 1e-12\n" + text
    recipe = prepared(tmp_path, data, text)
    train(recipe, tmp_path, stop_at=4)  # which moves nothing
    _, trained = load_trained(tmp_path)
    before = torch.random.get_rng_state()
    for blend in (0.0, 0.5):
        _, mixed = load_trained(tmp_path, blend)
        for name, value in mixed.state_dict().items():
            assert torch.allclose(value, trained.state_dict()[name], atol=1e-6), name
    assert torch.equal(torch.random.get_rng_state(), before)


def test_training_learns_what_the_data_shows(data, backbone, tmp_path):
    text = recipe_text(
        "passage",
        backbone,
        learning_rate="3e-3",
        with_first_stage="0.0",
        train_embeddings="true",
        layer_decay="1.0",
    )
    for old, new in (
        ("steps = 12", "steps = 60"),
        ("check_every = 4", "check_every = 60"),
        ("queries_per_step = 2", "queries_per_step = 8"),
    ):
        text = text.replace(old, new)
    recipe = prepared(tmp_path, data, text)
    train(recipe, tmp_path)
    losses = [line["loss"] for line in records(tmp_path / "log.jsonl")]
    assert np.mean(losses[-2:]) < 0.8 * losses[0]


def test_export_and_fuse_make_a_cascade(data, backbone, tmp_path):
    for task in ("title", "passage"):
        recipe = prepared(tmp_path / task, data, recipe_text(task, backbone))
        train(recipe, tmp_path / task, stop_at=4)
        export_trained(tmp_path / task, tmp_path / "model" / task, f"small-{task}")
        config = json.loads((tmp_path / "model" / task / "config.json").read_text())
        assert config["kendall_tau"] > 0.7  # a barely trained network is near all ties
    title = TitleReranker.load(tmp_path / "model/title", threads=1)
    passage = PassageReranker.load(tmp_path / "model/passage", threads=1)
    recipe = read_recipe(tmp_path / "passage" / "recipe.toml")
    windows = score_windows(recipe, data, Scorer(title, passage, depth=8), queries=20)
    fusion = fit_fusion(windows)
    assert all(weight >= 0 for weight in fusion)
    fusion.write(tmp_path / "model" / "fusion.json")
    result = Cascade.load(tmp_path / "model").rerank(
        "merge lists", [Hit("a", "heap", "merge", 1.0)]
    )
    assert [hit.id for hit in result.hits] == ["a"]


def test_what_the_start_was_trained_on_stays_known(data, backbone, tmp_path):
    recipe = prepared(tmp_path / "first", data, recipe_text("title", backbone))
    train(recipe, tmp_path / "first", stop_at=4)
    export_trained(tmp_path / "first", tmp_path / "m1", "first")
    early = np.array([7, 11], dtype=np.uint64)
    np.save(tmp_path / "m1" / "trained-on.npy", early)
    text = f'start = "{tmp_path / "m1"}"\n' + recipe_text("title", backbone)
    recipe = prepared(tmp_path / "second", data, text)
    train(recipe, tmp_path / "second", stop_at=4)
    export_trained(tmp_path / "second", tmp_path / "m2", "second")
    own = np.load(tmp_path / "second" / "trained-on.npy")
    assert trained_on(tmp_path / "m2") == {*early.tolist(), *own.tolist()}


@pytest.mark.parametrize("first", ["start", "layers"])
def test_what_an_earlier_start_was_trained_on_stays_known(data, backbone, tmp_path, first):
    text = recipe_text("title", backbone)
    taught = f'[taught_by]\nfolder = "{tmp_path / "0"}"\nlayers = [0, 1]\n'
    second = text + taught if first == "layers" else f'start = "{tmp_path / "0"}"\n{text}'
    texts = [text, second, f'start = "{tmp_path / "1"}"\n{text}']
    for number, one in enumerate(texts):
        recipe = prepared(tmp_path / str(number), data, one)
        np.save(tmp_path / str(number) / "trained-on.npy", np.array([number], dtype=np.uint64))
        train(recipe, tmp_path / str(number), stop_at=4)
    export_trained(tmp_path / "2", tmp_path / "model", "third", "fp32")
    assert trained_on(tmp_path / "model") == {0, 1, 2}


def test_what_is_trained_further_reads_its_start_s_tokens(data, backbone, tmp_path):
    recipe = prepared(tmp_path / "first", data, recipe_text("title", backbone))
    train(recipe, tmp_path / "first", stop_at=4)
    export_trained(tmp_path / "first", tmp_path / "model", "first")
    own = (backbone / "tokenizer.json").read_text("utf-8")
    vocabulary = json.loads(own)["model"]["vocab"]
    for start in (None, "first", "model"):
        changes = {"start": start and str(tmp_path / start), "backbone": "no/one"}
        used = tokenizer_of(recipe.model_copy(update=changes if start else {}))
        assert json.loads(used)["model"]["vocab"] == vocabulary
    taught = {"folder": str(tmp_path / "model"), "layers": [0]}
    student = changed(recipe, taught_by=taught, backbone="no/one")
    assert json.loads(tokenizer_of(student))["model"]["vocab"] == vocabulary


def test_what_is_left_out_of_texts_is_so_in_training_export_and_further_training(
    data, backbone, tmp_path
):
    text = recipe_text("title", backbone)
    recipe = prepared(tmp_path / "run", data, text + 'left_out = ["the", "of"]\n')
    train(recipe, tmp_path / "run", stop_at=4)
    export_trained(tmp_path / "run", tmp_path / "title", "small", "fp32")
    assert read_config(tmp_path / "title")["left_out"] == ["the", "of"]
    further = prepared(tmp_path / "more", data, text)
    for start in (tmp_path / "run", tmp_path / "title"):
        changes = {"start": str(start)}
        assert left_out_of(further.model_copy(update=changes)) == ["the", "of"]
        taught = recipe_text("title", backbone) + f'[taught_by]\nfolder = "{start}"\nlayers = [0]\n'
        assert left_out_of(prepared(tmp_path / start.name / "t", data, taught)) == ["the", "of"]
    assert left_out_of(further) == []
    read = load_data(recipe, tmp_path / "run")
    served = TitleReranker.load(tmp_path / "title", threads=1).tokenizer
    for place in range(0, len(read.pool), 7):
        (expected,) = served.encode([read.pool[place]], recipe.lists.max_text_tokens)
        assert read.texts[place].tolist() == expected.ids.tolist()
    assert any("the " in title for title in read.pool)


def test_a_fusion_finds_the_feature_that_tells(data):
    rng = np.random.default_rng(0)
    windows = []
    for _ in range(80):
        gold = np.zeros(12, dtype=bool)
        gold[rng.integers(12)] = True
        noise = rng.normal(size=(3, 12))
        windows.append(Window(noise[0], noise[1] + 2 * gold, noise[2], gold))
    fusion = fit_fusion({"set": windows})
    assert fusion.passage > 1.0
    assert fusion.passage > 4 * max(fusion.passage_title, fusion.passage_first_stage)
    assert (fusion.title_only, fusion.title_only_first_stage) == fusion[:2]  # no set says more

    # Pages, which have titles only: there the title tells, in the others it does not.
    pages = [Window(w.passage, np.full(12, np.nan), w.first, w.gold) for w in windows]
    both = fit_fusion({"texts": windows, "pages": pages})
    assert both[:5] == fusion[:5]
    assert both.title_only > 1.0 > 4 * both.title


def test_links_count_as_much_as_they_tell():
    rng = np.random.default_rng(0)
    windows: dict[str, list[Window]] = {"tells": [], "says nothing": []}
    for name, items in windows.items():
        for _ in range(150):
            gold = np.zeros(12, dtype=bool)
            gold[rng.choice(12, 2, replace=False)] = True
            first, second = np.flatnonzero(gold)
            noise = rng.normal(size=(3, 12))
            passage = noise[1]
            passage[first] += 5
            links = np.zeros((12, 12))
            links[first, second if name == "tells" and rng.random() < 0.6 else 0] = 1
            items.append(Window(noise[0], passage, noise[2], gold, links))
    tells = fit_fusion({"set": windows["tells"]})
    assert tells.mention > 2.0
    assert fit_fusion({"set": windows["says nothing"]}).mention < 0.3 * tells.mention
    # The other weights are those without.
    plain = [Window(w.title, w.passage, w.first, w.gold) for w in windows["tells"]]
    assert fit_fusion({"set": plain}) == tells._replace(mention=0.0)


def test_coverage_counts_as_much_as_it_tells():
    rng = np.random.default_rng(0)
    windows = []
    for _ in range(150):
        gold = np.zeros(12, dtype=bool)
        gold[rng.integers(12)] = True
        noise = rng.normal(size=(3, 12))
        held = np.clip(rng.random(12) + 0.3 * gold, 0, 1)
        windows.append(Window(noise[0], noise[1], noise[2], gold, coverage=held))
    tells = fit_fusion({"set": windows})
    assert min(tells.title_coverage, tells.passage_coverage) > 1.0
    shuffled = [
        Window(w.title, w.passage, w.first, w.gold, coverage=rng.permutation(w.coverage))
        for w in windows
    ]
    assert fit_fusion({"set": shuffled}).title_coverage < 0.3 * tells.title_coverage
    # Where no text holds more of the query than another, it says nothing.
    plain = [Window(w.title, w.passage, w.first, w.gold) for w in windows]
    nothing = fit_fusion({"set": plain})
    assert (nothing.title_coverage, nothing.passage_coverage) == (0.0, 0.0)


@pytest.mark.parametrize("tells", [True, False])
def test_long_statements_trust_the_first_stage_as_far_as_it_tells(tells):
    rng = np.random.default_rng(0)

    def drawn(passage: float, first: float, tokens: int, question: bool) -> list[Window]:
        found = []
        for _ in range(100):
            gold = np.zeros(12, dtype=bool)
            gold[rng.integers(12)] = True
            noise = rng.normal(size=(3, 12))
            noise[1] += passage * gold
            noise[2] += first * gold
            found.append(Window(*noise, gold, tokens=tokens, question=question))
        return found

    # The weights are those of questions, which ask for little of the first stage.
    sets = {
        f"questions {i}": drawn(passage=2.5, first=0.5, tokens=20, question=True) for i in range(3)
    }
    first = 3.0 if tells else 0.0
    sets["sentences"] = drawn(passage=0.0, first=first, tokens=40, question=False)
    assert fit_fusion(sets).most_trust == (6.0 if tells else 2.0)


def test_sets_with_few_windows_are_left_out():
    window = Window(*np.zeros((3, 2)), np.array([True, False]))
    sets = {"large": [window] * 7, "small": [window] * 3, "few": [window] * 2}
    assert list(without_small(sets)) == ["large", "small"]
    assert without_small({}) == {}


def test_the_schedule_rises_stays_and_falls(data, backbone, tmp_path):
    text = recipe_text("passage", backbone, warm_up="0.1", cool_down="0.2")
    (tmp_path / "r.toml").write_text(text.replace("steps = 12", "steps = 100"))
    recipe = read_recipe(tmp_path / "r.toml")
    factors = [schedule(recipe, step) for step in range(100)]
    assert factors[:11] == sorted(factors[:11])
    assert factors[0] < 0.2
    assert set(factors[15:75]) == {1.0}
    assert factors[80:] == sorted(factors[80:], reverse=True)
    assert 0 < factors[-1] < 0.1


def test_kendall_s_tau_by_hand():
    one = np.array([3.0, 2.0, 1.0], dtype=np.float32)
    assert kendall_tau(one, one) == 1.0
    assert kendall_tau(one, -one) == -1.0
    assert kendall_tau(one, one[[1, 0, 2]]) == pytest.approx(1 / 3)


def test_ties_are_lost():
    gold = torch.tensor([False, True, False])
    assert reciprocal_rank(torch.tensor([1.0, 1.0, 0.0]), gold) == 0.5
    assert reciprocal_rank(torch.tensor([1.0, 2.0, 0.0]), gold) == 1.0


@pytest.mark.parametrize(("scores", "rank"), [([NAN] * 3, 3), ([0, NAN, 0], 3), ([NAN, 0, 1], 2)])
def test_what_is_no_number_ranks_last(scores, rank):
    gold = torch.tensor([False, True, False])
    assert reciprocal_rank(torch.tensor(scores), gold) == pytest.approx(1 / rank)
    gold_first = np.array([scores[1], scores[0], scores[2]])
    assert reciprocal_rank_of_arrays(gold_first, 1) == pytest.approx(1 / rank)


def test_a_training_needs_both_sides_of_the_split(data, backbone, tmp_path):
    recipe = prepared(tmp_path, data, recipe_text("title", backbone))
    for name, word in (("dev", "dev"), ("train", "training")):
        pool, _ = load(tmp_path / name)
        save(tmp_path / name, pool, [])
        with pytest.raises(ValueError, match=f"no {word} examples.*another --out"):
            train(recipe, tmp_path)
    assert not (tmp_path / "log.jsonl").exists()


def test_a_training_that_is_to_stop_at_once_does(data, backbone, tmp_path):
    recipe = prepared(tmp_path, data, recipe_text("title", backbone))
    train(recipe, tmp_path, stop_at=0)
    assert not (tmp_path / "log.jsonl").exists()


def test_a_fusion_needs_passages_that_were_read():
    nothing = np.full(3, np.nan)
    pages = Window(np.ones(3), nothing, np.ones(3), np.array([True, False, False]))
    for windows in ({"pages": [pages]}, {}):
        with pytest.raises(ValueError, match="sources that have passages"):
            fit_fusion(windows)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task = [", "not TOML"),
        ('task = "title"\nsteps = 0\n[data]\nsources = [{path = "x"}]', "steps"),
        (SHORT + "[model]\nquery_bais = 1.0", "model: .*query_bais: Extra inputs"),
        (SHORT + '[model]\nlayers = "three"', "model: .*layers: Input should be a valid integer"),
        (SHORT + '[model]\nsinks = true\nstart = "scratch"', "model: .*cannot have sinks"),
        ("seed = -1\n" + SHORT, "seed"),
        ("learning_rate = inf\n" + SHORT, "learning_rate"),
        ("margin = nan\n" + SHORT, "margin"),
        (f'architecture = "pair"\ndistillation = 1.0\n{SHORT}', "only the broadcast architecture"),
        (f'architecture = "pair"\nin_batch = 1.0\n{SHORT}', "only the broadcast architecture"),
        (f'architecture = "pair"\n{SHORT}[augment]', "only the broadcast architecture"),
        (f'architecture = "pair"\n{SHORT}[model]\nintermediate = 8', "broadcast architecture only"),
        ('task = "title"\nstep = 5\n[data]\nsources = [{path = "x"}]', "step"),
    ],
)
def test_a_wrong_recipe_names_the_field(tmp_path, text, message):
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_recipe(tmp_path / "r.toml")


def test_the_shipped_recipes_are_valid():
    assert {read_recipe(path).task for path in RECIPES.glob("*.toml")} == {"title", "passage"}
