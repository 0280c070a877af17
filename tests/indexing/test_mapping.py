from indexing.mapping import index_body


def test_title_and_passage_are_analysed_alike_and_the_title_is_kept_whole_too() -> None:
    properties = index_body(analyzer="german")["mappings"]["properties"]
    assert properties["title"]["analyzer"] == properties["passage"]["analyzer"] == "german"
    exact = properties["title"]["fields"]["exact"]
    assert exact["type"] == "keyword"
    # In UTF-8, which has up to four bytes a character, it stays under Lucene's limit.
    assert exact["ignore_above"] * 4 < 32_766


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
