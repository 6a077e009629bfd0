"""CUDA graphs without CUDA: what a graph addresses lives, and a failed one costs nothing."""

import gc
import re

import keras
import numpy as np
import pytest

import kgraft
from kgraft.engines.engine import Engine
from tests.engines.test_compiled import batches

if keras.config.backend() != "torch":
    pytest.skip("CUDA graphs are torch's", allow_module_level=True)

import torch

from kgraft.engines.torch import traced_steps
from kgraft.engines.torch.closeness import distance, tolerance
from kgraft.engines.torch.cuda_graph import CudaGraph, Graphs
from kgraft.engines.torch.trace import Trace
from kgraft.training.teaching import Teaching
from tests.engines import cuda_stand_in
from tests.engines.test_traced_steps import compiled, network, state


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(traced_steps, "_AFTER", 2)
    monkeypatch.setattr(traced_steps, "_SHORT", 60.0)


STEPS = batches((8, 8, 3), 5, count=8, size=8)


def small(seed=0, rate=0.05):
    """Small: the stand-in does for every operation what a device would not have to."""
    keras.utils.set_random_seed(seed)
    inputs = x = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, use_bias=False)(x)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    outputs = keras.layers.Dense(5)(keras.layers.GlobalAveragePooling2D()(x))
    return compiled(keras.Model(inputs, outputs, name="small"), rate=rate)


def taken(models, steps=STEPS, *, together=False):
    """Each model's steps and answers, after all of the batches; each by itself, or all at once."""
    engine = Engine(models)
    for stepper in engine.steppers:
        stepper.build(steps[0])
    engine.begin_epoch()

    def step(batch):
        if together:
            return engine.step([batch] * len(models))
        return [stepper.step(batch) for stepper in engine.steppers]

    logs = [[float(own["loss"]) for own in step(batch)] for batch in steps]
    return [stepper.steps() for stepper in engine.steppers], logs


def plays(steps):
    found = [play for own in steps for play in own._plays.values()]
    return [play.graph or play.trace for play in found]


def test_what_a_graph_addresses_lives_as_long_as_it(monkeypatch):
    cuda = cuda_stand_in.install(monkeypatch)
    model, plain = network(), network()
    steps, logs = taken([model])
    (graph,) = plays(steps)
    assert isinstance(graph, CudaGraph)
    assert len(graph._graph.steps) > 100
    monkeypatch.undo()
    _, expected = taken([plain])
    np.testing.assert_allclose(logs, expected, rtol=1e-6)
    for own, other in zip(state(model), state(plain), strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-5, atol=1e-6)
    assert cuda.modes == ["thread_local"]


def test_the_stand_in_notices_what_was_freed():
    x, constant = torch.ones(2), [torch.full((2,), 3.0)]
    graph = cuda_stand_in.Graph()
    with cuda_stand_in.Recorder(graph.steps):
        y = x * constant[0] + 1
    x.fill_(2.0)
    graph.replay()
    assert y.tolist() == [7.0, 7.0]
    constant.clear()
    with pytest.raises(cuda_stand_in.Freed):
        graph.replay()


def test_the_stand_in_notices_a_graph_without_its_trace(monkeypatch):
    """What was wrong before: a graph that keeps its inputs and answers, but no constants."""
    cuda_stand_in.install(monkeypatch)
    steps, _ = taken([network()], STEPS[:4])
    (graph,) = plays(steps)
    steps[0]._plays.clear()
    del graph._trace
    with pytest.raises(cuda_stand_in.Freed):
        graph([torch.as_tensor(part) for part in STEPS[0]])


@pytest.mark.parametrize("place", cuda_stand_in.Cuda.PLACES)
def test_a_graph_that_fails_costs_nothing_and_is_not_tried_again(place, monkeypatch, caplog):
    caplog.set_level("INFO", "kgraft")
    cuda = cuda_stand_in.install(monkeypatch, fails_at=place)
    random = cuda.random.clone()
    models = [small(), small()]
    steps, logs = taken(models)
    assert all(isinstance(play, Trace) for play in plays(steps)) and len(plays(steps)) == 2
    assert cuda.stream is cuda.main
    assert torch.equal(cuda.random, random)
    assert cuda.captures <= 1
    assert caplog.text.count(f"no CUDA graph of the steps: CUDA error at {place}\n") == 1
    monkeypatch.undo()
    _, expected = taken([small(), small()])
    assert logs == expected


def test_peers_share_memory_and_engines_do_not(monkeypatch):
    cuda = cuda_stand_in.install(monkeypatch)
    for _ in range(2):
        steps, _ = taken([small(), small()], STEPS[:4])
        assert all(isinstance(play, CudaGraph) for play in plays(steps))
        del steps
        gc.collect()
    one, two, three, four = cuda.pools
    assert one is two and three is four and one is not three


