"""Replicas in processes of their own, against one process that trains on whole batches."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

from kgraft.engines.engine import Engine
from kgraft.engines.replicas import Replicas, part_seeds
from kgraft.errors import UserError

TORCH = keras.config.backend() == "torch"
if TORCH:
    from tests.engines import replica_cases as cases

    NAMES, COUNTS = list(cases.CASES), cases.COUNTS
    # a batch of a single example is everybody's, and so counted R times; the own step has no metric
    odd = [name for name, (_, read, _) in cases.CASES.items() if read is cases.odd]
    MEASURED = [name for name in odd if name != "own step"]
else:
    NAMES, MEASURED, COUNTS = [], [], ()

torch_only = pytest.mark.skipif(not TORCH, reason="replicas need torch")
in_processes = [torch_only, pytest.mark.multiprocess]
NATIVE = "compiled on torch (fused operations on channels-last memory, not traced: its replicas' "


@pytest.mark.core
@pytest.mark.skipif(TORCH, reason="torch can")
def test_other_backends_are_refused():
    with pytest.raises(UserError, match=r"^data-parallel peers need the torch backend"):
        Replicas(0, 2, lambda flat: None)


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What the replicas have written, and a reader of their weights."""
    folder = tmp_path_factory.mktemp("replicas")
    root = Path(__file__).parents[2]
    environment = {**os.environ, "KERAS_BACKEND": "torch", "OMP_NUM_THREADS": "1"}
    replicas = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.engines.replica_cases", str(rank), "3", str(folder)],
            cwd=root,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    ends = [replica.communicate(timeout=240)[1] for replica in replicas]
    assert [replica.returncode for replica in replicas] == [0, 0, 0], "".join(ends)

    def read(count, rank, name=None):
        if name is None:
            return json.loads((folder / f"{count}-{rank}.json").read_text())
        with np.load(folder / f"{count}-{rank}-{NAMES.index(name)}.npz") as arrays:
            return [arrays[key] for key in arrays.files]

    return read


@pytest.fixture(scope="module")
def alone():
    return functools.cache(cases.alone)


def each(test):
    """For every case and number of replicas."""
    for mark in in_processes:
        test = mark(test)
    named = pytest.mark.parametrize("name", NAMES)(test)
    return pytest.mark.parametrize("count", COUNTS)(named)


# Keras warns of the weight without a gradient in that case; one example is infinite in another
pytestmark = [
    pytest.mark.filterwarnings("ignore:Gradients do not exist:UserWarning"),
]


@each
def test_replicas_come_to_the_weights_of_one_process(said, alone, name, count):
    expected, _ = alone(name)
    found = said(count, 0, name)
    assert len(found) == len(expected)
    for value, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=2e-6)


@each
def test_replicas_are_equal_to_each_other_bit_for_bit(said, name, count):
    first = said(count, 0, name)
    for rank in range(1, count):
        for value, wanted in zip(said(count, rank, name), first, strict=True):
            np.testing.assert_array_equal(value, wanted, strict=True)


@torch_only
@pytest.mark.multiprocess
@pytest.mark.parametrize("name", MEASURED)
@pytest.mark.parametrize("count", COUNTS)
def test_metrics_are_those_of_whole_batches(said, alone, name, count):
    _, expected = alone(name)
    for rank in range(count):
        found = said(count, rank)[name]["logs"]
        for epoch, wanted in zip(found, expected, strict=True):
            assert [pytest.approx(own, rel=1e-5) for own in wanted] == epoch


@each
def test_no_step_is_traced_and_nothing_is_left_behind(said, name, count):
    found = said(count, 0)[name]
    asked = "eager on torch (it was asked for)"
    assert found["reason"].startswith(asked if name == "eager" else NATIVE)
    assert not found["hooked"] and not said(count, 0)["registered"]


@pytest.mark.multiprocess
@torch_only
@pytest.mark.parametrize("count", COUNTS)
def test_batch_statistics_are_the_first_replicas_at_an_epochs_end(said, count):
    found = [said(count, rank)["statistics"] for rank in range(count)]
    assert all(own["before"] != found[0]["before"] for own in found[1:])
    assert all(own["after"] == found[0]["before"] for own in found)
    assert all(own["weights"] == found[0]["weights"] for own in found)


@pytest.mark.multiprocess
@torch_only
@pytest.mark.parametrize("count", COUNTS)
def test_replicas_draw_masks_of_their_own(said, count):
    seeds = [said(count, rank)["statistics"]["seed"] for rank in range(count)]
    assert seeds[0] == [3, 4]  # as in one process: 4 batches were drawn for
    assert len({own[0] for own in seeds}) == count
    assert all(own[1] == 4 for own in seeds)


@pytest.mark.multiprocess
@torch_only
@pytest.mark.parametrize("count", COUNTS)
def test_replicas_that_drift_apart_are_told_in_each_of_them(said, count):
    found = [said(count, rank) for rank in range(count)]
    for own in found:
        assert "'head/kernel' of model 2 ('functional" in own["nudged"]
        assert f"is another one in replica {count - 1} than in replica 0" in own["nudged"]
        assert "learning_rate' of model 1" in own["slowed"]


