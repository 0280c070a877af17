"""Logs: one line each, whatever is in it; and no log, however broken, holds anybody up."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugin.sidecar import logs
from plugin.sidecar.logs import AsideHandler, JsonLines
from tests.waiting import wait_until


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.Logger("sidecar")
    yield logger
    for handler in logger.handlers:
        handler.close()


def written(logger: logging.Logger, descriptor: int) -> AsideHandler:
    handler = AsideHandler(descriptor)
    handler.setFormatter(JsonLines())
    logger.addHandler(handler)
    return handler


def test_a_line_is_json_with_its_fields(logger: logging.Logger, tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        handler = written(logger, file.fileno())
        logger.info("search %r", "shop\n42", extra={"opaque_id": "shop\n42", "hits": 3})
        try:
            raise ValueError("broken")
        except ValueError:
            logger.exception("failed")
        handler.close()
    first, second = map(json.loads, (tmp_path / "log").read_text().splitlines())
    assert first.pop("time").endswith("Z")
    assert first == {
        "level": "info",
        "logger": "sidecar",
        "message": "search 'shop\\n42'",
        "opaque_id": "shop\n42",
        "hits": 3,
    }
    assert "ValueError: broken" in second["exception"]


@given(text=st.text() | st.just("\ud800\x00\u2028\r\n"), value=st.text() | st.floats())
def test_whatever_is_logged_is_one_line(text: str, value: object) -> None:
    record = logging.makeLogRecord({"msg": "%s", "args": (text,), "opaque_id": value})
    line = JsonLines().format(record)
    assert len(line.splitlines()) == 1
    assert json.loads(line)["message"] == text


@pytest.mark.parametrize("way", ["full", "closed", "stuck"])
def test_a_log_that_cannot_be_written_is_counted_and_waited_for_by_nobody(
    logger: logging.Logger, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(logs, "_LINES", 10)
    lost: list[int] = []
    reading, writing = os.pipe()
    if way == "full":
        os.close(writing)
        writing = os.open("/dev/full", os.O_WRONLY)
    elif way == "closed":
        os.close(reading)
        reading = -1
    handler = written(logger, writing)
    handler.lost = lambda: lost.append(1)
    done = threading.Event()

    def log() -> None:
        for _ in range(1000):
            logger.info("x" * 1000)
        done.set()

    thread = threading.Thread(target=log, daemon=True)
    thread.start()
    assert done.wait(60)
    thread.join()
    wait_until(lambda: len(lost) >= 900)
    if way == "stuck":  # nobody reads: let the thread go that writes
        monkeypatch.setattr(logs, "_LAST_SECONDS", 0)
        handler.close()
        os.set_blocking(writing, False)
        os.read(reading, 10**6)
    logger.removeHandler(handler)
    handler.close()
    if way == "stuck":
        handler._thread.join(60)
    for descriptor in (reading, writing):
        if descriptor >= 0:
            os.close(descriptor)
