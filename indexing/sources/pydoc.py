"""The documentation of the running Python's standard library: real text on every machine.

One document per documented public module, class, function, method and property; the title is
the name and the summary (`heapq.merge: Merge multiple sorted inputs into a single sorted
output`), the passage the call's parameters and the rest of the docstring.

The modules are imported by `_walk_stdlib.py` in a process of its own, under `-I` so that
nothing lying in a working directory is imported in a module's stead.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from indexing.records import Document, Failure, Record, Skip

_SCRIPT = Path(__file__).with_name("_walk_stdlib.py")
_SECONDS = 120.0  # it takes about two
_TITLE_CHARACTERS = 200
# Docstrings that say nothing of what they are attached to.
_EMPTY = frozenset({"an enumeration", "internal function", "internal method", "none", "deprecated"})
_ARROW = re.compile(r"\)\s*(?:-+>|=>|--|:)\s*")
# `None.  Remove all items` and `v, remove the key`: what comes before the text proper.
_RESULT_TYPE = re.compile(r"^(?:[\w\[\]]+|\([\w, ]+\))(?:\s\w+)?[.,;]\s+(?=\S+\s)")
_SENTENCE_END = re.compile(
    r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)(?<!etc\.)(?<!cf\.)(?<!vs\.)\s+(?=[A-Z`'\"(])"
)
_RULE = re.compile(r"[-=~*_#\s]+")


def documents(seconds: float = _SECONDS) -> Iterator[Record]:
    """Yield a document for every documented object, sorted by name.

    Modules that this Python has not got are skipped. Raises `OSError` if the standard library
    cannot be read within the time.
    """
    with tempfile.TemporaryDirectory(prefix="titlecast-") as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-X", "utf8", str(_SCRIPT)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                cwd=folder,  # a module that writes on import writes here
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise OSError(
                f"reading the standard library took more than {seconds:.0f} s:"
                " try again on a machine with less to do"
            ) from error
    ended = False
    for raw in done.stdout.splitlines():
        fields = json.loads(raw)
        ended = "end" in fields
        if "skip" in fields:
            yield Skip(fields["skip"], fields["reason"])
        elif not ended:
            yield _document(**fields)
    if not ended:
        # A module took the interpreter down: what came before it is good, the rest is missing.
        reason = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        reason = f"the walk ended early (status {done.returncode}): {reason}"
        yield Failure("pydoc", reason, cut=True)


def _document(name: str, kind: str, module: str, doc: str, signature: str) -> Document | Skip:
    own = name.rpartition(".")[2]
    calls, body = split_calls(own, doc)
    summary, rest = split_summary(body)
    if summary.lower() in (name.lower(), own.lower()):  # a headline of just the name
        summary, rest = split_summary(rest)
    if summary.lower() in {*_EMPTY, "", own.lower()}:
        return Skip(name, "its docstring says nothing")
    if not calls and signature:
        calls = f"{own}{signature}"
    passage = "\n\n".join(part for part in (calls, rest) if part)
    return Document(name, f"{name}: {summary}", passage, {"kind": kind, "module": module})


def split_calls(name: str, doc: str) -> tuple[str, str]:
    """Split the lines that show calls (`merge(*iterables) --> iterator`) from a docstring.

    Gives the calls, and the rest. What a call's arrow says beyond the type (`pop(k) -> v,
    remove the key and return its value`) opens the rest; where the calls are all there is,
    what the arrows say is the rest.
    """
    opening = re.compile(rf"(?:[\w.]+\.)?{re.escape(name)}\s*\(")
    lines = doc.split("\n")
    calls: list[str] = []  # one a call, its continuation lines joined
    depth = taken = 0
    for line in lines:
        continued = bool(calls) and (depth > 0 or (line[:1].isspace() and bool(line.strip())))
        if continued:
            calls[-1] += f" {line.strip()}"
        elif opening.match(line):
            calls.append(line.strip())
            depth = 0
        else:
            break
        depth = max(0, depth + line.count("(") - line.count(")"))
        taken += 1
    body = "\n".join(lines[taken:]).strip()
    results = [parts[1] for call in calls if len(parts := _ARROW.split(call, maxsplit=1)) == 2]
    told = [text for result in results if (text := _RESULT_TYPE.sub("", result)) != result]
    if told:
        told[0] = told[0][:1].upper() + told[0][1:]
    elif not body or body.startswith(">>>"):
        # One or two words behind the arrow name a type: no documentation.
        told = [result for result in results if len(result.split()) > 2]
    body = "\n\n".join(part for part in ("; ".join(told), body) if part)
    return "\n".join(lines[:taken]).strip(), body


def split_summary(doc: str) -> tuple[str, str]:
    """Split a docstring into its first sentence, cleaned, and all that follows it."""
    first, _, rest = doc.strip().partition("\n\n")
    lines = [line for line in first.split("\n") if not _RULE.fullmatch(line)]
    paragraph = " ".join(" ".join(lines).split())
    sentence, *more = _SENTENCE_END.split(paragraph, maxsplit=1)
    follows = "\n\n".join(part for part in (*more, rest.strip("\n")) if part.strip())
    if len(sentence) > _TITLE_CHARACTERS:
        # Too long for a title: shorten it there, and keep it whole in the passage.
        head = sentence[:_TITLE_CHARACTERS].rpartition(" ")[0]
        return f"{head} …", doc.strip()
    return sentence.rstrip(" .:;"), follows
