"""The collection of package descriptions."""

from __future__ import annotations

import json
from pathlib import Path

from tests.benchmarks.debian_collection import QUERIES, main

PACKAGES = """Package: jq
Version: 1.6
Description: lightweight and flexible command-line JSON processor
 jq is like sed for JSON data.

Package: pigz
Version: 2.6
Description: Parallel Implementation of GZip
 pigz compresses with all cores.

Package: nothing
Version: 1
Description: no query asks for this
 At all.
"""


def test_every_query_names_its_answers():
    lines = [line.split("\t") for line in QUERIES.read_text("utf-8").splitlines()]
    assert all(len(line) == 2 for line in lines)
    assert len({query for query, _ in lines}) == len(lines) >= 60
    for _, names in lines:
        assert all(name and name == name.strip() for name in names.split(","))


def test_queries_are_kept_whose_answers_are_there(tmp_path: Path):
    (tmp_path / "status").write_text(PACKAGES, "utf-8")
    main(tmp_path / "out", tmp_path / "status")
    documents = list(
        map(json.loads, (tmp_path / "out/corpus.jsonl").read_text("utf-8").splitlines())
    )
    assert [document["_id"] for document in documents] == ["jq", "pigz", "nothing"]
    assert documents[0]["title"] == "jq: lightweight and flexible command-line JSON processor"
    judged = (tmp_path / "out/qrels/test.tsv").read_text("utf-8").splitlines()[1:]
    assert sorted(line.split("\t")[1] for line in judged) == ["jq", "pigz", "pigz"]
    queries = [
        json.loads(line)["_id"]
        for line in (tmp_path / "out/queries.jsonl").read_text("utf-8").splitlines()
    ]
    assert sorted(queries) == sorted({line.split("\t")[0] for line in judged})