class OfOthers:
    """Adds what the other replicas would send; remembers what it was given."""

    def __init__(self, *others):
        self.others, self.calls = others, []

    def __call__(self, flat):
        self.calls.append(np.array(keras.ops.convert_to_numpy(flat)))
        for other in self.others:
            flat += keras.ops.convert_to_tensor(np.array(other, "float32"))


def variable(*values):
    return keras.Variable(np.array(values, "float32"))


def numbers(gradients):
    return [None if g is None else keras.ops.convert_to_numpy(g).tolist() for g in gradients]


@torch_only
def test_a_replica_weighs_as_many_examples_as_it_has_seen():
    # 3 examples with gradient (1, 2) here, 1 example with (5, -2) there
    add = OfOthers([5.0, -2.0, 1.0, 1.0])
    gradient = keras.ops.convert_to_tensor(np.array([1.0, 2.0], "float32"))
    assert numbers(Replicas(0, 2, add).mean([gradient], [variable(0, 0)], 3)) == [[2.0, 1.0]]
    assert add.calls[0].tolist() == [3.0, 6.0, 1.0, 3.0]


@torch_only
def test_a_gradient_that_only_another_replica_has_counts_and_one_that_nobody_has_is_none():
    add = OfOthers([0.0, 8.0, 0.0, 1.0, 1.0])  # of its 1 example; none of the first variable
    gradients = Replicas(0, 2, add).mean([None, None], [variable(0), variable(0)], 3)
    assert numbers(gradients) == [None, [2.0]]


def two(engine="auto"):
    models = [cases.network(keras.optimizers.SGD(0.1), seed=k) for k in (1, 2)]
    add = OfOthers()
    return Engine(models, engine, Replicas(0, 1, add)), add


@torch_only
def test_every_step_of_every_peer_meets_the_others_once_however_many_there_are():
    engine, add = two()
    (batch, *_) = cases.data().epoch(0)
    engine.begin_epoch()
    for _ in range(60):  # single models' steps are traced after 40
        engine.step([batch, batch])
    engine.end_epoch()
    assert len(add.calls) == 120
    assert not engine.takes_lazy_batches and engine.is_settled
    other = engine.of(two()[0].steppers[0].model for _ in range(1))
    assert other.replicas is engine.replicas and other.wanted == engine.wanted


@torch_only
@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_a_step_that_fails_leaves_the_optimizer_as_it_was(engine):
    trained, add = two(engine)
    (batch, *_) = cases.data().epoch(0)
    trained.step([batch, batch])
    add.calls = None
    with pytest.raises(AttributeError, match="append"):
        trained.step([batch, batch])
    assert not any("apply" in vars(own.model.optimizer) for own in trained.steppers)


@torch_only
def test_an_apply_that_somebody_has_set_on_the_optimizer_is_kept():
    engine, add = two()
    model = engine.steppers[0].model
    seen = []

    def own(grads, variables):
        seen.append(len(grads))
        type(model.optimizer).apply(model.optimizer, grads, variables)

    model.optimizer.apply = own
    (batch, *_) = cases.data().epoch(0)
    engine.steppers[0].step(batch)
    assert seen == [4] and len(add.calls) == 1 and model.optimizer.apply is own


@torch_only
@pytest.mark.parametrize("reduction", ["sum", "mean_with_sample_weight"])
def test_losses_that_are_no_means_over_examples_are_refused(reduction):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3)], name="summed")
    for loss in (
        keras.losses.Huber(reduction=reduction),
        [keras.losses.Huber(reduction=reduction)],
    ):
        model.compile("sgd", loss)
        with pytest.raises(UserError, match=rf"'summed' is compiled .*reduction='{reduction}'"):
            Engine([model], "auto", Replicas(0, 2, OfOthers())).choose()


@torch_only
def test_a_network_without_gradients_meets_nobody():
    engine, add = two()
    (batch, *_) = cases.data().epoch(0)
    engine.steppers[0].evaluate([batch])
    engine.steppers[0].predict([batch])
    assert not add.calls


@torch_only
@pytest.mark.parametrize("number", [-1, 2])
def test_a_replica_that_is_none_of_them_is_refused(number):
    with pytest.raises(UserError, match=rf"^replica {number} of 2: .* from 0 to 1\.$"):
        Replicas(number, 2, OfOthers())


@torch_only
def test_seeds_are_parted_once_for_each_generator_the_same_way_in_every_run():
    def parted(number, drawn=0):
        inner = keras.Sequential([keras.Input((4,)), layers.Dropout(0.5, seed=3)])
        model = keras.Sequential([keras.Input((4,)), inner, layers.Dropout(0.5, seed=4)])
        generators = [inner.layers[0].seed_generator, model.layers[1].seed_generator]
        for _ in range(drawn):
            for own in generators:
                own.next()
        part_seeds([model, inner], number)
        return [keras.ops.convert_to_numpy(own.state).tolist() for own in generators]

    assert parted(0) == [[3, 0], [4, 0]]
    first, second = parted(1), parted(2)
    assert len({seed for seed, _ in [*first, *second, [3, 0], [4, 0]]}) == 6
    # a checkpoint of the first replica, parted anew, is where the replica was
    assert parted(1, drawn=5) == [[seed, 5] for seed, _ in first]
