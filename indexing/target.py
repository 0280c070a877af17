"""The index that is loaded: making it, settings fit for loading, switching an alias to it.

While an index has settings fit for loading, its mapping's `_meta` says so and what they were:
whoever finds it after a kill can put them right, without anything that the killed load knew.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Mapping
from typing import Any

from opensearchpy import OpenSearch
from opensearchpy.exceptions import NotFoundError

from indexing.bulk import IndexingError
from indexing.mapping import VECTOR, VECTORS_OF, index_body

_log = logging.getLogger(__name__)

_MARK = "titlecast_loading"
_PIPELINE = "index.search.default_pipeline"
_REFRESH = "index.refresh_interval"
_REPLICAS = "index.number_of_replicas"
# No refreshes, and one copy: each document would otherwise be analysed once for every replica,
# and copying whole segments afterwards is cheaper. Every answer still means that the document
# is in the transaction log on the disk.
_LOADING = {_REFRESH: "-1", _REPLICAS: 0}
_SETTLED_SECONDS = 1.0


def make_index(
    client: OpenSearch,
    index: str,
    body: Mapping[str, Any] | None = None,
    carried: Mapping[str, Any] | None = None,
) -> None:
    """Create an index with settings fit for loading; `end_loading` gives it those of its body.

    `carried` are settings taken over from the index that this one replaces.
    """
    body = copy.deepcopy(dict(index_body() if body is None else body))
    # The engine takes them nested, too, and without "index.".
    settings = {
        name if name.startswith("index.") else f"index.{name}": value
        for name, value in _flat(body.get("settings", {})).items()
    } | dict(carried or {})
    own = {_REFRESH: settings.get(_REFRESH), _REPLICAS: settings.get(_REPLICAS)}
    if own[_REFRESH] in (-1, "-1"):  # made for loading, then as the engine has it
        own[_REFRESH] = None
    mappings = body.setdefault("mappings", {})
    mappings["_meta"] = {**mappings.get("_meta", {}), _MARK: {"settings": own}}
    body["settings"] = {**settings, **_LOADING}
    client.indices.create(index=index, body=body)


def _flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Give nested settings by their names with dots."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{above}{name}.")
        else:
            found[f"{above}{name}"] = value
    return found


def begin_loading(client: OpenSearch, index: str) -> None:
    """Give an existing index settings fit for loading, and mark it; a marked one keeps its mark."""
    meta = _meta(client, index)
    if _MARK not in meta:
        there = _settings(client, index)
        own = {name: there.get(name) for name in _LOADING}
        meta[_MARK] = {"settings": own}
        client.indices.put_mapping(index=index, body={"_meta": meta})  # first: see the docstring
    client.indices.put_settings(index=index, body=_LOADING)


def end_loading(client: OpenSearch, index: str) -> bool:
    """Give a marked index its own settings again; tell whether it was marked."""
    meta = _meta(client, index)
    mark = meta.pop(_MARK, None)
    if mark is None:
        return False
    client.indices.put_settings(index=index, body=mark["settings"])
    client.indices.put_mapping(index=index, body={"_meta": meta})
    return True


def is_loading(client: OpenSearch, index: str) -> bool:
    """Tell whether an index has the mark of a load that goes on or was killed."""
    return _MARK in _meta(client, index)


def carried_settings(client: OpenSearch, name: str) -> dict[str, Any]:
    """Give what an index's or alias's successor takes over: its default search pipeline.

    Searches must not lose their reranking by a reload.
    """
    found: dict[str, Any] = {}
    for one in client.indices.get_settings(
        index=name, flat_settings=True, ignore_unavailable=True
    ).values():
        if _PIPELINE in one["settings"]:
            found[_PIPELINE] = one["settings"][_PIPELINE]
    return found


def uuid_of(client: OpenSearch, index: str) -> str:
    """Give what tells an index from another one of its name; "" if there is no such index."""
    try:
        return str(_settings(client, index)["index.uuid"])
    except NotFoundError:
        return ""


def is_alias(client: OpenSearch, name: str) -> bool:
    """Tell whether a name is an alias."""
    return bool(client.indices.exists_alias(name=name))


def indices_of(client: OpenSearch, alias: str) -> list[str]:
    """Give the indices behind an alias; none if there is no such alias."""
    try:
        return sorted(client.indices.get_alias(name=alias))
    except NotFoundError:
        return []


def staged_name(alias: str) -> str:
    """Name a new index for an alias by the time, as `ALIAS-20260131-235959`."""
    return f"{alias}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"


def staged_leftovers(client: OpenSearch, alias: str, but: str) -> list[str]:
    """Give the indices that killed loads of an alias left half loaded."""
    found = client.indices.get_mapping(index=f"{alias}-*", ignore_unavailable=True)
    behind = set(indices_of(client, alias))
    return sorted(
        name
        for name, one in found.items()
        if name != but and name not in behind and _MARK in one["mappings"].get("_meta", {})
    )


def alias_properties(client: OpenSearch, alias: str) -> dict[str, Any]:
    """Give what an alias has besides its indices, to be carried over to the next one.

    That is its filter, and whether it names what is written to. Routing is not: it says which
    shard an index's documents lie in, and those of a load lie in all of them. Raises
    `IndexingError` where the filter is another one for each index.
    """
    try:
        found = client.indices.get_alias(name=alias)
    except NotFoundError:
        return {}
    named = [one["aliases"][alias] for one in found.values()]
    filters = [one.get("filter") for one in named]
    if any(one != filters[0] for one in filters):
        raise IndexingError(
            f"the alias {alias} has another filter for each of its indices ({', '.join(found)}),"
            " which one new index cannot have: give it one filter for all, or load into another"
            " alias"
        )
    made: dict[str, Any] = {"filter": filters[0]} if filters[0] else {}
    if any(one.get("is_write_index") for one in named):
        made["is_write_index"] = True
    return made


def switch_alias(client: OpenSearch, alias: str, index: str, *, replace: bool = False) -> None:
    """Let an alias name this index only, in one step.

    A search sees the old index or the new one, never both or none, through the same filter. With
    `replace`, an index that has the alias's name itself is deleted in the same step; a search of
    it under way fails. Raises what `alias_properties` raises.
    """
    properties = alias_properties(client, alias)
    actions: list[dict[str, Any]] = [
        {"remove": {"index": name, "alias": alias}}
        for name in indices_of(client, alias)
        if name != index
    ]
    if replace and not is_alias(client, alias) and uuid_of(client, alias):
        actions.append({"remove_index": {"index": alias}})
    actions.append({"add": {"index": index, "alias": alias, **properties}})
    client.indices.update_aliases(body={"actions": actions})


def delete_unsearched(client: OpenSearch, index: str, seconds: float = 60.0) -> None:
    """Delete an index that no alias names any more, once its last searches have ended.

    They are waited for no longer than that many seconds.
    """
    deadline = time.monotonic() + seconds
    time.sleep(_SETTLED_SECONDS)  # for a search that has read the alias and not begun yet
    while time.monotonic() < deadline:
        found = client.indices.stats(index=index, metric="search", ignore=[404])
        search = found.get("_all", {}).get("total", {}).get("search", {})
        if not search.get("open_contexts") and not search.get("query_current"):
            break
        time.sleep(0.2)
    client.indices.delete(index=index, ignore=[404])


def check_name(client: OpenSearch, index: str) -> None:
    """Raise `IndexingError` if documents cannot be loaded into an index of this name."""
    if is_alias(client, index):
        raise IndexingError(
            f"{index} is an alias: load into a new index and switch it with --alias {index}"
        )


def check_vectors(client: OpenSearch, index: str, model: str | None = None) -> None:
    """Raise `IndexingError` if an index has no field for vectors, which cannot be added to one.

    And if it says that its vectors were made by another `model`.
    """
    mapping = client.indices.get_mapping(index=index)[index]["mappings"]
    if VECTOR not in mapping.get("properties", {}):
        raise IndexingError(
            f"index {index} was made without vectors, so none would be found in it: load into a new"
            " one with --alias, or with --recreate"
        )
    other = mapping.get("_meta", {}).get(VECTORS_OF)
    if model and other and model != other:
        raise IndexingError(
            f"index {index} has vectors of {other}, which those of {model} cannot be compared with:"
            " load all documents into a new one with --alias, or with --recreate"
        )


def _settings(client: OpenSearch, index: str) -> dict[str, Any]:
    found: dict[str, Any] = client.indices.get_settings(index=index, flat_settings=True)
    if len(found) != 1 or index not in found:
        raise IndexingError(f"{index} is not one index: name the index itself")
    settings: dict[str, Any] = found[index]["settings"]
    return settings


def _meta(client: OpenSearch, index: str) -> dict[str, Any]:
    found: dict[str, Any] = client.indices.get_mapping(index=index)
    return dict(next(iter(found.values()))["mappings"].get("_meta", {})) if found else {}
