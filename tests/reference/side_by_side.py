"""kgraft and a plain PyTorch loop on real images, from the same weights in the same order.

`python -m tests.reference.side_by_side DATA_DIR [PEERS [float64]]`, after `kgraft data prepare
cifar100 --data-dir DATA_DIR`: ResNet20 on the first 5,120 training images, 5 epochs, the test
images after each. With several peers both sides graft, the authors' way.

At the recipe's learning rate the first steps multiply any difference by 3 to 50 each. PyTorch* is
the same PyTorch loop from weights that are one float32 rounding larger: how far two runs part that
nobody would call different.
"""

import copy
import sys
from contextlib import nullcontext
from itertools import repeat

import kgraft  # isort: skip  # chooses the backend
import keras
import numpy as np
import torch

from kgraft import data, models
from kgraft.data.order import augmentation_rng, epoch_order
from kgraft.grafting import Entropy, Graft
from kgraft.training.fit import GraftingFit
from kgraft.training.optimizers import SGD
from kgraft.training.schedules import spread, step_decay
from tests.reference.parity import float64
from tests.reference.torch_models import TWINS, copy_to, weights_by_layer
from tests.reference.torch_training import torch_batches, train

assert kgraft.__name__
EPOCHS, BATCH, DROP_EVERY, PAD = 5, 128, 4, 4
RECIPE = {"momentum": 0.9, "l2": 5e-4}


def main(data_dir, peers=1, seed=0):
    cifar = data.load("cifar100", data_dir=data_dir, limit_train=5120, validation=0)
    keras.utils.set_random_seed(seed)
    ours = [models.resnet20(classes=100) for _ in range(peers)]
    dtype = getattr(torch, keras.config.floatx())
    twins = [TWINS["resnet20"](3, 100).to(dtype) for _ in range(peers)]
    for model, twin in zip(ours, twins, strict=True):
        copy_from(model, twin)
    nudged = copy.deepcopy(twins)
    with torch.no_grad():
        for weight in (weight for twin in nudged for weight in twin.parameters()):
            weight.mul_(1 + 2**-23)
    augment = data.Augment(PAD, True, cifar.mean, cifar.std)
    stream = data.BatchStream(
        cifar.train.images, cifar.train.labels, batch_size=BATCH, seed=seed, peer=0, augment=augment
    )
    rates = [spread(0.1, k, peers) for k in range(peers)]
    steps = stream.steps
    for model, rate in zip(ours, rates, strict=True):
        schedule = step_decay(rate, every=DROP_EVERY, steps_per_epoch=steps)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(SGD(schedule, **RECIPE), loss, metrics=["accuracy"])
    test = data.BatchStream(
        cifar.test.images,
        cifar.test.labels,
        batch_size=500,
        seed=0,
        peer=0,
        augment=data.Augment(0, False, cifar.mean, cifar.std),
        shuffle=False,
    )
    run = GraftingFit(ours, mixer=Graft(criterion=Entropy(binning="authors"), decimals=2))
    histories = run.fit(stream, epochs=EPOCHS, verbose=0, validation_data=test)

    def batches(epoch, peer):
        order = epoch_order(stream.count, seed=seed, peer=peer, epoch=epoch)
        crops = augmentation_rng(seed=seed, peer=peer, epoch=epoch)
        draws = (augment.draw(crops, count) for count in repeat(BATCH, steps))
        images, labels = cifar.train.images, cifar.train.labels
        return torch_batches(images, labels, order, draws, BATCH, cifar.mean, cifar.std, PAD)

    def trained(networks):
        epochs = ([batches(epoch, k) for k in range(peers)] for epoch in range(EPOCHS))
        options = {"rates": rates, "drop_every": DROP_EVERY, "grafts": EPOCHS if peers > 1 else 0}
        for losses in train(networks, epochs, **options, **RECIPE):
            yield losses[:, -1], [accuracy(network, cifar) for network in networks]

    print("| epoch | peer | loss: kgraft | PyTorch | PyTorch* | accuracy: kgraft | PyTorch | * |")
    print("|---|---|---|---|---|---|---|---|")
    rows = zip(trained(twins), trained(nudged), strict=True)
    for epoch, ((losses, tested), (others, also)) in enumerate(rows):
        for k in range(peers):
            own = histories[k].history
            print(
                f"| {epoch + 1} | {k + 1} | {own['loss'][epoch]:.5f} | {losses[k]:.5f} | "
                f"{others[k]:.5f} | {own['val_accuracy'][epoch]:.2%} | {tested[k]:.2%} | "
                f"{also[k]:.2%} |",
                flush=True,
            )


def copy_from(model, twin):
    """Give a twin the weights of its Keras model."""
    with torch.no_grad():
        for name, arrays in weights_by_layer(twin).items():
            for own, theirs in zip(model.get_layer(name).get_weights(), arrays, strict=True):
                theirs[...] = own  # a view of the twin's memory
    check = keras.models.clone_model(model)
    copy_to(check, twin)
    assert all(map(np.array_equal, check.get_weights(), model.get_weights()))


def accuracy(twin, cifar):
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (cifar.mean, cifar.std))
    hits = 0
    with torch.no_grad():
        twin.eval()
        for start in range(0, len(cifar.test), 500):
            x = torch.from_numpy(cifar.test.images[start : start + 500]).permute(0, 3, 1, 2)
            x = x.to(torch.float32).div(255).sub(mean).div(std).to(twin.linear.weight.dtype)
            scores = twin(x).argmax(1).numpy()
            hits += int((scores == cifar.test.labels[start : start + 500]).sum())
    return hits / len(cifar.test)


if __name__ == "__main__":
    with float64() if "float64" in sys.argv else nullcontext():
        main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1)
