"""What replicas train in `test_replicas`, and the program of each of their processes.

`python -m tests.engines.replica_cases RANK WORLD FOLDER` trains every case with 2 and with 3
replicas, of as many processes, and writes weights and what else there is to see.
"""

import datetime
import json
import sys
from pathlib import Path

import kgraft  # isort: skip  # chooses the backend before Keras is imported
import keras
import numpy as np
import torch
from keras import layers

from kgraft.engines.engine import Engine
from kgraft.engines.replicas import Replicas, part_seeds, settle
from kgraft.errors import DriftError
from kgraft.training.distiller import distil
from kgraft.training.feeds import feed_of
from kgraft.training.mutual import FromEachOther, Mutual
from kgraft.training.shards import shards

EPOCHS = 2
COUNTS = (2, 3)


def network(optimizer, *, last=(), first=(), seed=1, model=keras.Model):
    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input((6, 6, 1))
    for layer in (
        *first,
        layers.Conv2D(3, 3, name="conv"),
        layers.ReLU(),
        layers.Flatten(),
        *last,
        layers.Dense(3, kernel_regularizer=keras.regularizers.L2(0.05), name="head"),
    ):
        x = layer(x)
    return compiled(model(inputs, x), optimizer)


def compiled(model, optimizer):
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def data(count=19, batch_size=6, **options):
    """Batches of 6, 6, 6 and 1: one is split unevenly only by 3, one has less than a replica."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 6, 6, 1)).astype("float32")
    y = rng.integers(0, 3, count)
    return feed_of(x, y, batch_size=batch_size, **options)


def weighted():
    rng = np.random.default_rng(1)
    return data(sample_weight=rng.uniform(0.1, 3.0, 19).astype("float32"))


class Unused(layers.Layer):
    """Has a weight that no loss depends on."""

    def build(self, shape):
        self.unused = self.add_weight(shape=(5,), name="unused")

    def call(self, x):
        return x


class OwnStep(keras.Model):
    """A step of its own, which moves by `apply_gradients` and by an optimizer that is handed on."""

    def train_step(self, batch):
        x, y, *_ = batch
        self.zero_grad()
        loss = self.compute_loss(x, y, self(x, training=True))
        loss.backward()
        weights = self.trainable_weights
        with torch.no_grad():
            self.optimizer.apply_gradients((own.value.grad, own) for own in weights)
        return {"own": loss.detach()}


def frozen():
    model = network(kgraft.SGD(0.1))
    model.get_layer("conv").trainable = False
    return compiled(model, kgraft.SGD(0.1, momentum=0.9, l2=0.1))


def distillers():
    teacher = network("sgd", seed=7)
    return [distil(network(keras.optimizers.SGD(0.1, momentum=0.9)), [teacher])]


def two_peers():
    return [
        network(kgraft.SGD(0.1, momentum=0.9), seed=1),
        network(keras.optimizers.Adam(0.01), seed=2),
    ]


def scaled():
    inner = keras.optimizers.SGD(0.1, momentum=0.9, global_clipnorm=0.3)
    return network(keras.optimizers.LossScaleOptimizer(inner, initial_scale=8.0))


def one_infinite():
    """One example of the second batch's end has no finite gradient: only the last replica's."""
    feed = data()
    x, y, _ = feed.arrays
    order = feed._taken(0)
    x = np.array(keras.ops.convert_to_numpy(x))
    x[order[11]] = np.inf
    return feed_of(x, keras.ops.convert_to_numpy(y), batch_size=6)


def odd():
    """Batches of 7, 7 and 4: parts of 4 and 3, and of 3, 2 and 2."""
    return data(18, 7)


_SGD = keras.optimizers.SGD
CASES = {
    "keras SGD": (lambda: [network(_SGD(0.1, momentum=0.9, nesterov=True))], data, "auto"),
    "eager": (lambda: [network(_SGD(0.1, momentum=0.9))], odd, "eager"),
    "kgraft SGD": (lambda: [network(kgraft.SGD(0.1, momentum=0.9, l2=0.1))], odd, "auto"),
    "Adam": (lambda: [network(keras.optimizers.Adam(0.01))], odd, "auto"),
    "AdamW": (lambda: [network(keras.optimizers.AdamW(0.01, 0.1))], data, "auto"),
    "clipnorm": (lambda: [network(kgraft.SGD(0.1, clipnorm=0.2))], odd, "auto"),
    "global clipnorm": (lambda: [network(_SGD(0.1, global_clipnorm=0.3))], odd, "auto"),
    "moving average": (
        lambda: [network(_SGD(0.1, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=3))],
        odd,
        "auto",
    ),
    "accumulation": (
        lambda: [network(_SGD(0.1, momentum=0.9, gradient_accumulation_steps=2))],
        odd,
        "auto",
    ),
    "loss scale": (lambda: [scaled()], odd, "auto"),
    "loss scale, infinite": (lambda: [scaled()], one_infinite, "auto"),
    "sample weights": (lambda: [network(kgraft.SGD(0.1))], weighted, "auto"),
    "class weights": (
        lambda: [network(kgraft.SGD(0.1))],
        lambda: data(class_weight={0: 3.0, 1: 0.1}),
        "auto",
    ),
    "frozen": (lambda: [frozen()], odd, "auto"),
    "no gradient": (lambda: [network(kgraft.SGD(0.1, l2=0.1), last=[Unused()])], odd, "auto"),
    "own step": (lambda: [network(_SGD(0.1, momentum=0.9), model=OwnStep)], odd, "auto"),
    "Distiller": (distillers, odd, "auto"),
    "two peers": (two_peers, odd, "auto"),
    "mutual": (
        lambda: [
            own.model for own in FromEachOther(Engine(two_peers()), Mutual()).engine().steppers
        ],
        odd,
        "auto",
    ),
}


def feeds_for(models, feed):
    """A feed for every model: the joint model's targets are by peer."""
    return [feed.for_peer(k) for k in range(len(models))]


