"""A training recipe: one small TOML file, validated; the same file makes the same weights."""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    model_validator,
)

from reranker.models.backbone import DEFAULT_BACKBONE
from reranker.models.broadcast import BroadcastConfig

if sys.version_info >= (3, 11):
    import tomllib
else:  # the same library under its old name
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

RECIPES = Path(__file__).parent / "recipes"  # those of the shipped models


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


_Network = create_model(  # type: ignore[call-overload]
    "_Network",
    __config__=ConfigDict(extra="forbid", strict=True, allow_inf_nan=False),
    **{
        field.name: (get_type_hints(BroadcastConfig)[field.name], field.default)
        for field in fields(BroadcastConfig)
    },
)


def _check_network(changes: dict[str, Any]) -> dict[str, Any]:
    """Raise ValueError for what is no change to an architecture's configuration."""
    try:
        _Network.model_validate(changes)
    except ValidationError as error:
        raise ValueError(_first(error).rstrip(".")) from None
    BroadcastConfig(**changes)  # for its own errors
    return changes


class SourceConfig(_Strict):
    """One set of judged queries; see `reranker.evaluation.collections.read_collection`."""

    path: str  # below the data folder
    format: str | None = None
    queries: str | None = None  # which query set of a folder that holds several
    # Unjudged passages under a gold title are probably relevant too: never negatives.
    skip_gold_title: bool = False
    # Field of a JSON Lines source that names the query another one was made from (HoVer's claims:
    # "hpqa_id"): where one of that family is held out, all of it is.
    made_from: str | None = None
    # How often each training query is taken per epoch: 2 is twice, 0.3 is three in ten of them.
    weight: float = Field(default=1.0, gt=0)


class DataConfig(_Strict):
    """What is trained on and which candidates stand against the gold texts."""

    sources: list[SourceConfig] = Field(min_length=1)
    corpora: list[str] = []  # further documents, below the data folder
    window: int = Field(default=100, ge=2)  # first-stage candidates per query
    # And as many of a bi-encoder's: of the one that `taught_by` names, or else of the backbone.
    dense: int = Field(default=0, ge=0)
    # JSON Lines of queries without judgements, below the data folder: `text`, `input` or `claim`.
    # Their candidates are found like the others' and only a teacher's scores say which are good.
    unlabelled: list[str] = []
    # And trained on besides: at most so many sentences of each document as queries for its title,
    # which is taken out of them. Titles only.
    made: int = Field(default=0, ge=0)


class ListConfig(_Strict):
    """How one training list is drawn from a query's candidates."""

    size: int = Field(default=32, ge=2)  # texts per list, the gold ones included
    golds: int = Field(default=1, ge=1)  # at most so many of a query's gold texts
    near: int = Field(default=8, ge=0)  # of them from the head of the window
    head: int = Field(default=16, ge=1)  # how long that head is
    dense: int = Field(default=0, ge=0)  # from the dense candidates
    random: int = Field(default=0, ge=0)  # from the whole pool; the rest from the window
    mined: int = Field(default=0, ge=0)  # from the head of a ranking of all candidates
    # Whose: the model's own, or, at no cost, the teacher's whose scores the examples carry.
    mined_by: Literal["model", "teacher"] = "model"
    remine_every: int = Field(default=200, ge=1)  # steps between two rankings by the model
    query_dropout: float = Field(default=0.0, ge=0, lt=1)  # share of a query's tokens left out
    max_query_tokens: int = Field(default=48, ge=8)
    max_text_tokens: int = Field(default=32, ge=8)
    # Tokens that are left out of texts, also when the model is served; None: those that the
    # model leaves out which the training starts from.
    left_out: list[str] | None = None


class AugmentConfig(_Strict):
    """Hybrid data augmentation (RocketQAv2, arXiv 2110.07367, section 3.3); see `augment`."""

    every: int = Field(default=500, ge=1)  # steps between two minings
    first: int = Field(default=0, ge=0)  # the step of the first one, a multiple of `every`
    share: float = Field(default=0.5, gt=0, le=1)  # of every batch's lists that are mined ones
    labelled: int = Field(default=512, ge=1)  # training queries mined for at a time
    unlabelled: int = Field(default=0, ge=0)  # queries without judgements, at a time
    made: int = Field(default=0, ge=0)  # queries made from passages, at a time
    pool: int = Field(default=20000, ge=2)  # passages that the dual encoder searches at a time
    depth: int = Field(default=50, ge=2)  # of them per query that the reranker scores
    denoised: float = Field(default=0.5, ge=0, le=1)  # share of a list; the rest is random
    positive_above: float = Field(default=0.9, gt=0.5, le=1)  # confidence of a pseudo-positive
    negative_below: float = Field(default=0.1, ge=0, le=0.5)  # and of a hard negative
    # JSON Lines of queries without judgements, below the data folder: `text`, `input` or `claim`.
    queries: list[str] = []


