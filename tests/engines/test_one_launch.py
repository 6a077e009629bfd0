"""All peers' steps as one CUDA graph, without CUDA: see `cuda_stand_in`."""

import gc
import weakref

import keras
import numpy as np
import pytest

import kgraft
from kgraft.data import Augment, BatchStream
from kgraft.engines.engine import Engine
from kgraft.training.feeds import feed_of
from tests.engines.test_compiled import batches

if keras.config.backend() != "torch":
    pytest.skip("CUDA graphs are torch's", allow_module_level=True)

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kgraft.engines.torch import traced_steps
from kgraft.engines.torch.cuda_graph import Graphs
from kgraft.engines.torch.one_launch import OneLaunch
from tests.engines import cuda_stand_in
from tests.engines.test_cuda_graph import small as network
from tests.engines.test_traced_steps import state

SIDE, CLASSES, SIZE, COUNT = 8, 5, 8, 60  # 7 whole batches, and 4 images
STEPS = batches((SIDE, SIDE, 3), CLASSES, count=8, size=SIZE)


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(traced_steps, "_AFTER", 2)
    monkeypatch.setattr(traced_steps, "_SHORT", 60.0)


def peers(count, **options):
    return [network(seed, **options) for seed in range(count)]


def images():
    random = np.random.default_rng(0)
    shape = (COUNT, SIDE, SIDE, 3)
    return random.integers(0, 256, shape, np.uint8), random.integers(0, CLASSES, COUNT)


def stream():
    augment = Augment(pad=1, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.3))
    return BatchStream(*images(), batch_size=SIZE, seed=0, peer=0, augment=augment)


def arrays():
    x, y = images()
    return feed_of(x.astype("float32") / 255, y, np.linspace(0.5, 1.5, COUNT), batch_size=SIZE)


def trained(models, feed, epochs=4, lazy=True):
    """Losses step by step, and the engine."""
    engine = Engine(models)
    feeds = [feed.for_peer(k) for k in range(len(models))]
    for stepper, own in zip(engine.steppers, feeds, strict=True):
        stepper.build(next(own.epoch(0)))
    losses = []
    for epoch in range(epochs):
        engine.begin_epoch()
        read = [own.lazy_epoch(epoch) if lazy else own.epoch(epoch) for own in feeds]
        for drawn in zip(*read, strict=True):
            losses.append([float(logs["loss"]) for logs in engine.step(drawn)])
        engine.end_epoch()
    return losses, engine


