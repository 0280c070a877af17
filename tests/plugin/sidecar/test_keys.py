"""Keys: all that are in force let callers in, whatever becomes of their file."""

from __future__ import annotations

import hmac
import logging
import time
from pathlib import Path

import pytest

from plugin.sidecar import keys as module
from plugin.sidecar.keys import Keys, KeysError


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The moment that keys are told; each look is at most a second after the one before."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def bearer(key: str) -> bytes:
    return f"Bearer {key}".encode()


def test_without_keys_everybody_may_ask() -> None:
    assert Keys().admit(b"")
    assert len(Keys()) == 0


def test_each_of_several_keys_lets_in() -> None:
    keys = Keys(["old", "new"])
    assert keys.admit(bearer("old"))
    assert keys.admit(bearer("new"))
    assert keys.admit(b"bearer  new")  # RFC 9110: schemes have no case
    for wrong in (b"", b"old", b"Basic old", bearer("ol"), bearer("oldnew"), bearer("old new")):
        assert not keys.admit(wrong)


def test_every_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return a == b

    keys = Keys(["first", "second", "third"])
    monkeypatch.setattr(hmac, "compare_digest", compare)
    for given in ("first", "third", "x", "x" * 1000):
        compared.clear()
        keys.admit(bearer(given))
        assert compared == [(32, 32)] * 3


def test_keys_are_not_kept() -> None:
    assert "open-sesame" not in repr(vars(Keys(["open-sesame"])))


def test_a_rotated_key_counts_without_a_restart(tmp_path: Path, clock: list[float]) -> None:
    file = tmp_path / "keys"
    file.write_text("old\n")
    keys = Keys(file=file)
    file.write_text("\nold\n  new  \n")
    assert not keys.admit(bearer("new"))  # not looked at more often than each second
    clock[0] = 1.5
    assert keys.admit(bearer("new"))
    assert keys.admit(bearer("old"))
    # As Kubernetes mounts secrets: another file under the same name.
    other = tmp_path / "other"
    other.write_text("newer\n")
    other.replace(file)
    clock[0] = 3.0
    assert keys.admit(bearer("newer"))
    assert not keys.admit(bearer("old"))


@pytest.mark.parametrize("content", [None, b"", b"\n", b"two words", b"\xff\xfe"])
def test_a_file_that_turns_bad_changes_no_keys(
    tmp_path: Path, clock: list[float], caplog: pytest.LogCaptureFixture, content: bytes | None
) -> None:
    file = tmp_path / "keys"
    file.write_text("open-sesame\n")
    keys = Keys(file=file)
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    for now in (2.0, 4.0):
        clock[0] = now
        assert keys.admit(bearer("open-sesame"))
        assert not keys.admit(b"")
        assert not keys.admit(bearer("two words"))
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1  # not with every search
    file.write_text("new\n")
    clock[0] = 6.0
    assert keys.admit(bearer("new"))


def test_a_file_that_becomes_readable_later_is_read(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys"
    file.write_text("old\n")
    keys = Keys(file=file)
    file.write_text("new\n")

    def refused(*_: object) -> str:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", refused)
        clock[0] = 2.0
        assert not keys.admit(bearer("new"))
    time.sleep(0.05)  # file systems may count time in steps of some milliseconds
    file.chmod(0o640)  # its content and its time of writing stay what they were
    clock[0] = 4.0
    assert keys.admit(bearer("new"))
    assert not keys.admit(bearer("old"))


@pytest.mark.parametrize("key", ["", "two words", "schlüssel", "a\x00b"])
def test_a_key_that_no_header_carries_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(KeysError) as error:
        Keys(["fine", key])
    assert not key or key not in str(error.value)
