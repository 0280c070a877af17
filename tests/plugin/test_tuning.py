"""What follows from what was measured, and that the measuring measures."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from plugin.sidecar.settings import load_settings
from plugin.tuning import (
    DepthTime,
    ThreadPoint,
    Tuned,
    Window,
    best,
    bytes_per_title,
    choose,
    environment,
    fewest_threads,
    measure_depth,
    measure_rate,
    measure_threads,
    thread_counts,
)
from reranker import Cascade, Hit
from tests.reranker.conftest import write_models

POINTS = [ThreadPoint(1, 100.0, 30.0), ThreadPoint(2, 60.0, 31.0), ThreadPoint(4, 58.0, 29.0)]
TIMES = [DepthTime(0, 20.0), DepthTime(10, 60.0), DepthTime(20, 100.0), DepthTime(50, 230.0)]
WINDOWS = [
    Window(query, [Hit(str(i), f"heap {word}", "merge lists", 1.0) for i, word in enumerate(words)])
    for query, words in (("merge", ["queue", "file", "line"]), ("read", ["queue", "open"]))
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize(
    ("cores", "counts"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])]
)
def test_numbers_of_threads_double_up_to_all_cores(cores, counts):
    assert thread_counts(cores) == counts


def test_the_fewest_threads_that_are_about_the_fastest():
    assert fewest_threads(POINTS) == 2
    assert choose(2, TIMES, 5000, 100, 4, 100).threads == 2


def test_the_deepest_that_fits_where_nothing_is_judged():
    assert choose(2, TIMES, 5000, 100, 4, 150).passage_depth == 20
    assert choose(2, TIMES, 5000, 100, 4, 1000).passage_depth == 50


def test_the_best_that_fits_where_quality_was_measured():
    qualities = [0.5, 0.7, 0.7, 0.9]
    times = [t._replace(quality=q) for t, q in zip(TIMES, qualities, strict=True)]
    assert choose(2, times, 5000, 100, 4, 150).passage_depth == 10
    assert choose(2, times, 5000, 100, 4, 230).passage_depth == 50


def test_a_budget_that_nothing_fits_is_said():
    tuned = choose(2, TIMES, 5000, 100, 4, 19)
    assert tuned.passage_depth == 0
    assert not tuned.within_budget
    assert choose(2, TIMES, 5000, 100, 4, 20).within_budget


def test_the_best_model_within_the_budget():
    fits, late = Tuned(2, 2, 1, 10, True), Tuned(2, 2, 1, 0, False)
    large, small = DepthTime(10, 90.0, 0.8), DepthTime(20, 60.0, 0.7)
    assert best([(fits, small), (fits, large)]) == 1
    assert best([(late, large), (fits, small)]) == 1
    assert best([(late, large), (late, small)]) == 1  # the faster one
    unjudged = [(fits, time._replace(quality=None)) for time in (large, small)]
    assert best(unjudged) == 0  # the first


def test_the_cache_has_room_for_all_titles_up_to_a_gigabyte():
    assert choose(2, TIMES, 5000, 100_000, 4, 100).cache_mb == 550
    assert choose(2, TIMES, 5000, 10, 4, 100).cache_mb == 1
    assert choose(2, TIMES, 5000, 10**9, 4, 100).cache_mb == 1024
    assert choose(2, TIMES, 0.0, 10**9, 4, 100).cache_mb == 0  # nothing can be kept


def test_settings_are_lines_and_comments():
    text = environment(choose(2, TIMES, 5000, 10, 4, 100), ["measured", "on a machine"])
    assert text.splitlines() == [
        "# measured",
        "# on a machine",
        "TITLECAST_THREADS=2",
        "TITLECAST_MAX_CONCURRENT=4",
        "TITLECAST_CACHE_MB=1",
    ]


def test_a_model_that_was_named_is_among_the_settings(tmp_path):
    text = environment(choose(2, TIMES, 5000, 10, 4, 100), [], tmp_path)
    assert text.splitlines()[0] == f"TITLECAST_MODEL={tmp_path}"


@pytest.mark.parametrize("name", ["my models", "a #1", "it's"])
def test_shells_and_the_sidecar_read_the_same_name_of_a_model(tmp_path, name):
    file = tmp_path / "titlecast.env"
    file.write_text(environment(choose(2, TIMES, 5000, 10, 4, 100), [], tmp_path / name))
    assert load_settings(file).model == tmp_path / name
    done = subprocess.run(
        ["sh", "-c", f'. {file}; printf %s "$TITLECAST_MODEL"'],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == str(tmp_path / name)


def test_real_searches_are_measured(models):
    points = measure_threads(models, WINDOWS, cores=2, depth=1, rounds=1)
    assert [point.threads for point in points] == [1, 2]
    assert all(point.alone_ms > 0 and point.per_second > 0 for point in points)
    cascade = Cascade.load(models, 1)
    assert measure_depth(cascade, WINDOWS, 2) > 0
    assert 0 < bytes_per_title(cascade, WINDOWS) < 5_000


def test_a_search_that_fails_fails_the_measurement(models):
    with pytest.raises(ValueError, match="query is empty"):
        measure_rate(Cascade.load(models, 1), [Window(" ", WINDOWS[0].hits)], 0, 2)
