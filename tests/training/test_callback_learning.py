"""Peers beside `fit` learn exactly what a `fit` of their own would teach them."""

import keras
import numpy as np
import pytest

from kgraft.data.order import epoch_order
from kgraft.training.callback import GraftCallback
from kgraft.training.distiller import Distiller, student_of
from tests.training.callback_cases import (
    BACKEND,
    BATCH,
    Pairs,
    arrays,
    assert_same,
    assert_usable,
    batches,
    compile_,
    compiled,
    differ,
    everything,
    network,
    taught,
)

pytestmark = pytest.mark.core

ONE_STEP = {"torch": [1]}.get(BACKEND, [1, 4])


@pytest.mark.parametrize("steps_per_execution", ONE_STEP)
def test_lock_step_is_bit_for_bit_a_fit_on_the_same_batches(steps_per_execution):
    x, y = arrays()
    model = compiled(1, steps_per_execution=steps_per_execution)
    peers = [compiled(2, learning_rate=0.02), compiled(3)]
    model.fit(
        x,
        y,
        batch_size=BATCH,
        epochs=2,
        shuffle=False,
        verbose=0,
        callbacks=[GraftCallback(peers, epochs_grafted=0, engine="eager")],
    )
    assert_same(everything(model), taught(compiled(1), batches(x, y), epochs=2))
    twins = [compiled(2, learning_rate=0.02), compiled(3)]
    for peer, twin in zip(peers, twins, strict=True):
        assert_same(everything(peer), taught(twin, batches(x, y), epochs=2))


def test_a_lone_callback_that_keras_calls_from_a_thread_learns_the_same():
    x, y = arrays()
    peer = compiled(2)
    compiled(1).fit(
        x,
        y,
        batch_size=BATCH,
        shuffle=False,
        verbose=0,
        callbacks=GraftCallback([peer], epochs_grafted=0, engine="eager"),
    )
    assert_same(everything(peer), taught(compiled(2), batches(x, y)))


@pytest.mark.parametrize("weighted", ["sample_weight", "class_weight"])
def test_weights_of_examples_and_classes_reach_the_peers(weighted):
    x, y = arrays()
    weights = np.linspace(0, 2, 3, dtype="float32")
    given = weights[y] if weighted == "sample_weight" else dict(enumerate(weights.tolist()))
    peer = compiled(2)
    compiled(1).fit(
        x,
        y,
        batch_size=BATCH,
        shuffle=False,
        verbose=0,
        callbacks=[GraftCallback([peer], epochs_grafted=0, engine="eager")],
        **{weighted: given},
    )
    expected = taught(compiled(2), [(*b, weights[b[1]]) for b in batches(x, y)])
    assert_same(everything(peer), expected)
    assert differ(expected, taught(compiled(2), batches(x, y)))


def data_sets():
    kinds = ["pydataset", "generator", "tf.data"]
    return [*kinds, "dataloader"] if BACKEND == "torch" else kinds


def data_set(kind, x, y):
    match kind:
        case "pydataset":
            return Pairs(x, y)
        case "generator":
            return (batch for batch in batches(x, y))
        case "tf.data":
            tf = pytest.importorskip("tensorflow")
            return tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
        case "dataloader":
            import torch

            pairs = torch.utils.data.TensorDataset(torch.tensor(x), torch.tensor(y))
            return torch.utils.data.DataLoader(pairs, batch_size=BATCH)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize("kind", data_sets())
def test_whatever_fit_reads_reaches_the_peers(kind):
    x, y = arrays()
    peer = compiled(2)
    compiled(1).fit(
        data_set(kind, x, y),
        shuffle=False,
        verbose=0,
        callbacks=[GraftCallback([peer], epochs_grafted=0, engine="eager")],
    )
    assert_same(everything(peer), taught(compiled(2), batches(x, y)))


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize("kind", [kind for kind in data_sets() if kind != "generator"])
def test_a_peer_with_data_of_its_own_takes_a_batch_a_step_and_begins_anew(kind):
    x, y = arrays()
    own = arrays(12, seed=5)
    peer = compiled(2)
    grafting = GraftCallback([peer], data=[data_set(kind, *own)], epochs_grafted=0, engine="eager")
    compiled(1).fit(x, y, batch_size=BATCH, verbose=0, callbacks=[grafting])
    passes = [batches(*own), batches(*own)]  # 3 batches twice
    if kind == "pydataset":  # as from arrays, a new order with each pass
        orders = [epoch_order(3, seed=0, peer=1, epoch=epoch) for epoch in range(2)]
        passes = [[drawn[k] for k in order] for drawn, order in zip(passes, orders, strict=True)]
    assert_same(everything(peer), taught(compiled(2), [*passes[0], *passes[1]]))


def test_from_arrays_every_peer_draws_an_order_of_its_own():
    x, y = arrays()

    def trained(data):
        peers = [compile_(clone(2)), compile_(clone(2))]
        grafting = GraftCallback(peers, data=data, epochs_grafted=0, engine="eager")
        compiled(1).fit(x, y, batch_size=BATCH, epochs=2, verbose=0, callbacks=[grafting])
        assert int(keras.ops.convert_to_numpy(peers[0].optimizer.iterations)) == 12
        return [peer.get_weights() for peer in peers]

    first, second = trained((x, y))
    assert differ(first, second)
    for once, again in zip((first, second), trained([(x, y), (x, y)]), strict=True):
        assert_same(once, again)


def clone(seed):
    return network(seed)


@pytest.mark.parametrize("built", [True, False])
def test_distillers_may_share_a_teacher_with_the_model_that_fit_trains(built):
    x, y = arrays()

    def distillers():
        teacher = network(9)
        made = [Distiller(network(k), [teacher], name=f"distiller{k}") for k in (1, 2)]
        return teacher, [compile_(made[0], 0.05), compile_(made[1], 0.02)]

    teacher, (model, peer) = distillers()
    before = teacher.get_weights()
    if built:
        peer.train_on_batch(x[:4], y[:4])
    grafting = GraftCallback([peer], epochs_grafted=0, engine="eager")
    model.fit(x, y, batch_size=BATCH, epochs=2, shuffle=False, verbose=0, callbacks=[grafting])
    _, (_, twin) = distillers()
    if built:
        twin.train_on_batch(x[:4], y[:4])
    taught(twin, batches(x, y), epochs=2)
    assert_same(peer.student.get_weights(), twin.student.get_weights())
    assert_same(teacher.get_weights(), before)

    grafting = GraftCallback([peer])
    model.fit(x, y, batch_size=BATCH, verbose=0, validation_data=(x, y), callbacks=[grafting])
    assert len(grafting.records) == 1
    assert_same(teacher.get_weights(), before)
    for one in (model, peer):
        assert_usable(one, x, y)
        assert student_of(one) is one.student
