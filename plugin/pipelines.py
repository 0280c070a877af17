"""Search pipelines: what Titlecast's look like, installing, finding and removing them.

API: https://docs.opensearch.org/latest/search-plugins/search-pipelines/index/
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, cast

from opensearchpy import OpenSearch
from opensearchpy.exceptions import NotFoundError

from plugin.clusters import ClusterError

REQUEST_PROCESSOR = "title_rerank_candidates"
RESPONSE_PROCESSOR = "title_rerank"
DEFAULT_SETTING = "index.search.default_pipeline"
LIMIT_SETTING = "index.max_result_window"
MAX_WINDOW = 10_000  # the plugin's; also the setting's default
_SIDECARS_HITS = 1_000  # what a sidecar takes, unless told otherwise
_NONE = "_none"
_TEXT_TYPES = ("text", "match_only_text", "search_as_you_type", "keyword", "wildcard")
_TIME = re.compile(r"[1-9][0-9]*(ms|s)")


class PipelineError(ValueError):
    """A pipeline that cannot be installed, found or removed; the text names the remedy."""


class Pipeline(NamedTuple):
    """How a Titlecast pipeline is set up."""

    title_field: str = "title"
    passage_fields: tuple[str, ...] = ("passage",)
    window: int = 100  # hits that are candidates for the page
    passage_depth: int = 20  # hits whose passages are scored; 0: titles only
    timeout: str = "500ms"  # for the reranking of one search


class Installed(NamedTuple):
    """A Titlecast pipeline as the cluster has it."""

    name: str
    pipeline: Pipeline
    indices: tuple[str, ...]  # those whose default it is
    body: Mapping[str, Any]


def default_name(index: str) -> str:
    """Give the name of an index's pipeline if nobody chooses another."""
    return f"titlecast-{index}"


def pipeline_body(pipeline: Pipeline) -> dict[str, Any]:
    """Give the pipeline in the form of the search pipeline API; raise `PipelineError`."""
    if not pipeline.title_field or not all(pipeline.passage_fields):
        raise PipelineError("a field's name is empty: name the fields of title and passage")
    if not pipeline.passage_fields:
        raise PipelineError("no passage field: name at least one")
    if not 1 <= pipeline.window <= MAX_WINDOW:
        raise PipelineError(
            f"a window of {pipeline.window} hits cannot be: use 1 to {MAX_WINDOW}, 100 is common"
        )
    if pipeline.passage_depth < 0:
        raise PipelineError(
            f"a passage depth of {pipeline.passage_depth} cannot be: use 0 (titles only) or more"
        )
    if not _TIME.fullmatch(pipeline.timeout):
        raise PipelineError(
            f"the timeout {pipeline.timeout!r} is no time: write it like 500ms or 2s"
        )
    return _body(pipeline)


def _body(pipeline: Pipeline) -> dict[str, Any]:
    first, *more = pipeline.passage_fields
    fields = {
        "title_field": pipeline.title_field,
        "passage_field": [first, *more] if more else first,
    }
    return {
        "description": "Titlecast: reranks hits by their titles, the best by their passages",
        "request_processors": [{REQUEST_PROCESSOR: {"window": pipeline.window, **fields}}],
        "response_processors": [
            {
                RESPONSE_PROCESSOR: {
                    **fields,
                    "passage_depth": pipeline.passage_depth,
                    "timeout": pipeline.timeout,
                    "on_failure": "engine_order",
                }
            }
        ],
    }


def install(
    client: OpenSearch,
    index: str,
    pipeline: Pipeline,
    *,
    name: str | None = None,
    force: bool = False,
) -> list[str]:
    """Install a pipeline and make it the default of an index; give warnings worth reading.

    Checks before it changes anything. Raises `ClusterError` if the plugin is missing on a
    node, and `PipelineError` if the index or a field is missing, if an index gives out fewer
    hits than the window has, or if another pipeline is in the way, or one of this name that
    holds more or that other indices use (`force` replaces those).
    """
    name = name or default_name(index)
    body = pipeline_body(pipeline)
    check_plugin(client)
    warnings = check_fields(client, index, [pipeline.title_field, *pipeline.passage_fields])
    check_window(client, index, pipeline.window)
    if "*" in name:
        raise PipelineError(
            f"{name!r} cannot be a pipeline's name, for removing it would remove all that are like"
            " it: choose a --name"
        )
    if pipeline.window > _SIDECARS_HITS:
        warnings.append(
            f"a sidecar takes {_SIDECARS_HITS} hits of a search, and refuses one with more unless"
            f" it was started with TITLECAST_MAX_HITS={pipeline.window}"
        )
    others = {
        user: default
        for user, default in default_pipelines(client, index).items()
        if default != name
    }
    if others and not force:
        user, default = next(iter(others.items()))
        raise PipelineError(
            f"index {user} has the default pipeline {default}: give --force to replace it"
        )
    present = _bodies(client).get(name)
    if present is not None and present != body and not force:
        _check_replaceable(client, index, name, present)
    client.search_pipeline.put(id=name, body=body)
    client.indices.put_settings(index=index, body={DEFAULT_SETTING: name})
    return warnings


