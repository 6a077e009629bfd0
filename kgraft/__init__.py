"""kgraft: K peer networks train side by side and revive each other's dead filters.

At the end of every epoch each layer of a peer is blended with the same layer of the previous peer
in a ring, weighted by the entropy of the two layers' weights (filter grafting, CVPR 2020).
"""

from etils import epy as _epy

from kgraft import backend as _backend

_backend.choose()  # before anybody imports Keras

with _epy.lazy_api_imports(globals()):  # Keras comes with the first name that is used
    from kgraft import data, grafting, models
    from kgraft.errors import UserError
    from kgraft.grafting import Entropy, FilterEntropy, Graft, GraftPlan, GraftRecord, L1Norm
    from kgraft.training.callback import GraftCallback
    from kgraft.training.distiller import Distiller
    from kgraft.training.fit import GraftingFit
    from kgraft.training.mutual import Mutual
    from kgraft.training.optimizers import SGD
    from kgraft.training.schedules import cosine, cosine_per_step, spread, step_decay, warmup

__all__ = [
    "GraftingFit",
    "GraftCallback",
    "Distiller",
    "Mutual",
    "Graft",
    "GraftPlan",
    "GraftRecord",
    "Entropy",
    "FilterEntropy",
    "L1Norm",
    "SGD",
    "cosine",
    "cosine_per_step",
    "step_decay",
    "warmup",
    "spread",
    "grafting",
    "models",
    "data",
    "UserError",
]
