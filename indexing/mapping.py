"""The index's mapping and settings: which fields there are and how their text is analysed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DEFAULT_ANALYZER = "english"
# A longer title is not one that somebody looks up whole; Lucene takes terms up to 32,766 bytes.
_EXACT_CHARACTERS = 256


def index_body(
    analyzer: str = DEFAULT_ANALYZER,
    shards: int = 1,
    replicas: int = 0,
    carried: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Give the body that creates an index, made for loading: it does not refresh meanwhile.

    `analyzer` is that of titles and passages alike. A title also has `title.exact` for exact
    matches and sorting. Metadata is stored but not indexed: it is given back with the hit, and
    whatever it holds, it can neither be refused nor swell the mapping.
    `carried` are settings taken over from the index that this one replaces.
    """
    text = {"type": "text", "analyzer": analyzer}
    exact = {"type": "keyword", "ignore_above": _EXACT_CHARACTERS}
    return {
        "settings": {
            "index.number_of_shards": shards,
            "index.number_of_replicas": replicas,
            "index.refresh_interval": "-1",
            **(carried or {}),
        },
        "mappings": {
            "dynamic": False,
            "properties": {
                "title": {**text, "fields": {"exact": exact}},
                "passage": text,
                "metadata": {"type": "object", "enabled": False},
            },
        },
    }
