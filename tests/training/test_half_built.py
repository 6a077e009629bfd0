"""Models whose heads are built by the first batch train and graft like any other."""

import keras
import numpy as np
import pytest
from keras import layers

import kgraft

pytestmark = pytest.mark.core
TORCH = keras.config.backend() == "torch"


def backbone():
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 3, activation="relu")(inputs)
    return keras.Model(inputs, layers.GlobalAveragePooling2D()(x))


class Headed(keras.Model):
    def __init__(self):
        super().__init__()
        self.body, self.head = backbone(), layers.Dense(5)

    def call(self, x, training=None):
        return self.head(self.body(x, training=training))


def torch_module():
    import torch

    class Body(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = torch.nn.Conv2d(3, 4, 3)
            self.norm = torch.nn.BatchNorm2d(4)

        def forward(self, x):
            return self.norm(self.convolution(x.permute(0, 3, 1, 2))).mean((2, 3))

    return layers.TorchModuleWrapper(Body())


MODELS = {
    "a head on a backbone": lambda: keras.Sequential([backbone(), layers.Dense(5)]),
    "a model of one's own": Headed,
    "a module of torch": lambda: keras.Sequential([torch_module(), layers.Dense(5)]),
}


@pytest.mark.parametrize("way", ["fit", "callback", "uncompiled"])
@pytest.mark.parametrize("name", MODELS)
def test_a_half_built_peer_learns_and_grafts_as_a_built_one(name, way):
    if "torch" in name and not TORCH:
        pytest.skip("TorchModuleWrapper is torch's")
    random = np.random.default_rng(0)
    x, y = random.normal(size=(8, 6, 6, 3)).astype("float32"), np.arange(8) % 5

    def weights(built):
        keras.utils.set_random_seed(0)
        peers = [MODELS[name]() for _ in range(2)]
        for peer in peers:
            if built:
                peer(x[:1])
        for peer in peers[: 1 if way == "uncompiled" else 2]:
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            peer.compile(kgraft.SGD(0.1), loss, metrics=["accuracy"])
        options = {"batch_size": 4, "epochs": 2, "verbose": 0, "shuffle": False}
        if way == "fit":
            del options["shuffle"]
            kgraft.GraftingFit(peers).fit(x, y, **options)
        else:
            peers[0].fit(x, y, callbacks=[kgraft.GraftCallback(peers[1:])], **options)
        return [weight for peer in peers for weight in peer.get_weights()]

    half, whole = weights(False), weights(True)
    assert len(half) == len(whole) >= 8
    for own, other in zip(half, whole, strict=True):
        np.testing.assert_allclose(own, other, atol=1e-6)