def _check_replaceable(
    client: OpenSearch, index: str, name: str, present: Mapping[str, Any]
) -> None:
    """Make sure that writing another body takes nothing away; raise `PipelineError`."""
    remedy = "choose another --name, or give --force to replace it"
    found = _parse(present)
    if found is None:
        raise PipelineError(f"the pipeline {name} is there and not Titlecast's: {remedy}")
    if more := _differences(present, _body(found)):
        raise PipelineError(
            f"the pipeline {name} has what `titlecast pipeline install` does not write"
            f" ({', '.join(more)}): {remedy}"
        )
    if others := sorted(set(_users(client, name)) - set(_settings(client, index))):
        raise PipelineError(
            f"the pipeline {name} is also the default of {', '.join(others)}: {remedy} there too"
        )


def _differences(body: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Name what a pipeline's body has and `ours` has not: processors, or options of them."""
    found = []
    for part, value in body.items():
        if not isinstance(value, list):
            found += [part] if value != ours.get(part) else []
            continue
        for name, options in ((name, entry[name]) for entry in value for name in entry):
            known = _processor(ours.get(part), name)
            if known is None:
                found.append(name)
            else:
                found += [f"{name}.{key}" for key in options if options[key] != known.get(key)]
    return found


def remove(client: OpenSearch, name: str, *, force: bool = False) -> tuple[str, ...]:
    """Delete a Titlecast pipeline; give the indices whose default it was.

    They are released first: searches of an index whose default is missing fail. Raises
    `PipelineError` if there is no such pipeline, if it is not Titlecast's, or if it holds
    others' processors, too (`force` deletes these with it).
    """
    bodies = _bodies(client)
    body = bodies.get(name)
    if body is None:
        names = ", ".join(found.name for found in installed(client)) or "none"
        raise PipelineError(f"there is no pipeline {name}: Titlecast's are {names}")
    if _parse(body) is None:
        raise PipelineError(f"the pipeline {name} is not Titlecast's: it is left alone")
    if (others := _other_processors(body)) and not force:
        raise PipelineError(
            f"the pipeline {name} has other processors, too ({', '.join(others)}): take"
            f" {REQUEST_PROCESSOR} and {RESPONSE_PROCESSOR} out of it by the search pipeline API,"
            " or give --force to delete all of it"
        )
    if like := [other for other in bodies if other != name and fnmatchcase(other, name)]:
        raise PipelineError(
            f"{name!r} is a pattern for the engine, which would delete {', '.join(like)}, too: put"
            " what it holds under another name and make the indices use that"
        )
    users = _users(client, name)
    for index in users:
        client.indices.put_settings(index=index, body={DEFAULT_SETTING: None})
    client.search_pipeline.delete(id=name)
    return users


def _other_processors(body: Mapping[str, Any]) -> list[str]:
    parts = (part for part in body.values() if isinstance(part, list))
    names = (name for part in parts for entry in part for name in entry)
    return [name for name in names if name not in (REQUEST_PROCESSOR, RESPONSE_PROCESSOR)]


def installed(client: OpenSearch, index: str | None = None) -> list[Installed]:
    """List Titlecast's pipelines in the cluster, or those that are the default of an index.

    Raises `PipelineError` if the index does not exist.
    """
    wanted = None if index is None else set(default_pipelines(client, index).values())
    found = []
    for name, body in sorted(_bodies(client).items()):
        pipeline = _parse(body)
        if pipeline is not None and (wanted is None or name in wanted):
            found.append(Installed(name, pipeline, _users(client, name), body))
    return found


def default_pipelines(client: OpenSearch, index: str) -> dict[str, str]:
    """Give the default pipelines of an index (or of those behind an alias), by index.

    Raises `PipelineError` if there is no such index.
    """
    settings = _settings(client, index)
    if not settings:
        raise PipelineError(f"no index {index}: make one with `titlecast index`, or check --index")
    return {
        name: one[DEFAULT_SETTING]
        for name, one in settings.items()
        if one.get(DEFAULT_SETTING, _NONE) != _NONE
    }


def check_plugin(client: OpenSearch) -> None:
    """Make sure that every node has the plugin's processors; raise `ClusterError`.

    It asks for the processors, not for a plugin of some name: they are what a search needs,
    on whichever node it arrives.
    """
    info = client.nodes.info(metric="search_pipelines")
    for node in info["nodes"].values():
        offered = node.get("search_pipelines", {})
        for kind, processor in (
            ("request_processors", REQUEST_PROCESSOR),
            ("response_processors", RESPONSE_PROCESSOR),
        ):
            if processor not in {entry["type"] for entry in offered.get(kind, ())}:
                raise ClusterError(
                    f"node {node.get('name')} (OpenSearch {node.get('version')}) has no processor"
                    f" {processor}: run `opensearch-plugin install file:TITLE-RERANK.zip` on every"
                    " node and restart it"
                )


def check_fields(client: OpenSearch, index: str, fields: Sequence[str]) -> list[str]:
    """Make sure that the fields exist and are text; give warnings where they may lie empty.

    Raises `PipelineError` if there is no such index or a field cannot be reranked by.
    """
    try:
        mappings = client.indices.get_mapping(index=index)
    except NotFoundError:
        mappings = {}
    if not mappings:
        raise PipelineError(f"no index {index}: make one with `titlecast index`, or check --index")
    warnings = []
    for name, entry in mappings.items():
        mapping = entry["mappings"]
        types = dict(_types(mapping.get("properties", {})))
        for field in fields:
            _check_field(name, field, types, mapping.get("properties", {}))
            if reason := _not_in_source(mapping.get("_source", {}), field):
                warnings.append(
                    f"{field} of index {name} does not come back with hits ({reason}):"
                    " reranking would read empty text"
                )
    return warnings


def check_window(client: OpenSearch, index: str, window: int) -> None:
    """Make sure that the window can be asked of the index, or of every one behind an alias.

    Above `index.max_result_window` the engine refuses the search, whatever page was asked for.
    Raises `PipelineError`.
    """
    limits = {
        name: int(one.get(LIMIT_SETTING, MAX_WINDOW))
        for name, one in _settings(client, index).items()
    }
    name = min(limits, key=lambda name: limits[name])
    if window > limits[name]:
        raise PipelineError(
            f"index {name} gives out fewer hits than a window of {window}"
            f" (its max_result_window is {limits[name]}): give --window {limits[name]}"
        )


def _check_field(index: str, field: str, types: Mapping[str, str], properties: Any) -> None:
    kind = types.get(field)
    if kind in _TEXT_TYPES:
        return
    if kind is not None:
        raise PipelineError(f"{field} of index {index} is {kind}, not text: choose another field")
    parent, _, sub = field.rpartition(".")
    if parent in types and sub in _definition(properties, parent).get("fields", {}):
        raise PipelineError(
            f"{field} of index {index} is a sub-field, which hits do not carry: use {parent}"
        )
    known = ", ".join(sorted(name for name, kind in types.items() if kind in _TEXT_TYPES))
    remedy = "choose one of them" if known else "index documents first"
    raise PipelineError(
        f"index {index} has no field {field}: its text fields are {known or 'none'}; {remedy}"
    )


def _types(properties: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, definition in properties.items():
        inner = definition.get("properties")
        yield f"{prefix}{name}", definition.get("type", "object")
        if inner:
            yield from _types(inner, f"{prefix}{name}.")


def _definition(properties: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    definition: Mapping[str, Any] = {"properties": properties}
    for name in path.split("."):
        definition = definition.get("properties", {}).get(name, {})
    return definition


def _not_in_source(source: Mapping[str, Any], field: str) -> str:
    if source.get("enabled") in (False, "false"):
        return "_source is switched off"
    included = source.get("includes") or ["*"]
    if not any(_covers(pattern, field) for pattern in included):
        return "_source does not include it"
    if any(_covers(pattern, field) for pattern in source.get("excludes") or ()):
        return "_source excludes it"
    return ""


def _covers(pattern: str, field: str) -> bool:
    # A pattern that names an object covers all that is in it.
    return fnmatchcase(field, pattern) or fnmatchcase(field, f"{pattern}.*")


def _bodies(client: OpenSearch) -> dict[str, Any]:
    try:
        return cast("dict[str, Any]", client.search_pipeline.get())
    except NotFoundError:  # so it says where there are none
        return {}


def _parse(body: Mapping[str, Any]) -> Pipeline | None:
    """Read a pipeline's body; None if it is not Titlecast's."""
    request = _processor(body.get("request_processors"), REQUEST_PROCESSOR)
    response = _processor(body.get("response_processors"), RESPONSE_PROCESSOR)
    if response is None:
        return None
    request = request or {}
    # As the plugin reads them: both of one processor, the other's only where it names neither.
    fields = response if {"title_field", "passage_field"} & response.keys() else request
    plain = Pipeline()
    passage = _option(fields, "passage_field", plain.passage_fields[0])
    return Pipeline(
        str(_option(fields, "title_field", plain.title_field)),
        tuple(passage) if isinstance(passage, list) else (str(passage),),
        int(_option(request, "window", plain.window)),
        int(_option(response, "passage_depth", plain.passage_depth)),
        str(_option(response, "timeout", plain.timeout)),
    )


def _option(options: Mapping[str, Any], name: str, default: object) -> Any:
    value = options.get(name)
    return default if value is None else value  # to the engine, null is an option left out


def _processor(processors: Any, name: str) -> Mapping[str, Any] | None:
    return next((entry[name] for entry in processors or () if name in entry), None)


def _users(client: OpenSearch, name: str) -> tuple[str, ...]:
    settings = _settings(client, "*")
    return tuple(
        sorted(index for index, one in settings.items() if one.get(DEFAULT_SETTING) == name)
    )


def _settings(client: OpenSearch, index: str) -> dict[str, Mapping[str, str]]:
    """Give the settings of an index, or of those behind an alias, by their dotted names."""
    try:
        answer = client.indices.get_settings(
            index=index, flat_settings=True, expand_wildcards="all"
        )
    except NotFoundError:
        return {}
    return {name: entry["settings"] for name, entry in answer.items()}
