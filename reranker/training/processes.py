"""Which processes share a training, and where each of them computes."""

from __future__ import annotations

import os

import torch
from accelerate import PartialState


def find_processes() -> PartialState:
    """The processes that share the training, and this one's device; one where nothing says more."""
    wanted = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return PartialState(cpu=wanted or not torch.accelerator.is_available())
