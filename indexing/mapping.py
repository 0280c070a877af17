"""The index's mapping and settings: which fields there are and how their text is analysed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DEFAULT_ANALYZER = "english"
# What the engine has on board; others come with plugins or the index's own settings.
LANGUAGES = (
    *("arabic", "armenian", "basque", "bengali", "brazilian", "bulgarian", "catalan", "cjk"),
    *("czech", "danish", "dutch", "english", "estonian", "finnish", "french", "galician"),
    *("german", "greek", "hindi", "hungarian", "indonesian", "irish", "italian", "latvian"),
    *("lithuanian", "norwegian", "persian", "portuguese", "romanian", "russian", "sorani"),
    *("spanish", "swedish", "thai", "turkish"),
)
VECTOR = "vector"
VECTORS_OF = "titlecast_vectors"  # in a mapping's `_meta`: the model that made the vectors
DIMENSION = 384  # of a vector, as all-MiniLM-L6-v2 makes them
# A longer title is not one that somebody looks up whole; Lucene takes terms up to 32,766 bytes.
_EXACT_CHARACTERS = 256
_KEY_CHARACTERS = 8_000


def index_body(
    analyzer: str = DEFAULT_ANALYZER,
    shards: int = 1,
    replicas: int = 0,
    carried: Mapping[str, Any] | None = None,
    dimension: int | None = None,
    vectors_of: str | None = None,
) -> dict[str, Any]:
    """Give the body that creates an index, made for loading: it does not refresh meanwhile.

    `analyzer` is that of titles, sections and passages alike. A title also has `title.exact` for
    exact matches and sorting. `page_id` and `position` find and order the passages of a page,
    and collapse results to pages. Metadata is stored but not indexed: it is given back with the
    hit, and whatever it holds, it can neither be refused nor swell the mapping.
    With a `dimension` there is a `vector` of so many numbers, for which the cluster needs the
    k-NN plugin; `vectors_of` names the model that makes them. `carried` are settings taken over
    from the index that this one replaces.
    """
    text = {"type": "text", "analyzer": analyzer}
    exact = {"type": "keyword", "ignore_above": _EXACT_CHARACTERS}
    key = {"type": "keyword", "ignore_above": _KEY_CHARACTERS}
    properties: dict[str, Any] = {
        "title": {**text, "fields": {"exact": exact}},
        "passage": text,
        "page_id": key,
        "position": {"type": "integer"},
        "section": text,
        "url": key,
        "metadata": {"type": "object", "enabled": False},
    }
    settings: dict[str, Any] = {
        "index.number_of_shards": shards,
        "index.number_of_replicas": replicas,
        "index.refresh_interval": "-1",
    }
    if dimension:
        settings["index.knn"] = True
        properties[VECTOR] = {
            "type": "knn_vector",
            "dimension": dimension,
            "method": {"name": "hnsw", "engine": "lucene", "space_type": "cosinesimil"},
        }
    meta = {"_meta": {VECTORS_OF: vectors_of}} if vectors_of else {}
    return {
        "settings": {**settings, **(carried or {})},
        "mappings": {"dynamic": False, "properties": properties, **meta},
    }


def needs_knn(plugins: list[str]) -> str | None:
    """Say why vectors cannot be indexed on a cluster with these plugins; None where they can."""
    if any(name == "opensearch-knn" for name in plugins):
        return None
    return (
        "the cluster has not got the k-NN plugin, which vectors need: install opensearch-knn on"
        " every node, or leave the vectors out"
    )
