"""Grafting written again from the papers, in plain NumPy, knowing nothing of kgraft."""

import numpy as np


def entropy(kernel, bins=10):
    """Eq. 6 with NumPy's own histogram, in float64."""
    values = np.asarray(kernel, np.float64).ravel()
    if values.min() == values.max():
        return 0.0
    shares = np.histogram(values, bins=bins)[0] / values.size
    return -sum(p * np.log(p) for p in shares if p > 0)


def authors_entropy(kernel, bins=10):
    """The authors' loop, each operation in float32, an open last bin."""
    values = np.asarray(kernel, np.float32).ravel()
    scale = (values.max() - values.min()) / np.float32(bins)
    total = 0.0
    for i in range(bins):
        low = values.min() + np.float32(i) * scale
        high = values.min() + np.float32(i + 1) * scale
        share = ((values >= low) & (values < high)).sum() / values.size
        if share > 0:
            total -= share * np.log(share)
    return total


def alpha(own, donor, amplitude=0.4, sharpness=500.0):
    return amplitude / np.pi * np.arctan(sharpness * (own - donor)) + 0.5


def graft(peers, groups, measure=entropy):
    """Alg. 1: peers as lists of arrays, groups as (kernel, members); returns peers and alphas."""
    count = len(peers)
    information = [[measure(peer[kernel]) for kernel, _ in groups] for peer in peers]
    after = [[weight.copy() for weight in peer] for peer in peers]
    alphas = np.empty((count, len(groups)))
    for k in range(count):
        donor = (k - 1) % count
        for g, (_, members) in enumerate(groups):
            share = alpha(information[k][g], information[donor][g])
            alphas[k, g] = share
            for m in members:
                own, theirs = peers[k][m].astype(np.float64), peers[donor][m].astype(np.float64)
                after[k][m] = share * own + (1 - share) * theirs
    return after, alphas


def authors_groups(keys):
    """Their state-dict loop: a key with "conv" in it is measured, later ones reuse its share."""
    groups, owner = {}, None
    for key in keys:
        owner = key if "conv" in key else owner
        groups.setdefault(owner, []).append(key)
    return groups


def authors_vgg_groups(modules):
    """Their VGG script's loop over (kind, name): kernels of convolutions, whole norms."""
    groups, owner = {}, None
    for kind, name in modules:
        if kind == "convolution":
            owner = f"{name}.weight"
            groups[owner] = [owner]
        elif kind == "norm":
            parts = ("weight", "bias", "running_mean", "running_var")
            groups[owner] += [f"{name}.{part}" for part in parts]
    return groups
