from __future__ import annotations

import sys
from pathlib import Path

import pytest

from reranker.evaluation.plots import draw_depths, require_drawable
from reranker.evaluation.reports import DepthPoint, Estimate

POINTS = [DepthPoint(d, {"R@5": Estimate(d / 20, d / 25, d / 15)}, 2.0 * d) for d in (0, 5, 10)]


@pytest.mark.filterwarnings("default")  # those of matplotlib are not ours
def test_a_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is in the train extra")
    draw_depths(tmp_path / "depths.png", POINTS, "R@5", "tiny")
    assert (tmp_path / "depths.png").read_bytes().startswith(b"\x89PNG")
    draw_depths(tmp_path / "depths.svg", POINTS, "R@5", "tiny")
    assert "passages read per query" in (tmp_path / "depths.svg").read_text()


def test_no_points_no_picture(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one"):
        draw_depths(tmp_path / "depths.png", [], "R@5", "tiny")


@pytest.mark.parametrize("name", ["depths.txt", "depths", "depths.png.old"])
def test_a_suffix_that_names_no_picture(tmp_path: Path, name: str) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is in the train extra")
    require_drawable(tmp_path / "depths.PNG")
    with pytest.raises(ValueError, match=rf"{name} names no kind of picture; end it with \.png"):
        require_drawable(tmp_path / name)


def test_without_matplotlib_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"titlecast\[train\].*--plot"):
        require_drawable(tmp_path / "depths.png")
    with pytest.raises(ImportError, match="--plot"):
        draw_depths(tmp_path / "depths.png", POINTS, "R@5", "tiny")
