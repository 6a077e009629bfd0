"""What is blended with what: the plan, the criteria, the ring."""

from kgraft.grafting.criteria import Criterion, Entropy, FilterEntropy, L1Norm
from kgraft.grafting.mixers import Graft
from kgraft.grafting.plan import GraftPlan, Group
from kgraft.grafting.ring import GraftRecord

__all__ = [
    "Criterion",
    "Entropy",
    "FilterEntropy",
    "Graft",
    "GraftPlan",
    "GraftRecord",
    "Group",
    "L1Norm",
]
