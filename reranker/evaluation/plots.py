"""Pictures of a report. matplotlib is loaded here only, when a picture is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reranker.evaluation.reports import DepthPoint


def require_matplotlib() -> None:
    """Raise ImportError, with the remedy, where matplotlib is not installed.

    For calling before hours of work whose last step is the picture.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ImportError(
            "Drawing needs matplotlib; `pip install 'titlecast[train]'`, or leave out --plot."
        ) from None


def draw_depths(path: Path, points: Sequence[DepthPoint], measure: str, title: str) -> None:
    """Draw quality against passage depth, and against time per query, with 95 % intervals.

    The file's suffix chooses the format (png, svg, pdf).

    Raises ImportError without matplotlib, ValueError without points.
    """
    if not points:
        raise ValueError("There are no depths to draw; sweep at least one.")
    require_matplotlib()
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
