"""The networks a training begins with: from a backbone, or from layers of a trained network."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from reranker.evaluation.contamination import FILE
from reranker.models.backbone import load_backbone, load_tokenizer
from reranker.models.broadcast import BroadcastEncoder, from_bert
from reranker.models.narrow import narrow
from reranker.models.pair import PairEncoder
from reranker.models.restore import restore
from reranker.runtime import read_config
from reranker.training.config import read_recipe
from reranker.training.examples import load
from reranker.training.lists import Tokens, draw_list, padded
from reranker.training.processes import find_processes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from reranker.models.broadcast import List
    from reranker.training.config import Recipe

log = logging.getLogger(__name__)

Model = BroadcastEncoder | PairEncoder

START = "start.pt"  # in a training's folder: the network it starts from, where that was narrowed
# So many lists decide which units a narrower network keeps.
_LISTS = {"train": 256, "keep": 512}


def new_model(recipe: Recipe, folder: Path | None = None) -> Model:
    """The untrained network of a recipe, started from the backbone's weights.

    Where the recipe names a start, or a teacher's layers, it starts from those; with a start, the
    backbone itself is not asked for. `folder` is the training's, see `narrowed`.
    """
    if recipe.start is not None:
        return narrowed(started(Path(recipe.start), recipe), recipe, folder)
    # What is made of the weights below comes last.
    changes = {k: v for k, v in recipe.model.items() if k not in ("sinks", "intermediate")}
    backbone = load_backbone(recipe.backbone)
    model = from_bert(backbone.state, backbone.config, **changes)
    if recipe.architecture == "pair":
        return PairEncoder(model)
    taught_by = recipe.taught_by
    if taught_by is not None and taught_by.folder is not None and taught_by.layers:
        teacher = load_any(Path(taught_by.folder), taught_by.blend)
        if not isinstance(teacher, BroadcastEncoder):
            raise ValueError("a network can take layers of a teacher of the broadcast architecture")
        # What a teacher's layers are made of comes with them.
        theirs = teacher.config
        model = BroadcastEncoder(
            replace(model.config, sinks=theirs.sinks, intermediate=theirs.intermediate)
        )
        model.load_state_dict(some_layers(teacher.state_dict(), taught_by.layers, model))
    return narrowed(with_sinks(model, recipe), recipe, folder)


def seen_by(folder: Path) -> NDArray[np.uint64]:
    """Fingerprints of the queries that a training's or a model folder's weights were trained on.

    Those that the weights knew which they started from are among them.
    """
    path = folder / FILE
    seen = [np.load(path) if path.is_file() else np.empty(0, np.uint64)]
    if (folder / "recipe.toml").is_file():
        start = start_of(read_recipe(folder / "recipe.toml"))
        if start is not None:
            seen.append(seen_by(start))
    return np.unique(np.concatenate(seen))


def start_of(recipe: Recipe) -> Path | None:
    """The folder whose weights, or some layers of them, a training starts from, if any."""
    start = recipe.start
    if start is None and recipe.taught_by is not None and recipe.taught_by.layers:
        start = recipe.taught_by.folder
    return None if start is None else Path(start)


def tokenizer_of(recipe: Recipe) -> str:
    """The text of the tokenizer.json that the network reads: its start's, or the backbone's."""
    start = start_of(recipe)
    if start is None:
        return load_tokenizer(recipe.backbone)
    if (start / "recipe.toml").is_file():
        return tokenizer_of(read_recipe(start / "recipe.toml"))
    return (start / "tokenizer.json").read_text("utf-8")


def left_out_of(recipe: Recipe) -> list[str]:
    """The tokens that are left out of texts: as the recipe says, or else as its start does."""
    if recipe.lists.left_out is not None:
        return recipe.lists.left_out
    start = start_of(recipe)
    return [] if start is None else left_out_by(start)


def left_out_by(folder: Path) -> list[str]:
    """The tokens that the network of a training's folder or of a model folder does not read."""
    if (folder / "recipe.toml").is_file():
        return left_out_of(read_recipe(folder / "recipe.toml"))
    found: list[str] = read_config(folder).get("left_out", [])
    return found


def text_tokens(recipe: Recipe, tokenizer: Tokenizer, texts: Sequence[str]) -> Tokens:
    """Texts as the recipe's network reads them."""
    return Tokens(tokenizer, texts, recipe.lists.max_text_tokens, left_out_of(recipe))


