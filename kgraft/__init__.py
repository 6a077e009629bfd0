"""kgraft: K peer networks train side by side and revive each other's dead filters.

At the end of every epoch each layer of a peer is blended with the same layer of the previous peer
in a ring, weighted by the entropy of the two layers' weights (filter grafting, CVPR 2020).
"""

from kgraft import backend as _backend

_backend.settle()

# Only now may Keras be imported.
from kgraft import data, grafting, models, retrieval  # noqa: E402
from kgraft.errors import DivergedError, LostPeerError, StorageError, UserError  # noqa: E402
from kgraft.grafting import (  # noqa: E402
    Entropy,
    FilterEntropy,
    Graft,
    GraftPlan,
    GraftRecord,
    L1Norm,
)
from kgraft.links.ring_link import RingLink  # noqa: E402
from kgraft.tensorboard import TensorBoard  # noqa: E402
from kgraft.training.callback import GraftCallback  # noqa: E402
from kgraft.training.checkpoints import Checkpoints  # noqa: E402
from kgraft.training.distiller import Distiller  # noqa: E402
from kgraft.training.fit import GraftingFit  # noqa: E402
from kgraft.training.mutual import Mutual, Online  # noqa: E402
from kgraft.training.optimizers import SGD  # noqa: E402
from kgraft.training.schedules import (  # noqa: E402
    cosine,
    cosine_per_step,
    spread,
    step_decay,
    warmup,
)
from kgraft.training.triplets import Triplet  # noqa: E402

__all__ = [
    "GraftingFit",
    "GraftCallback",
    "Distiller",
    "Mutual",
    "Online",
    "Triplet",
    "RingLink",
    "Checkpoints",
    "TensorBoard",
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
    "retrieval",
    "UserError",
    "StorageError",
    "DivergedError",
    "LostPeerError",
]
