"""Log lines as JSON, written aside: a log that is full, closed or stuck costs no search."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import threading
import time
from collections.abc import Callable

_LINES = 10_000  # kept while the log is not taken up; then lines are lost, and counted
_LAST_SECONDS = 1.0  # for the lines that are left at the end

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and the record's `extra` fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record; whatever is in it, it stays one line."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **{name: value for name, value in vars(record).items() if name not in _OWN},
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class AsideHandler(logging.Handler):
    """Hands lines to a thread that writes them to a file descriptor; never waits for it."""

    def __init__(self, descriptor: int = 2, lost: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self._descriptor = descriptor
        self.lost = lost  # called once for each line that could not be written
        self._lines: queue.Queue[bytes | None] = queue.Queue(_LINES)
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Put a record in line to be written."""
        try:
            line = self.format(record).encode("utf-8", "backslashreplace") + b"\n"
            self._lines.put_nowait(line)
        except queue.Full:
            self.lost()
        except Exception:  # noqa: BLE001, RUF100 - of a record's making; a log ends no search
            self.lost()

    def close(self) -> None:
        """Write what is left, for a moment."""
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(None)
        self._thread.join(_LAST_SECONDS)
        super().close()

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            if not self._written(line):
                self.lost()

    def _written(self, line: bytes) -> bool:
        try:
            while line:
                line = line[os.write(self._descriptor, line) :]
        except OSError:  # closed, or the disk is full
            return False
        return True


def write_logs(form: str, level: int = logging.INFO) -> AsideHandler:
    """Send the sidecar's logs to standard error, as `json` or `text`, in place of all before."""
    handler = AsideHandler()
    handler.setFormatter(
        JsonLines()
        if form == "json"
        else logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    )
    root = logging.getLogger()
    for other in list(root.handlers):
        root.removeHandler(other)
    root.addHandler(handler)
    for name in ("plugin.sidecar", "plugin.cli.serve", "uvicorn"):
        logger = logging.getLogger(name)
        if not logger.isEnabledFor(level):
            logger.setLevel(level)
    return handler