def load_last(recipe: Recipe, folder: Path) -> tuple[Model, float]:
    """A training's network after its last step, ready to score, and the first stage's weight."""
    state = torch.load(folder / "checkpoint.pt", weights_only=True, map_location="cpu")
    model = new_model(recipe, folder)
    model.load_state_dict(state["model"])
    return model.eval(), float(state["first_stage"])


def started(folder: Path, recipe: Recipe) -> Model:
    """The network of a training's folder or of a model folder, to be trained further.

    Raises ValueError where that is of another kind than the recipe's.
    """
    task, backbone = kind_of(folder)
    if (task, backbone) != (recipe.task, recipe.backbone):
        raise ValueError(
            f"{folder} is a {task} model on {backbone}; the recipe is for a {recipe.task} model "
            f"on {recipe.backbone}"
        )
    model = load_any(folder)
    architecture = "pair" if isinstance(model, PairEncoder) else "broadcast"
    if architecture != recipe.architecture:
        raise ValueError(
            f"{folder} is a model of the {architecture} architecture, the recipe's is "
            f"{recipe.architecture}: give another start, or architecture = "
            f'"{architecture}"'
        )
    return with_sinks(with_tokens(model, recipe), recipe)


def kind_of(folder: Path) -> tuple[str, str]:
    """Task and backbone of a training's folder or a model folder.

    Raises FileNotFoundError for a folder of neither kind.
    """
    if (folder / "recipe.toml").is_file():
        recipe = read_recipe(folder / "recipe.toml")
        return recipe.task, recipe.backbone
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    if not {"task", "backbone"} <= config.keys():
        raise FileNotFoundError(
            f"{folder} is neither a training's folder nor a model folder: give one of them"
        )
    return config["task"], config["backbone"]


def load_any(folder: Path, blend: float = 1.0) -> Model:
    """The network of a training's folder (see `load_trained`) or of a model folder.

    Raises FileNotFoundError for a folder of neither kind.
    """
    kind_of(folder)  # for its error
    if (folder / "recipe.toml").is_file():
        return load_trained(folder, blend)[1]
    return restore(folder)


def with_tokens(model: Model, recipe: Recipe) -> Model:
    """The network with the late interaction that the recipe asks for, where it has none yet."""
    asked = {k: v for k, v in recipe.model.items() if k in ("token_match", "mean_match")}
    if not isinstance(model, BroadcastEncoder) or "token_match" not in asked:
        return model
    if model.config.token_match is not None:
        return model
    wider = BroadcastEncoder(replace(model.config, **asked))
    wider.load_state_dict(wider.state_dict() | model.state_dict())
    return wider


def with_sinks(model: Model, recipe: Recipe) -> Model:
    """The network with the sinks that the recipe asks for, where it has none yet.

    They start as the mean over 512 texts of two random words each.
    """
    if not isinstance(model, BroadcastEncoder) or not recipe.model.get("sinks"):
        return model
    if model.config.sinks:
        return model
    tokenizer = Tokenizer.from_str(tokenizer_of(recipe))
    tokenizer.no_padding()
    texts = np.tile(np.array(tokenizer.encode("a b").ids), (512, 1))  # [CLS] a b [SEP]
    words = np.random.default_rng(0).integers(model.config.vocabulary, size=(512, 2))
    texts[:, 1:-1] = words
    ids = torch.from_numpy(texts)
    return model.add_sinks(ids, torch.ones_like(ids, dtype=torch.bool))


def narrowed(model: Model, recipe: Recipe, folder: Path | None) -> Model:
    """The network with as few units in its feed-forward layers as the recipe asks for.

    Which go is decided on lists of the training's folder, where the network is kept; without a
    folder it has the shape only. Raises ValueError for a recipe that asks for more units than
    there are.
    """
    width = recipe.model.get("intermediate")
    if not isinstance(model, BroadcastEncoder) or width in (None, model.config.intermediate):
        return model
    if folder is None:
        return BroadcastEncoder(replace(model.config, intermediate=width))
    path = folder / START
    if not path.is_file():
        log.info("leaving out all but %d units of every feed-forward layer", width)
        there = model.to(find_processes().device)
        write(narrow(there, width, lists_to_read(recipe, folder)).cpu().state_dict(), path)
    found = BroadcastEncoder(replace(model.config, intermediate=width))
    found.load_state_dict(torch.load(path, weights_only=True))
    return found


