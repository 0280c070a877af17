from pathlib import Path

import numpy as np
import pytest

from reranker.evaluation.contamination import fingerprint, fingerprints, trained_on


def test_words_alone_count() -> None:
    assert fingerprint("Who wrote  Faust?") == fingerprint("who wrote_faust")
    assert fingerprint("Who wrote Faust?") != fingerprint("Who wrote Faust II?")
    # Pinned: the files beside shipped weights hold these numbers.
    assert fingerprint("who wrote faust") == 2584721787899515642


def test_fingerprints_are_sorted_and_distinct() -> None:
    prints = fingerprints(["b", "a", "A!", "c"])
    assert prints.dtype == np.uint64
    assert prints.tolist() == sorted({fingerprint(word) for word in "abc"})
    assert fingerprints([]).dtype == np.uint64


def test_all_models_of_a_folder_count(tmp_path: Path) -> None:
    assert trained_on(tmp_path) is None
    for name, words in (("title", ["a", "b"]), ("passage", ["b", "c"])):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "trained-on.npy", fingerprints(words))
    assert trained_on(tmp_path) == {fingerprint(word) for word in "abc"}
    assert trained_on(tmp_path / "title") == {fingerprint(word) for word in "ab"}


def test_another_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "trained-on.npy", np.zeros(3))
    with pytest.raises(ValueError, match="export the model again"):
        trained_on(tmp_path)