class Counted(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.names.append(str(operation))
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("made", [stream, arrays], ids=["images", "arrays"])
@pytest.mark.parametrize("count", [1, 3])
def test_one_launch_is_the_peers_own_steps(made, count, monkeypatch, caplog):
    caplog.set_level("INFO", "kgraft")
    plain = peers(count)
    expected, _ = trained(plain, made(), lazy=False)
    cuda = cuda_stand_in.install(monkeypatch)
    models = peers(count)
    losses, engine = trained(models, made())
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    for model, other in zip(models, plain, strict=True):
        for own, wanted in zip(state(model), state(other), strict=True):
            np.testing.assert_allclose(own, wanted, rtol=1e-4, atol=1e-5)
    assert engine.logs() == [
        pytest.approx(own, rel=1e-5) for own in (stepper.logs() for stepper in engine.steppers)
    ]
    who = "the peer" if count == 1 else "3 peers"
    assert caplog.text.count(f"a step of {who} is one CUDA graph") == 2  # whole and last batches
    assert cuda.captures == 2


def test_a_step_is_a_launch_and_a_copy_of_what_it_answers(monkeypatch):
    cuda_stand_in.install(monkeypatch)
    models, feed = peers(3), stream()
    _, engine = trained(models, feed, epochs=1)
    launch = next(iter(engine._shared["launch"]._made.values()))
    replays, replay = [], launch._graph.replay

    def counted():
        replays.append(1)
        with Hidden():
            replay()

    class Hidden:
        """What the stand-in does for the device is no launch of the host's."""

        def __enter__(self):
            self.before = len(watch.names)

        def __exit__(self, *error):
            del watch.names[self.before :]

    monkeypatch.setattr(launch._graph, "replay", counted)
    engine.begin_epoch()
    feeds = [own.lazy_epoch(1) for own in launch_feeds(engine)]
    for number, drawn in zip(range(4), zip(*feeds, strict=True), strict=False):
        with Counted() as watch:
            logs = engine.step(drawn)
        assert len(logs) == 3 and logs[0]["loss"].shape == ()
        names = sorted(name for name in watch.names if "unbind" not in name)  # unbind is a view
        new_epoch = ["aten.copy_.default"] * 3 + ["aten.fill_.Scalar"] * 3
        assert names == ["aten.clone.default", *(new_epoch if number == 0 else [])]
    assert len(replays) == 4


def launch_feeds(engine):
    return [gather.__self__ for gather in engine._shared["launch"]._feeds]


def test_the_peers_streams_begin_together_and_are_waited_for(monkeypatch):
    cuda = cuda_stand_in.install(monkeypatch)
    trained_on_tensors(peers(3))
    fork, work, join = cuda.order[:2], cuda.order[2:4], cuda.order[4:6]
    captured = fork[0][2]
    sides = [own[1] for own in work]
    assert len({captured, *sides}) == 3
    assert fork == [("wait", side, captured) for side in sides]
    assert work == [("work", side) for side in sides]
    assert join == [("wait", captured, side) for side in sides]


@pytest.mark.parametrize("lost", ["a step's trace", "a gathering's trace"])
def test_what_it_addresses_lives_as_long_as_it(lost, monkeypatch):
    cuda_stand_in.install(monkeypatch)
    engine = trained(peers(2, rate=None), stream(), epochs=1)[1]  # a schedule has constants
    launch = next(iter(engine._shared["launch"]._made.values()))
    batches = [next(own.lazy_epoch(1)) for own in launch_feeds(engine)]
    for stepper in engine.steppers:
        stepper.steps()._plays.clear()
    assert np.isfinite([float(logs["loss"]) for logs in launch(batches)]).all()
    if lost == "a step's trace":
        launch.plays.clear()
    else:
        del launch._inputs[1]._trace
    gc.collect()
    with pytest.raises(cuda_stand_in.Freed):
        launch._graph.replay()


def test_answers_of_a_step_stay_what_they_were(monkeypatch):
    cuda_stand_in.install(monkeypatch)
    engine = trained(peers(2), stream(), epochs=1)[1]
    engine.begin_epoch()
    first, *others = zip(*(own.lazy_epoch(1) for own in launch_feeds(engine)), strict=True)
    logs = engine.step(first)
    before = [float(own["loss"]) for own in logs]
    for drawn in others[:3]:
        engine.step(drawn)
    assert [float(own["loss"]) for own in logs] == before


def test_batches_that_are_tensors_are_copied_in(monkeypatch):
    expected = [trained_on_tensors(peers(2))]
    cuda = cuda_stand_in.install(monkeypatch)
    np.testing.assert_allclose([trained_on_tensors(peers(2))], expected, rtol=1e-5)
    assert cuda.captures == 1


def trained_on_tensors(models):
    engine = Engine(models)
    for stepper in engine.steppers:
        stepper.build(STEPS[0])
    engine.begin_epoch()
    return [[float(own["loss"]) for own in engine.step([b] * len(models))] for b in STEPS]


def test_a_rate_that_a_callback_sets_holds_in_the_graph(monkeypatch):
    def moved():
        models = peers(2)
        engine = Engine(models)
        for stepper in engine.steppers:
            stepper.build(STEPS[0])
        engine.begin_epoch()
        for number, batch in enumerate(STEPS):
            models[0].optimizer.learning_rate = 0.1 / (1 + number)
            engine.step([batch, batch])
        return [value for model in models for value in state(model)]

    expected = moved()
    cuda = cuda_stand_in.install(monkeypatch)
    for own, wanted in zip(moved(), expected, strict=True):
        np.testing.assert_allclose(own, wanted, rtol=1e-4, atol=1e-5)
    assert cuda.captures == 1


@pytest.mark.parametrize("place", cuda_stand_in.Cuda.PLACES)
def test_where_it_fails_each_peer_is_tried_and_nothing_is_lost(place, monkeypatch, caplog):
    caplog.set_level("INFO", "kgraft")
    expected, _ = trained(peers(2), stream(), epochs=1, lazy=False)
    cuda = cuda_stand_in.install(monkeypatch, fails_at=place)
    random = cuda.random.clone()
    losses, _ = trained(peers(2), stream(), epochs=1)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)  # there, peers may be in threads
    assert cuda.stream is cuda.main and torch.equal(cuda.random, random)
    assert caplog.text.count(f"no CUDA graph of 2 peers together: CUDA error at {place}\n") == 1
    assert caplog.text.count(f"no CUDA graph of the steps: CUDA error at {place}\n") == 1
    assert cuda.captures <= 2


