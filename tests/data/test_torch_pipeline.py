"""Batches against the usual PyTorch input pipeline, given the same order, crops and flips."""

import keras
import numpy as np
import pytest
from keras import ops

from kgraft import data
from kgraft.data.cifar import CIFAR100
from kgraft.data.order import augmentation_rng, epoch_order
from tests.reference.torch_training import torch_batches

pytestmark = pytest.mark.core
PAD = 4
# XLA on the CPU divides by multiplying with a reciprocal: the last bit of values up to 2 may differ
TOLERANCE = 1e-6 if keras.config.backend() == "jax" else 0.0


def test_batches_equal_the_torch_pipelines_to_the_last_bit():
    rng = np.random.default_rng(5)
    images = rng.integers(0, 256, (50, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(0, 100, 50)
    augment = data.Augment(PAD, True, CIFAR100.mean, CIFAR100.std)
    stream = data.BatchStream(images, labels, batch_size=16, seed=3, peer=1, augment=augment)
    for epoch in (0, 1):
        crops = augmentation_rng(seed=3, peer=1, epoch=epoch)
        theirs = torch_batches(
            images,
            labels,
            epoch_order(50, seed=3, peer=1, epoch=epoch),
            [augment.draw(crops, count) for count in (16, 16, 16, 2)],
            16,
            CIFAR100.mean,
            CIFAR100.std,
            PAD,
        )
        seen = 0
        for (x, y), (expected, chosen) in zip(stream.epoch(epoch), theirs, strict=True):
            np.testing.assert_allclose(ops.convert_to_numpy(x), expected, rtol=0, atol=TOLERANCE)
            np.testing.assert_array_equal(ops.convert_to_numpy(y), chosen)
            seen += len(chosen)
        assert seen == 50
