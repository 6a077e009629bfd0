"""kgraft: K peer networks train side by side and revive each other's dead filters.

At the end of every epoch each layer of a peer is blended with the same layer of the previous peer
in a ring, weighted by the entropy of the two layers' weights (filter grafting, CVPR 2020).
"""

from kgraft import backend as _backend

_backend.choose()