def test_a_graph_a_peer_is_the_next_best(monkeypatch, caplog):
    caplog.set_level("INFO", "kgraft")
    expected, _ = trained(peers(2), stream(), epochs=1, lazy=False)
    cuda = cuda_stand_in.install(monkeypatch)
    made = []

    def stream_of_one():
        made.append(1)
        if len(made) == 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return cuda_stand_in._Stream(cuda)

    monkeypatch.setattr(torch.cuda, "Stream", stream_of_one)
    losses, engine = trained(peers(2), stream(), epochs=1)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert "no CUDA graph of 2 peers together: CUDA out of memory" in caplog.text
    assert not Graphs.failed and OneLaunch.failed
    assert all(play.graph for own in engine.steppers for play in own.steps()._plays.values())


def test_models_that_change_one_variable_are_no_single_launch(monkeypatch, caplog):
    caplog.set_level("INFO", "kgraft")
    cuda_stand_in.install(monkeypatch)
    one = network()
    other = keras.Model(one.inputs, one.outputs)
    other.compile(kgraft.SGD(0.05), one.loss)
    engine = Engine([one, other])
    for stepper in engine.steppers:
        stepper.build(STEPS[0])
    engine.begin_epoch()
    for batch in STEPS:
        engine.step([batch, batch])
    assert "no CUDA graph of 2 peers together: the models share a variable" in caplog.text


def test_other_data_let_the_old_ones_go(monkeypatch):
    cuda = cuda_stand_in.install(monkeypatch)
    models = peers(2)
    engine = Engine(models)

    def epoch():
        feeds = [own.for_peer(k) for k, own in enumerate([stream()] * 2)]
        gone = weakref.ref(feeds[0].images)
        for stepper, own in zip(engine.steppers, feeds, strict=True):
            stepper.build(next(own.epoch(0)))
        engine.begin_epoch()
        for drawn in zip(*(own.lazy_epoch(0) for own in feeds), strict=True):
            engine.step(drawn)
        return gone

    old, new = epoch(), epoch()
    gc.collect()
    assert old() is None and new() is not None
    assert cuda.captures == 2


def test_a_peer_that_cannot_be_traced_leaves_the_others_their_graphs(monkeypatch):
    cuda = cuda_stand_in.install(monkeypatch)
    drawing = keras.Sequential(
        [keras.Input((SIDE, SIDE, 3)), keras.layers.Flatten(), keras.layers.Dropout(0.5),
         keras.layers.Dense(CLASSES)]
    )  # fmt: skip
    drawing.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    losses, _ = trained([network(), drawing], stream(), epochs=1)
    assert np.isfinite(losses).all()
    assert cuda.captures == 1 and not OneLaunch.failed


def test_a_whole_training_with_teachers_and_validation(monkeypatch):
    x, y = images()
    x = x.astype("float32") / 255

    def fit():
        teacher = network(seed=9)
        teacher.build((None, SIDE, SIDE, 3))
        run = kgraft.GraftingFit(peers(2), teachers=[teacher])
        histories = run.fit(x, y, batch_size=8, epochs=3, validation_data=(x, y), verbose=0)
        return [own.history for own in histories]

    expected = fit()
    cuda = cuda_stand_in.install(monkeypatch)
    for ours, theirs in zip(fit(), expected, strict=True):
        for name in theirs:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-3, err_msg=name)
    assert cuda.captures >= 2 and not Graphs.failed and not OneLaunch.failed
