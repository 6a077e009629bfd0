"""What is blended with what: the plan, the criteria, the ring, and the other mixers."""

from kgraft.grafting.averaging import FixedGraft, Rotation, Wash
from kgraft.grafting.criteria import Criterion, Entropy, FilterEntropy, L1Norm
from kgraft.grafting.filter_level import FilterGraft
from kgraft.grafting.graft import Graft
from kgraft.grafting.mixer import Mixer
from kgraft.grafting.papa import Average, Papa
from kgraft.grafting.plan import GraftPlan, Group
from kgraft.grafting.repr import RePr
from kgraft.grafting.ring import GraftRecord
from kgraft.grafting.scions import Internal, Noise

__all__ = [
    "Average",
    "Criterion",
    "Entropy",
    "FilterEntropy",
    "FilterGraft",
    "FixedGraft",
    "Graft",
    "GraftPlan",
    "GraftRecord",
    "Group",
    "Internal",
    "L1Norm",
    "Mixer",
    "Noise",
    "Papa",
    "RePr",
    "Rotation",
    "Wash",
]
