"""From an object of named fields to a document: a mapping says which field holds what.

What JSON lines, tables and other indices have in common.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from indexing.records import Document, Failure, excerpt
from indexing.sources.files import Object, identifier, kind_of, text

_ID = "id"
_TITLE = "title"
# Where no field is named, the first of these that is there holds the passage.
_PASSAGES = ("passage", "text", "contents", "body")


class FieldMap(NamedTuple):
    """The fields that hold a document's parts, each a name or a dotted path (`meta.headline`).

    Several fields are joined in their order: titles by spaces, passages by line ends. Where none
    is named, `id`, `title` and the first of `passage`, `text`, `contents` and `body` are taken.
    """

    id: str = ""
    title: tuple[str, ...] = ()
    passage: tuple[str, ...] = ()
    vector: str = ""  # a list of numbers


def document(item: Object, fields: FieldMap, id_needed: bool = False) -> Document | Failure:
    """Make a document of an object, or say why there is none.

    Fields that are not mapped and do not have the name and kind of a document's own (`page_id`,
    `position`, `section`, `url`, `metadata`) become metadata. Where no id is mapped, needed or
    there, it is made from the content, so that a second run changes nothing.
    """
    row = item.fields
    titles = fields.title or (_TITLE,)
    passages = fields.passage or tuple(name for name in _PASSAGES if name in row)[:1]
    if all(lookup(row, name) is None for name in (*titles, *passages)):
        wanted = ", ".join(repr(name) for name in (*titles, *(fields.passage or _PASSAGES)))
        there = ", ".join(repr(name) for name in list(row)[:10]) or "nothing"
        return Failure(
            item.location,
            f"none of {wanted} in it, but {there}:"
            " name the fields with --title-field and --passage-field",
            excerpt(repr(dict(list(row.items())[:10]))),
        )
    try:
        title = _joined(row, titles, " ")
        passage = _joined(row, passages, "\n")
        key = lookup(row, fields.id or _ID)
        if key is None and not (fields.id or id_needed):
            key = hashlib.sha256(_bytes(f"{title}\0{passage}")).hexdigest()[:20]
        key = identifier({fields.id or _ID: key}, fields.id or _ID)
        vector = _vector(row, fields.vector) if fields.vector else ()
    except ValueError as error:
        return Failure(item.location, str(error), excerpt(repr(dict(list(row.items())[:10]))))
    used = {fields.id or _ID, *titles, *passages, fields.vector}
    return _with_rest(Document(key, title, passage, vector=vector), row, used)


def _with_rest(made: Document, row: Mapping[str, object], used: set[str]) -> Document:
    metadata: dict[str, object] = {}
    for name, value in row.items():
        if name in used or value is None:
            continue
        if name == "metadata" and isinstance(value, Mapping):
            metadata = {**value, **metadata}
        elif name == "page_id" and _is_id(value):
            made = made._replace(page_id=str(value))
        elif name == "position" and (number := _number(value)) is not None:
            made = made._replace(position=number)
        elif name == "section" and isinstance(value, str):
            made = made._replace(section=value)
        elif name == "url" and isinstance(value, str):
            made = made._replace(url=value)
        else:
            metadata[name] = value
    return made._replace(metadata=metadata)


def lookup(row: Mapping[str, object], path: str) -> object:
    """The value of a field that the row has by its whole name, or inside objects; None without."""
    if path in row:
        return row[path]
    value: object = row
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _joined(row: Mapping[str, object], names: Sequence[str], between: str) -> str:
    parts = (text(lookup(row, name), name) for name in names)
    return between.join(part for part in parts if part)


def _vector(row: Mapping[str, object], name: str) -> tuple[float, ...]:
    value = lookup(row, name)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(
        isinstance(x, (int, float)) and not isinstance(x, bool) for x in value
    ):
        raise ValueError(f"field {name!r} must hold a list of numbers, not {kind_of(value)}")
    vector = tuple(float(x) for x in value)
    if not all(math.isfinite(x) for x in vector):
        raise ValueError(f"field {name!r} must hold finite numbers")
    return vector


def _is_id(value: object) -> bool:
    return isinstance(value, (str, int)) and not isinstance(value, bool) and value != ""


def _number(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        return None
    if isinstance(value, str):
        value = int(value) if value.isascii() and value.isdigit() and len(value) < 10 else -1
    return value if 0 <= value < 2**31 else None


def _bytes(content: str) -> bytes:
    # JSON may spell half a surrogate pair; the loader refuses such text, the hash need not.
    return content.encode("utf-8", "surrogatepass")