class TeacherConfig(_Strict):
    """A teacher whose scores are learned beside the labels: distillation with a frozen teacher.

    KL(softmax(teacher / temperature) || softmax(student / temperature)) over each list; where
    the dual encoder takes part in a step, it is a student too. A network that teaches reads the
    same tokens as the student, and besides, but for mined lists, those that the student leaves
    out and it does not.
    """

    # A training's folder or a model folder; or a bi-encoder (Hugging Face name or folder) whose
    # cosines teach. Where that one also finds the dense candidates (`data.dense`), its scores
    # of all candidates are written into the examples once.
    # Without either: the scores that the examples carry (`Example.taught`).
    folder: str | None = None
    encoder: str | None = None
    query_prompt: str = ""  # what the bi-encoder wants before a query
    text_prompt: str = ""  # and before a text
    scale: float = Field(default=20.0, gt=0)  # of its cosines
    blend: float = Field(default=1.0, ge=0, le=1)  # of a training: `titlecast export --blend`
    weight: float = Field(default=1.0, ge=0)
    temperature: float = Field(default=1.0, gt=0)
    layers: list[int] = []  # of the teacher's, which the network starts from; else the backbone


class KeepConfig(_Strict):
    """Unlabelled lists on which the network is held to what was known before.

    To the scores of the network that `taught_by` names, or of the one that is the `start`, or
    else to those of the bi-encoder that the training started as, so that training in some domains
    does not forget others.
    """

    corpora: list[str] = []  # below the data folder
    weight: float = Field(default=1.0, gt=0)  # of KL(softmax(known before) || softmax(network))
    # Of every corpus: so many sentences of its documents, against their own title and others; and
    # so many pieces of sentences, against other pieces.
    queries: int = Field(default=1000, ge=0)
    phrases: int = Field(default=0, ge=0)
    words: int = Field(default=0, ge=0)  # and lists of words drawn at random from the vocabulary
    queries_per_step: int = Field(default=2, ge=1)
    size: int = Field(default=16, ge=2)  # texts per list
    text_words: int = Field(default=8, ge=1)  # at most so many in a text of phrases or words
    held_to: Literal["teacher", "start"] = "teacher"  # if there is such a one

    def drawn(self, lists: ListConfig) -> ListConfig:
        """How these are drawn, of how the recipe's others are."""
        return lists.model_copy(update={"size": self.size, "golds": 1})

    @model_validator(mode="after")
    def _makes_lists(self) -> KeepConfig:
        if not (self.words or (self.corpora and (self.queries or self.phrases))):
            raise ValueError("there is nothing to make lists of: give corpora, or words = 1000")
        return self


