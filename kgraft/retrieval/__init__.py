"""Retrieval: which images of a gallery show what a query shows (person re-identification)."""

from kgraft.retrieval.evaluation import Retrieval, evaluate, ranked

__all__ = ["Retrieval", "evaluate", "ranked"]