def given(model, batch):
    """A batch as the engine is given it."""
    if getattr(model, "names", None) is None:
        return batch
    x, y = batch[:2]
    return x, dict.fromkeys(model.names, y)


def state(models):
    """All weights and all that the optimizers know."""
    found = [v for model in models for v in [*model.weights, *model.optimizer.variables]]
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in found]


def alone(name):
    """The same in one process, by Keras' own `train_on_batch` on whole batches.

    Returns:
        State and each epoch's logs: means over its examples.
    """
    make, read, _ = CASES[name]
    models, logs = make(), []
    for epoch in range(EPOCHS):
        logs.append([])
        for model, feed in zip(models, feeds_for(models, read()), strict=True):
            found, sizes = [], []
            for batch in feed.epoch(epoch):
                found.append(model.train_on_batch(*given(model, batch), return_dict=True))
                sizes.append(len(batch[0]))
            logs[-1].append(
                {k: np.average([own[k] for own in found], weights=sizes) for k in found[0]}
            )
    return state(models), logs


def trained(name, replicas):
    """As `alone`, by an engine of replicas on shards.

    Returns:
        State, logs and how the engine says it was done.
    """
    make, read, wanted = CASES[name]
    models, logs = make(), []
    engine = Engine(models, wanted, replicas)
    feeds = shards(feeds_for(models, read()), replicas)
    for epoch in range(EPOCHS):
        engine.begin_epoch()
        for batches in zip(*(feed.epoch(epoch) for feed in feeds), strict=True):
            engine.step([given(m, own) for m, own in zip(models, batches, strict=True)])
        engine.end_epoch()
        logs.append(engine.logs())
        settle(models, replicas)
    hooked = any("apply" in vars(model.optimizer) for model in models)
    said = {"logs": logs, "reason": engine.describe(), "hooked": hooked}
    return state(models), said


def statistics(replicas):
    """Batch statistics and masks: each replica's own, until the epoch's end."""
    model = network(
        kgraft.SGD(0.1),
        first=[layers.BatchNormalization(name="bn")],
        last=[layers.Dropout(0.5, seed=3, name="drop")],
    )
    part_seeds([model], replicas.number)
    engine = Engine([model], "auto", replicas)
    (feed,) = shards([data()], replicas)
    engine.begin_epoch()
    for batch in feed.epoch(0):
        engine.step([batch])
    engine.end_epoch()
    before = np.array(keras.ops.convert_to_numpy(model.get_layer("bn").moving_mean))
    settle([model], replicas)
    after = np.array(keras.ops.convert_to_numpy(model.get_layer("bn").moving_mean))
    seed = keras.ops.convert_to_numpy(model.get_layer("drop").seed_generator.state)
    return {
        "before": before.tolist(),
        "after": after.tolist(),
        "seed": seed.tolist(),
        "weights": [w.ravel().tolist() for w in model.get_weights()],
    }


def drifted(replicas, change):
    """What `settle` says where the last replica has changed something."""
    models = two_peers()
    for model in models:
        model.optimizer.build(model.trainable_variables)
    settle(models, replicas)
    if replicas.number == replicas.count - 1:
        change(models)
    try:
        settle(models, replicas)
    except DriftError as error:
        return str(error)
    return None


def nudged(models):
    """One number of the second model's head, by the least step there is."""
    kernel = models[1].get_layer("head").kernel
    value = np.array(keras.ops.convert_to_numpy(kernel))
    value[3, 1] = np.nextafter(value[3, 1], np.float32(np.inf))
    kernel.assign(value)


def slowed(models):
    models[0].optimizer.learning_rate = 0.05


def main(rank, world, folder):
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(str(folder / "store"), world)
    for count in COUNTS:
        if rank >= count:
            continue
        limit = datetime.timedelta(seconds=60)
        prefix = torch.distributed.PrefixStore(str(count), store)
        groups = [torch.distributed.ProcessGroupGloo(prefix, rank, count, limit)]

        def add(flat, groups=groups, limit=limit):
            groups[0].allreduce([flat]).wait(limit)

        replicas, said = Replicas(rank, count, add), {}
        for k, name in enumerate(CASES):
            arrays, said[name] = trained(name, replicas)
            np.savez(folder / f"{count}-{rank}-{k}.npz", *arrays)
        said["statistics"] = statistics(replicas)
        said["nudged"], said["slowed"] = drifted(replicas, nudged), drifted(replicas, slowed)
        said["registered"] = torch.distributed.is_initialized()
        (folder / f"{count}-{rank}.json").write_text(json.dumps(said))
        groups[0].barrier().wait(limit)
        groups.clear()  # its threads end here, not with whatever still holds `add` at the exit


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