class Recipe(_Strict):
    """Everything that decides a training's result."""

    task: Literal["title", "passage"]
    architecture: Literal["broadcast", "pair"] = "broadcast"
    backbone: str = DEFAULT_BACKBONE
    # A training's folder, or a model folder of the broadcast architecture, whose weights the
    # network starts from; `model` is then that folder's, but for a late interaction
    # (`token_match`, `mean_match`) or `sinks` that are added to a network without them, and for
    # `intermediate`.
    start: str | None = None
    # Changes to the architecture's configuration, `BroadcastConfig`. For a smaller `intermediate`
    # those units are left out that the network can best do without.
    model: Annotated[dict[str, Any], AfterValidator(_check_network)] = {}
    data: DataConfig
    lists: ListConfig = ListConfig()
    loss: Literal["softmax", "sigmoid-trick", "pairwise"] = "softmax"
    labels: float = Field(default=1.0, ge=0)  # weight of that loss; 0: only a teacher says
    margin: float = 0.0  # of the Sigmoid Trick
    temperature: float = Field(default=1.0, gt=0)
    # Share of lists whose scores are trained as an addition to the first stage's, with a
    # learned weight, so that the model learns what the first stage does not know.
    with_first_stage: float = Field(default=0.5, ge=0, le=1)
    # Weight of RocketQAv2's KL term; the dual encoder is the same network without the query.
    distillation: float = Field(default=0.0, ge=0)
    # "static": the distillation's gradient reaches the dual encoder's scores only.
    teacher: Literal["dynamic", "static"] = "dynamic"
    # Weight of the dual encoder's own cross-entropy, against the whole batch's texts.
    in_batch: float = Field(default=0.0, ge=0)
    # The dual encoder reads every text a second time, which nearly doubles a step: it takes part
    # in every batch (1), every second one (2) …
    dual_every: int = Field(default=1, ge=1)
    augment: AugmentConfig | None = None
    taught_by: TeacherConfig | None = None
    # At most so many texts are held in memory at a time, the others' states are computed again
    # for the gradients: about a third more time, memory that does not grow with the lists.
    # 0 holds all.
    texts_per_pass: int = Field(default=0, ge=0)
    keep: KeepConfig | None = None
    precision: Literal["fp32", "bf16"] = "fp32"  # of the matrix products; weights are fp32
    # Processes that put lists together while the network learns from those before: a GPU waits
    # for them otherwise.
    workers: int = Field(default=0, ge=0)
    steps: int = Field(default=2000, ge=1)
    queries_per_step: int = Field(default=8, ge=1)
    accumulate: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=1e-4, gt=0)
    layer_decay: float = Field(default=0.85, gt=0, le=1)  # per layer, downwards
    bias_learning_rate: float = Field(default=5e-3, gt=0)
    head_learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    frozen_layers: int = Field(default=0, ge=0)  # lowest layers kept as they are
    train_embeddings: bool = False
    warm_up: float = Field(default=0.05, ge=0, le=1)  # share of the steps
    cool_down: float = Field(default=0.3, ge=0, le=1)  # linear to zero at the end
    clip: float = Field(default=1.0, gt=0)
    seed: int = Field(default=0, ge=0)
    check_every: int = Field(default=250, ge=1)  # steps between two looks at the dev split
    check_queries: int = Field(default=300, ge=1)  # as many of every source
    # Stop after so many looks without a better result; 0 never.
    patience: int = Field(default=0, ge=0)
    save_every: int = Field(default=100, ge=1)

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        if self.taught_by and self.taught_by.folder and self.taught_by.encoder:
            raise ValueError("there is one teacher: give taught_by a folder or an encoder")
        if self.architecture != "broadcast" and (
            self.distillation or self.in_batch or self.augment
        ):
            raise ValueError(
                "distillation, in_batch and augment train a dual encoder, which only the "
                "broadcast architecture has: leave them out, or give it"
            )
        if not self.labels and self.taught_by is None:
            raise ValueError("labels = 0 leaves nothing to learn from: give taught_by, or labels")
        if self.architecture != "broadcast" and "intermediate" in self.model:
            raise ValueError(
                "model: intermediate narrows networks of the broadcast architecture only: leave it "
                "out, or give it"
            )
        if self.augment and self.taught_by and self.taught_by.folder is None:
            raise ValueError(
                "only a network scores mined lists: give taught_by a folder, or leave augment out"
            )
        if self.data.unlabelled and (self.task != "passage" or self.taught_by is None):
            raise ValueError(
                "unlabelled is for passages, and only a teacher's scores say anything of them: "
                "give taught_by, or leave it out"
            )
        if self.data.made and self.task != "title":
            raise ValueError("made is for titles; passages have augment.made")
        if self.keep and self.architecture != "broadcast":
            raise ValueError("keep needs a model of the broadcast architecture")
        if self.keep and self.task != "title" and self.keep.corpora and self.keep.queries:
            raise ValueError("keep.queries are for titles; for passages give 0, and phrases, words")
        if self.keep and self.keep.held_to == "start" and self.start is None:
            raise ValueError('keep.held_to = "start" needs a start')
        return self


def read_recipe(path: Path) -> Recipe:
    """Read a recipe. Raises ValueError that names the field at fault."""
    try:
        return Recipe.model_validate(tomllib.loads(path.read_text("utf-8")))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not TOML: {error}.") from None
    except ValidationError as error:
        raise ValueError(f"{path}: {_first(error)}") from None


def changed(recipe: Recipe, **changes: Any) -> Recipe:
    """A recipe with other values in some fields. Raises ValueError that names the one at fault."""
    try:
        return Recipe.model_validate(recipe.model_dump() | changes)
    except ValidationError as error:
        raise ValueError(_first(error)) from None


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}." if where else f"{first['msg']}."


def as_toml(recipe: Recipe) -> str:
    """A recipe as the text of a file that `read_recipe` reads."""
    return _table(recipe.model_dump(mode="json", exclude_defaults=True))


def _table(values: dict[str, Any]) -> str:
    """TOML with one key a line; JSON's strings, numbers and lists are TOML's too."""
    plain = {key: value for key, value in values.items() if not isinstance(value, dict)}
    lines = [f"{key} = {_value(value)}" for key, value in plain.items() if value is not None]
    for key, value in values.items():
        if isinstance(value, dict):
            lines += ["", f"[{key}]", _table(value)]
    return "\n".join(lines)


def _value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_value(item) for item in value)}]"
    if isinstance(value, dict):
        pairs = (f"{key} = {_value(item)}" for key, item in value.items() if item is not None)
        return f"{{ {', '.join(pairs)} }}"
    return json.dumps(value, ensure_ascii=False)
