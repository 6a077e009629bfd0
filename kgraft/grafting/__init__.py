"""What is blended with what: the plan, the criteria, the ring, and the other mixers."""

from kgraft.grafting.averaging import FixedGraft, Rotation, Wash
from kgraft.grafting.criteria import Criterion, Entropy, FilterEntropy, L1Norm
from kgraft.grafting.filter_level import FilterGraft
from kgraft.grafting.graft import Graft
from kgraft.grafting.lawa import Lawa
from kgraft.grafting.mixer import EpochMixer, Independent, Mixer, State, StepMixer
from kgraft.grafting.papa import Average, Papa
from kgraft.grafting.peers import Moment, Peers
from kgraft.grafting.plan import GraftPlan, Group
from kgraft.grafting.repr import RePr
from kgraft.grafting.ring import GraftRecord
from kgraft.grafting.scions import Internal, Noise
from kgraft.settings import setting

__all__ = [
    "Average",
    "Criterion",
    "Entropy",
    "EpochMixer",
    "FilterEntropy",
    "FilterGraft",
    "FixedGraft",
    "Graft",
    "GraftPlan",
    "GraftRecord",
    "Group",
    "Independent",
    "Internal",
    "L1Norm",
    "Lawa",
    "Mixer",
    "Moment",
    "Noise",
    "Papa",
    "Peers",
    "RePr",
    "Rotation",
    "State",
    "StepMixer",
    "Wash",
    "setting",
]
