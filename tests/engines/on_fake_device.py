"""Steps and graftings on an accelerator that is not there; run by `test_fake_device`."""

import keras
import numpy as np
import pytest
import torch

import kgraft
from kgraft.engines.torch.native_steps import NativeSteps
from kgraft.engines.torch.trace import Trace
from kgraft.grafting import FilterGraft, FixedGraft, Papa
from kgraft.grafting import population as populations
from tests.fake_device import fake_device, register

SIZE = 16


@pytest.fixture(autouse=True, scope="module")
def _known_to_torch():
    register()


def trained(name, seed=0):
    """A model with one step behind it, on the CPU."""
    keras.utils.set_random_seed(seed)
    model = kgraft.models.build(name, input_shape=(SIZE, SIZE, 3), classes=5)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(kgraft.SGD(0.1, momentum=0.9, l2=5e-4), loss, metrics=["accuracy"])
    model.train_on_batch(np.zeros((2, SIZE, SIZE, 3), "float32"), np.zeros(2, "int32"))
    return model


def batch(device):
    return device.tensor(4, SIZE, SIZE, 3), device.tensor(4, dtype=torch.int32)


def moves(trace):
    """The lines of a trace that name a device."""
    nodes = [node for node in trace._program.graph.nodes if node.kwargs.get("device") is not None]
    return [node.format_node() for node in nodes if "_to_copy" in str(node.target)]


@pytest.fixture
def models():
    return [trained("resnet8", seed) for seed in range(3)]


def test_numbers_are_not_told():
    with fake_device() as device, pytest.raises(Exception, match="_local_scalar_dense"):
        device.tensor().item()


def test_tensors_of_the_host_do_not_mix_in():
    with fake_device() as device, pytest.raises(Exception, match="device"):
        device.tensor(3) + torch.zeros(3, device="cpu")


def test_moves_are_counted():
    with fake_device() as device:
        there = keras.ops.convert_to_tensor(np.ones(3))
        assert there.device == device.device
        assert (keras.ops.convert_to_numpy(there) == 0).all()
    assert (device.uploads, device.downloads) == (1, 1)


def test_a_trace_that_moves_something_would_be_seen():
    with fake_device() as device:
        data = [device.tensor(3)]
        trace = Trace(lambda parts: {"sum": parts[0].to("cpu").to(device.device).sum()}, data)
        assert len(moves(trace)) == 2


def test_real_tensors_do_not_mix_in():
    real = torch.zeros(3)
    with fake_device() as device, pytest.raises(Exception, match="fake"):
        device.tensor(3) + real


@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v2"])
def test_a_step_is_traced_and_moves_nothing_between_host_and_device(name):
    model = trained(name)
    with fake_device() as device:
        device.move(model)
        steps, data = NativeSteps(model), batch(device)
        logs = steps.train(data)
        assert {value.device for value in logs.values()} == {device.device}
        trace = Trace(steps.train, data)
        assert moves(trace) == []
        uploads = device.uploads
        played = trace(list(data))
        assert device.uploads == uploads
        assert device.downloads == 0
    assert list(played) == list(logs)


def test_evaluations_and_predictions_ask_nothing(models):
    with fake_device() as device:
        device.move(models[0])
        steps, (x, y) = NativeSteps(models[0]), batch(device)
        assert steps.test((x, y))["loss"].device == device.device
        assert steps.predict(x).shape == (4, 5)
        assert device.downloads == 0


@pytest.mark.parametrize("graft", [kgraft.Graft(), kgraft.Graft.authors()], ids=["ours", "theirs"])
def test_a_grafting_asks_twice(graft, models):
    with fake_device() as device:
        for model in models:
            device.move(model)
        graft.mix(models)
        uploads, downloads = device.uploads, device.downloads
        record = graft.mix(models)
        assert device.downloads - downloads == 2
        assert device.uploads - uploads == 2
        assert {weight.value.device for weight in models[0].weights} == {device.device}
    assert (record.coefficients == 0.5).all()


def test_models_that_have_moved_are_found_where_they_are(models):
    kgraft.Graft().mix(models)
    with fake_device() as device:
        for model in models:
            device.move(model)
        assert type(populations.population(models)) is populations._OnDevice


@pytest.mark.parametrize("criterion", ["l1", "filter-entropy", lambda kernel: kernel.max()])
def test_criteria_that_count_on_the_host_fetch_a_peer_at_once(criterion, models):
    with fake_device() as device:
        for model in models:
            device.move(model)
        kgraft.Graft(criterion=criterion).mix(models)
        assert device.downloads == 1 + len(models)


@pytest.mark.parametrize("mixer", [FixedGraft(), Papa(), FilterGraft()], ids=lambda m: m.name)
def test_other_mixers_stay_on_the_device(mixer, models):
    with fake_device() as device:
        for model in models:
            device.move(model)
        assert type(populations.population(models)) is populations._OnDevice
        mixer.mix(models)
        assert {weight.value.device for weight in models[0].weights} == {device.device}