def lists_to_read(recipe: Recipe, folder: Path) -> list[List]:
    """Some lists of a training's folder: of its examples and of its [keep], where it has one."""
    tokenizer = Tokenizer.from_str(tokenizer_of(recipe))
    draws = {"train": recipe.lists}
    if recipe.keep:
        draws["keep"] = recipe.keep.drawn(recipe.lists)
    found = []
    for name, config in draws.items():
        pool, items = load(folder / name)
        rng = np.random.default_rng([recipe.seed, 7])
        chosen = [items[i] for i in rng.permutation(len(items))[: _LISTS[name]].tolist()]
        drawn = [draw_list(item, config, len(pool), rng)[0] for item in chosen]
        queries = [item.query for item in chosen]
        found += as_lists(recipe, tokenizer, queries, [[pool[i] for i in texts] for texts in drawn])
    return found


def as_lists(
    recipe: Recipe,
    tokenizer: Tokenizer,
    queries: Sequence[str],
    texts: Sequence[Sequence[str]],
) -> list[List]:
    """Queries, each with its texts, as the recipe's network reads them."""
    asked = Tokens(tokenizer, queries, recipe.lists.max_query_tokens)
    tokens = text_tokens(recipe, tokenizer, [text for own in texts for text in own])
    rows = map(tokens.__getitem__, count())
    return [
        (padded([asked[place]])[0], *padded(list(islice(rows, len(own)))))
        for place, own in enumerate(texts)
    ]


def load_trained(folder: Path, blend: float = 1.0, average: bool = False) -> tuple[Recipe, Model]:
    """The trained network of a folder, mixed with its start: blend * trained + the rest * start.

    Averaging with the start keeps more of what the backbone knows about other domains
    (WiSE-FT: Wortsman et al. 2022, arXiv 2109.01903). `average` takes the mean of the best and
    the last weights: where few dev queries chose the best, that is safer than either (model
    soups: Wortsman et al. 2022, arXiv 2203.05482). Raises FileNotFoundError where nothing was
    trained yet.
    """
    recipe = read_recipe(folder / "recipe.toml")
    with torch.random.fork_rng(devices=[]):
        # A head that starts at random is the one that the training started with.
        torch.default_generator.manual_seed(recipe.seed)
        model = new_model(recipe, folder)
    path = folder / "best.pt"
    if blend == 0.0:
        return recipe, model.eval()
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: train first, with `titlecast train`")
    trained = torch.load(path, weights_only=True, map_location="cpu")["model"]
    if average:
        last = torch.load(folder / "checkpoint.pt", weights_only=True, map_location="cpu")["model"]
        trained = {name: value.lerp(last[name], 0.5) for name, value in trained.items()}
    start = model.state_dict()
    mixed = {name: start[name].lerp(value, blend) for name, value in trained.items()}
    model.load_state_dict(mixed)
    return recipe, model.eval()


def some_layers(
    teacher: Mapping[str, Tensor], layers: Sequence[int], model: BroadcastEncoder
) -> dict[str, Tensor]:
    """The state of a network that has some of a teacher's layers, the lowest first.

    Raises ValueError where the teacher has no such layer, or the network another number.
    """
    deep = len(teacher["query_bias"])
    if len(layers) != model.config.layers or not all(0 <= layer < deep for layer in layers):
        raise ValueError(
            f"taught_by.layers {list(layers)} do not fit: the network has {model.config.layers} "
            f"layers, the teacher 0 to {deep - 1}; give one for each, [model] layers is their "
            "number"
        )
    state = {}
    for name in model.state_dict():
        if name in ("query_bias", "sink_keys", "sink_values"):
            state[name] = teacher[name][list(layers)]
        elif name.startswith("layers."):
            _, depth, rest = name.split(".", 2)
            state[name] = teacher[f"layers.{layers[int(depth)]}.{rest}"]
        else:
            state[name] = teacher[name]
    return {name: value.clone() for name, value in state.items()}


def write(state: dict[str, Any], path: Path) -> None:
    """Save so that a crash leaves the old file or the new one, never half of one."""
    part = path.with_suffix(".tmp")
    torch.save(state, part)
    part.replace(path)
