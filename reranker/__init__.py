"""Titlecast's library: title-first reranking on onnxruntime, with neither HTTP nor OpenSearch.

Everything here works without torch and transformers; training and export live in
`reranker.models` and `reranker.training` and need the `train` extra.
"""

from reranker.cascade import Cascade
from reranker.dual import DualEncoder
from reranker.records import Hit, RankedHit, RerankResult, StageReport
from reranker.stages import PassageReranker, TitleReranker

__all__ = [
    "Cascade",
    "DualEncoder",
    "Hit",
    "PassageReranker",
    "RankedHit",
    "RerankResult",
    "StageReport",
    "TitleReranker",
]
