"""JSON lines of any shape: a mapping names the fields that hold id, title and passage."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

from indexing.records import Document, Failure
from indexing.sources.files import LineFile, Object, identifier, text

DEFAULT_MAP: Mapping[str, tuple[str, ...]] = {
    "id": ("id",),
    "title": ("title",),
    "passage": ("passage",),
}


def parse_map(entries: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Read `title=headline` entries; several for one target are joined in their order.

    `text=…` and `_id=…` are not targets: raises `ValueError` for all but id, title and passage.
    """
    chosen: dict[str, tuple[str, ...]] = {}
    for entry in entries:
        target, equals, field = entry.partition("=")
        if not equals or not field or target not in DEFAULT_MAP:
            raise ValueError(
                f"cannot read the mapping {entry!r}: write --map TARGET=FIELD"
                " with TARGET one of id, title, passage"
            )
        chosen[target] = (*chosen.get(target, ()), field)
    if len(chosen.get("id", ())) > 1:
        raise ValueError("a document has one id: give --map id=FIELD once")
    return chosen


def documents(
    file: LineFile, mapping: Mapping[str, tuple[str, ...]] | None = None
) -> Iterator[Document | Failure]:
    """Yield a document for every line; fields that are not mapped become metadata.

    A field is a name or a dotted path (`meta.headline`). Where no id is mapped and the line
    has no `id`, the id is made from the content, so that a second run changes nothing.
    """
    mapping = mapping or {}
    full = {**DEFAULT_MAP, **mapping}
    for item in file.objects():
        yield _document(item, full, "id" in mapping) if isinstance(item, Object) else item


def _document(
    item: Object, mapping: Mapping[str, tuple[str, ...]], id_needed: bool
) -> Document | Failure:
    fields = item.fields
    wanted = [*mapping["title"], *mapping["passage"]]
    if all(_lookup(fields, name) is None for name in wanted):
        names = ", ".join(repr(name) for name in wanted)
        return Failure(item.location, f"none of {names} in it: name the fields with --map")
    try:
        title = _joined(fields, mapping["title"], " ")
        passage = _joined(fields, mapping["passage"], "\n")
        (id_field,) = mapping["id"]
        key = _lookup(fields, id_field)
        if key is None and not id_needed:
            key = hashlib.sha256(_bytes(f"{title}\0{passage}")).hexdigest()[:20]
        key = identifier({id_field: key}, id_field)
    except ValueError as error:
        return Failure(item.location, str(error))
    used = {id_field, *wanted}
    return Document(
        key, title, passage, {name: value for name, value in fields.items() if name not in used}
    )


def _lookup(fields: Mapping[str, object], path: str) -> object:
    if path in fields:
        return fields[path]
    value: object = fields
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _joined(fields: Mapping[str, object], names: Sequence[str], between: str) -> str:
    parts = (text(_lookup(fields, name), name) for name in names)
    return between.join(part for part in parts if part)


def _bytes(content: str) -> bytes:
    # JSON may spell half a surrogate pair; the loader refuses such text, the hash need not.
    return content.encode("utf-8", "surrogatepass")
