import pytest

from indexing.mapping import LANGUAGES, VECTORS_OF, index_body, needs_knn


def test_title_and_passage_are_analysed_alike_and_the_title_is_kept_whole_too() -> None:
    properties = index_body(analyzer="german")["mappings"]["properties"]
    for name in ("title", "passage", "section"):
        assert properties[name]["analyzer"] == "german"
    exact = properties["title"]["fields"]["exact"]
    assert exact["type"] == "keyword"


@pytest.mark.parametrize("path", [("title", "fields", "exact"), ("page_id",), ("url",)])
def test_no_key_is_longer_than_lucene_takes(path: tuple[str, ...]) -> None:
    found = index_body()["mappings"]["properties"]
    for name in path:
        found = found[name]
    # UTF-8 has up to four bytes a character.
    assert found["ignore_above"] * 4 < 32_766


def test_metadata_can_neither_be_refused_nor_swell_the_mapping() -> None:
    mappings = index_body()["mappings"]
    assert mappings["dynamic"] is False
    assert mappings["properties"]["metadata"] == {"type": "object", "enabled": False}


def test_settings_are_fit_for_loading_and_take_over_what_is_carried() -> None:
    settings = index_body(shards=3, replicas=1, carried={"index.search.default_pipeline": "p"})[
        "settings"
    ]
    assert settings == {
        "index.number_of_shards": 3,
        "index.number_of_replicas": 1,
        "index.refresh_interval": "-1",
        "index.search.default_pipeline": "p",
    }


def test_vectors_are_there_only_if_asked_for() -> None:
    assert "vector" not in index_body()["mappings"]["properties"]
    body = index_body(dimension=384)
    assert body["settings"]["index.knn"] is True
    vector = body["mappings"]["properties"]["vector"]
    assert (vector["type"], vector["dimension"]) == ("knn_vector", 384)
    assert "_meta" not in body["mappings"]
    body = index_body(dimension=384, vectors_of="a model")
    assert body["mappings"]["_meta"] == {VECTORS_OF: "a model"}


def test_a_cluster_without_k_nn_is_told_from_one_with_it() -> None:
    assert needs_knn(["opensearch-knn", "title-rerank"]) is None
    reason = needs_knn(["title-rerank"])
    assert reason is not None
    assert "opensearch-knn" in reason


def test_languages_are_analysers() -> None:
    assert {"english", "german", "cjk"} <= set(LANGUAGES)