@pytest.mark.parametrize(("added", "off"), [(float("nan"), "inf"), (1e-3, r"\d")])
def test_a_graph_that_comes_to_other_numbers_is_not_used(added, off, monkeypatch):
    cuda_stand_in.install(monkeypatch)
    real = cuda_stand_in.Graph.replay

    def wrong(self):
        real(self)
        for operation, given, _ in self.steps:
            if "sgd" in str(operation):
                moved = given[0][0][0].tensor()
                with torch.no_grad():
                    moved.add_(added)

    monkeypatch.setattr(cuda_stand_in.Graph, "replay", wrong)
    model = small()
    steps, logs = taken([model])
    assert all(isinstance(play, Trace) for play in plays(steps))
    assert re.search(f"the graph's step is off by {off}", Graphs.failed)
    assert np.isfinite(logs).all() and all(np.isfinite(own).all() for own in state(model))


def test_what_no_graph_can_take_is_refused_before_it_is_captured(monkeypatch, caplog):
    caplog.set_level("INFO", "kgraft")
    cuda = cuda_stand_in.install(monkeypatch)

    def step(batch):
        return {"y": batch[0][batch[0] > 0].sum()}

    x = torch.tensor([1.0, -1.0, 2.0])
    trace = Trace(step, (x,))
    assert Graphs().captured(trace, [x], [], [], [], 0.0) is None
    assert "aten.index.Tensor depends on what a tensor holds" in caplog.text
    assert cuda.captures == 0 and not Graphs.failed

    elsewhere = torch.ones(3, device="meta")
    trace = Trace(lambda batch: {"y": batch[0] + 1, "z": elsewhere * 2}, (x,))
    assert "has a value on meta" in trace.objection([x])


def test_how_far_apart_two_steps_are():
    before, end = [torch.ones(4), torch.tensor(7)], [torch.full((4,), 1.5), torch.tensor(8)]
    near = [torch.full((4,), 1.5001), torch.tensor(8)]
    assert distance(end, end, before) == 0.0
    assert distance(near, end, before) == pytest.approx(2e-4, rel=1e-2)
    assert distance([near[0], torch.tensor(9)], end, before) == 1.0  # a count is exact
    lost = torch.tensor([float("nan"), 1, 1, 1])
    for bad in ([lost, end[1]], [end[0] / 0, end[1]]):
        assert not distance(bad, end, before) <= tolerance(1e3, "bfloat16")
        assert not distance(end, bad, before) <= tolerance(1e3, "bfloat16")
    frozen = [torch.full((3,), 0.1)]
    assert distance([frozen[0] + 1e-9], frozen, frozen) == 0.0
    assert distance([frozen[0] + 1e-3], frozen, frozen) > 1.0


def test_what_is_let_pass_follows_from_the_noise_of_the_same_step():
    assert tolerance(0.0, "float32") < tolerance(0.0, "tf32") < tolerance(0.0, "bfloat16")
    assert tolerance(0.02, "float32") == pytest.approx(0.2)
    for noise in (float("nan"), float("inf")):  # of plays that come to no numbers
        assert not float("inf") <= tolerance(noise, "bfloat16")
        assert not 0.0 <= tolerance(noise, "bfloat16")


def test_validations_and_predictions_are_graphs_too(monkeypatch):
    model, plain = small(), small()
    expected = Engine([plain]).steppers[0]
    expected.build(STEPS[0])
    numbers, outputs = expected.evaluate(STEPS), expected.predict(STEPS)
    cuda = cuda_stand_in.install(monkeypatch)
    stepper = Engine([model]).steppers[0]
    stepper.build(STEPS[0])
    for _ in range(2):  # metrics begin anew
        assert stepper.evaluate(STEPS) == pytest.approx(numbers, rel=1e-6)
        np.testing.assert_allclose(stepper.predict(STEPS), outputs, rtol=1e-5, atol=1e-6)
    assert cuda.captures == 2
    assert all(isinstance(play, CudaGraph) for play in plays([stepper.steps()]))


def test_teachers_are_a_graph(monkeypatch):
    teacher = small()
    teacher.build((None, 8, 8, 3))
    teaching, plain = (Teaching([teacher, teacher], 2.0, name) for name in ("auto", "eager"))
    cuda = cuda_stand_in.install(monkeypatch)
    for batch in STEPS:
        batch = tuple(torch.as_tensor(part) for part in batch)
        ours, theirs = (own.of(batch)[1].probabilities for own in (teaching, plain))
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert cuda.captures == 1


def test_a_whole_fit_of_graphs_is_that_of_steps(monkeypatch):
    x = np.concatenate([x for x, _ in STEPS])
    y = np.concatenate([y for _, y in STEPS])

    def fit():
        run = kgraft.GraftingFit([small(), small()])
        histories = run.fit(x, y, batch_size=16, epochs=2, verbose=0)  # the last batch is whole
        return [own.history["loss"] for own in histories]

    expected = fit()
    cuda = cuda_stand_in.install(monkeypatch)
    for _ in range(2):  # a second run in the same process
        np.testing.assert_allclose(fit(), expected, rtol=1e-4)
    assert cuda.captures == 2 and not Graphs.failed  # of both peers together
