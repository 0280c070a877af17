"""Write WordNet as a BEIR corpus: a document for each first word of a sense, and what it means.

Words of every field and what each means: unlabelled text of no domain for `[keep]`. WordNet's files
come with Debian's package `wordnet-base` (`/usr/share/wordnet`) and from https://wordnet.princeton.edu;
the format is described in https://wordnet.princeton.edu/documentation/wndb5wn.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from indexing.records import Document
from tests.benchmarks.collection_folder import write_beir

_PARTS = ("noun", "verb", "adj", "adv")


def main(
    source: Annotated[Path, typer.Argument(help="Folder with data.noun and the other parts.")],
    out: Annotated[Path, typer.Argument(help="The BEIR folder to write.")],
) -> None:
    """Write the corpus; there are no queries."""
    write_beir(out, collect(source), [])


def collect(source: Path) -> list[Document]:
    """Words in the order of the files, each with the sentences of all its senses."""
    found: dict[str, list[str]] = {}
    for part in _PARTS:
        for line in (source / f"data.{part}").read_text("utf-8").splitlines():
            if line.startswith("  "):  # the licence
                continue
            sense, _, gloss = line.partition(" | ")
            word = sense.split(" ")[4].partition("(")[0].replace("_", " ")  # without "(a)" and such
            said = [piece.strip().strip('"') for piece in gloss.strip().split(";")]
            found.setdefault(word, []).extend(
                f"{piece[0].upper()}{piece[1:].rstrip('.')}." for piece in said if piece
            )
    return [
        Document(f"wn{n}", word, " ".join(said)) for n, (word, said) in enumerate(found.items())
    ]


if __name__ == "__main__":
    typer.run(main)
