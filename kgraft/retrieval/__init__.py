"""Retrieval: which images of a gallery show what a query shows (person re-identification)."""

from kgraft.retrieval.embedder import embedder
from kgraft.retrieval.evaluation import RetrievalResult, evaluate, ranked
from kgraft.retrieval.folders import IdentityFolder, read_identities
from kgraft.retrieval.reranking import Reranked
from kgraft.retrieval.sets import load_identities

__all__ = [
    "evaluate",
    "ranked",
    "RetrievalResult",
    "Reranked",
    "embedder",
    "read_identities",
    "IdentityFolder",
    "load_identities",
]
