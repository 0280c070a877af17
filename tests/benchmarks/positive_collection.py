"""Write a BEIR folder from one whose queries name what answers them (`positive`: ids).

PubMedQA is such a set: questions against abstracts. It has no qrels of its own.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer


def main(
    source: Annotated[Path, typer.Argument(help="Folder with corpus.jsonl and queries.jsonl.")],
    out: Annotated[Path, typer.Argument(help="The BEIR folder to write.")],
) -> None:
    """Copy corpus and queries, and write the judgements that the queries carry."""
    (out / "qrels").mkdir(parents=True, exist_ok=True)
    judgements = ["query-id\tcorpus-id\tscore"]
    with (source / "queries.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            query = json.loads(line)
            judgements += [f"{query['_id']}\t{id}\t1" for id in query["positive"]]
    for name in ("corpus.jsonl", "queries.jsonl"):
        shutil.copyfile(source / name, out / name)
    (out / "qrels" / "test.tsv").write_text("\n".join(judgements) + "\n", "utf-8")
    typer.echo(f"{out}: {len(judgements) - 1} judgements")


if __name__ == "__main__":
    typer.run(main)
