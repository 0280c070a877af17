"""Pictures of a report. matplotlib is loaded here only, when a picture is asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reranker.evaluation.reports import DepthPoint


def require_drawable(path: Path) -> None:
    """Raise ImportError without matplotlib, ValueError for a suffix that it does not draw.

    For calling before hours of work whose last step is the picture.
    """
    try:
        from matplotlib import backend_bases
    except ImportError:
        raise ImportError(
            "Drawing needs matplotlib; `pip install 'titlecast[train]'`, or leave out --plot."
        ) from None
    if path.suffix[1:].lower() not in backend_bases.FigureCanvasBase.get_supported_filetypes():
        raise ValueError(f"{path} names no kind of picture; end it with .png, .svg or .pdf.")


def draw_depths(path: Path, points: Sequence[DepthPoint], measure: str, title: str) -> None:
    """Draw quality against passage depth, and against time per query, with 95 % intervals.

    The file's suffix chooses the format (png, svg, pdf).

    Raises ImportError without matplotlib, ValueError without points or for another suffix.
    """
    if not points:
        raise ValueError("There are no depths to draw; sweep at least one.")
    require_drawable(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Figure without pyplot: no display is looked for, and no state is left behind.
    figure: Any = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    means = [point.estimates[measure].mean for point in points]
    below = [point.estimates[measure].mean - point.estimates[measure].low for point in points]
    above = [point.estimates[measure].high - point.estimates[measure].mean for point in points]
    for axes, places, label in (
        (left, [point.depth for point in points], "passages read per query"),
        (right, [point.milliseconds for point in points], "milliseconds per query"),
    ):
        axes.errorbar(places, means, yerr=[below, above], marker="o", capsize=3)
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    left.set_ylabel(measure)
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


def draw_curves(path: Path, logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Draw trainings' logs: loss, smoothed, and dev quality against steps.

    A log's lines hold `step` and `loss`, and where the dev split was looked at `alone`, `fused`
    and `first`. Raises ImportError without matplotlib, ValueError without a line or for a suffix
    that is none of a picture.
    """
    if not any(logs.values()):
        raise ValueError("There is nothing to draw: no step was logged yet.")
    require_drawable(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for number, (name, lines) in enumerate(logs.items()):
        colour = f"C{number}"
        steps = [line["step"] for line in lines]
        left.plot(steps, smooth([line["loss"] for line in lines]), color=colour, label=name)
        looked = [line for line in lines if "fused" in line]
        for key, style in (("alone", "--"), ("fused", "-"), ("first", ":")):
            values = [line[key] for line in looked]
            places = [line["step"] for line in looked]
            right.plot(places, values, style, marker=".", color=colour, label=f"{name}: {key}")
    left.set_ylabel("loss")
    right.set_ylabel("dev quality (mean reciprocal rank)")
    for axes in (left, right):
        axes.set_xlabel("steps")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)


def smooth(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """An exponential moving average without a start that counts too much; gaps stay out of it."""
    total, mass, found = 0.0, 0.0, []
    for value in values:
        if math.isfinite(value):
            total, mass = weight * total + (1 - weight) * value, weight * mass + 1 - weight
        found.append(total / mass if mass else math.nan)
    return found
