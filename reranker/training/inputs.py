"""What a folder was made of, kept in it, so that nothing else is resumed there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FILE = "inputs.json"


def keep_inputs(folder: Path, inputs: Mapping[str, Any]) -> None:
    """Write the options (JSON values by their names) that a folder is made with."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{FILE}.tmp"
    part.write_text(json.dumps(inputs, ensure_ascii=False, indent=1) + "\n", "utf-8")
    part.replace(folder / FILE)


def check_inputs(folder: Path, inputs: Mapping[str, Any]) -> None:
    """Raise ValueError, with the option's name, where the folder was made with other ones."""
    path = folder / FILE
    before = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    for name, value in inputs.items():
        if name not in before or before[name] != value:
            raise ValueError(
                f"{folder} was made with another {name}; give the same one, or another --out"
            )
