"""Steps and graftings on an accelerator that is not there; run by `test_fake_device`."""

import keras
import numpy as np
import pytest
import torch

import kgraft
from kgraft.data import Augment, BatchStream
from kgraft.engines.precision import building_in
from kgraft.engines.stepper import Stepper
from kgraft.engines.torch.native_steps import NativeSteps
from kgraft.engines.torch.one_launch import _Gathered
from kgraft.engines.torch.trace import Trace, tensors_of
from kgraft.grafting import FilterGraft, FixedGraft, Papa
from kgraft.grafting import population as populations
from kgraft.training.distiller import distil
from kgraft.training.feeds import feed_of
from kgraft.training.mutual import MutualLearning, names_of
from tests.fake_device import fake_device, register

SIZE = 16


@pytest.fixture(autouse=True, scope="module")
def _known_to_torch():
    register()


def made(name="resnet8", seed=0, precision="float32", **changes):
    """A compiled model, on the CPU."""
    keras.utils.set_random_seed(seed)
    side = 32 if name == "vgg16" else SIZE
    with building_in(precision):
        model = kgraft.models.build(name, input_shape=(side, side, 3), classes=5)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = kgraft.SGD(0.1, momentum=0.9, l2=5e-4)
    model.compile(**{"optimizer": optimizer, "loss": loss, "metrics": ["accuracy"], **changes})
    return model


def trained(name, seed=0, **options):
    """A model with one step behind it, on the CPU."""
    model = made(name, seed, **options)
    Stepper(model).step((np.zeros((2, *model.input_shape[1:]), "float32"), np.zeros(2, "int32")))
    return model


def batch(device, model=None):
    shape = (SIZE, SIZE, 3) if model is None else model.input_shape[1:]
    return device.tensor(4, *shape), device.tensor(4, dtype=torch.int32)


def assert_moves_nothing(device, model, data):
    """A step of the model, its trace, and the trace played, without a word to the host."""
    steps, data = NativeSteps(model), keras.utils.unpack_x_y_sample_weight(data)
    logs = steps.train(data)
    assert {value.device for value in logs.values()} == {device.device}
    trace = Trace(steps.train, data)
    parts = tensors_of(data)
    assert trace.objection(parts) == ""
    uploads = device.uploads
    played = trace(parts)
    assert (device.uploads - uploads, device.downloads) == (0, 0)
    assert list(played) == list(logs)


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


def test_a_trace_that_moves_something_is_refused():
    with fake_device() as device:
        data = [device.tensor(3)]
        trace = Trace(lambda parts: {"sum": parts[0].to("cpu").to(device.device).sum()}, data)
        assert trace.objection(data) == "aten._to_copy.default has a value on cpu"
        trace = Trace(lambda parts: {"sum": parts[0].to(torch.bfloat16).sum()}, data)
        assert trace.objection(data) == ""


def test_real_tensors_do_not_mix_in():
    real = torch.zeros(3)
    with fake_device() as device, pytest.raises(Exception, match="fake"):
        device.tensor(3) + real


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "name", ["resnet8", "resnet8-leaky", "mobilenet_v2", "vgg16", "wrn-10-1", "resnet18"]
)
def test_a_step_of_every_family_moves_nothing_between_host_and_device(name, precision):
    model = trained(name, precision=precision)
    with fake_device() as device:
        device.move(model)
        assert_moves_nothing(device, model, batch(device, model))


LOSSES = [
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0),
    "mse",
    "huber",
    keras.losses.CategoricalFocalCrossentropy(from_logits=True),
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda own: getattr(own, "name", own))
def test_a_step_of_other_losses_does_not_either(loss):
    model = made(loss=loss, metrics=[])
    x, y = np.zeros((2, SIZE, SIZE, 3), "float32"), np.zeros(2, "int32")
    of_classes = isinstance(loss, keras.losses.SparseCategoricalCrossentropy)
    Stepper(model).step((x, y if of_classes else np.zeros((2, 5), "float32")))
    with fake_device() as device:
        device.move(model)
        x, y = batch(device)
        assert_moves_nothing(device, model, (x, y if of_classes else device.tensor(4, 5)))


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: kgraft.SGD(kgraft.cosine_per_step(0.1, epochs=2, steps_per_epoch=5)),
        lambda: kgraft.SGD(0.1, momentum=0.9, nesterov=True),
        lambda: keras.optimizers.Adam(1e-3),
        lambda: keras.optimizers.AdamW(1e-3),
    ],
    ids=["cosine per step", "nesterov", "Adam", "AdamW"],
)
def test_a_step_of_other_optimizers_does_not_either(optimizer):
    model = trained("resnet8", optimizer=optimizer())
    with fake_device() as device:
        device.move(model)
        assert_moves_nothing(device, model, batch(device))


def test_a_distillers_step_does_not_either():
    model = distil(made(), [made(seed=1), made(seed=2)])
    Stepper(model).step((np.zeros((2, SIZE, SIZE, 3), "float32"), np.zeros(2, "int32")))
    with fake_device() as device:
        device.move(model)
        assert_moves_nothing(device, model, batch(device))


def test_a_step_of_peers_that_teach_each_other_does_not_either():
    peers = [made(seed=seed) for seed in range(2)]
    model = MutualLearning(peers, kgraft.Mutual())
    names = names_of(peers)
    y = dict.fromkeys(names, np.zeros(2, "int32"))
    Stepper(model).step((np.zeros((2, SIZE, SIZE, 3), "float32"), y))
    with fake_device() as device:
        device.move(model)
        x, y = batch(device)
        assert_moves_nothing(device, model, (x, dict.fromkeys(names, y)))


def test_an_epoch_of_augmented_images_is_one_copy():
    images, labels = np.zeros((20, SIZE, SIZE, 3), np.uint8), np.zeros(20, np.int64)
    augment = Augment(pad=2, flip=True, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.3))
    with fake_device() as device:
        stream = BatchStream(images, labels, batch_size=8, seed=0, peer=0, augment=augment)
        for peer in range(2):
            before = device.uploads
            batches = list(stream.for_peer(peer).epoch(0))
            assert device.uploads - before == 1
            assert [tuple(x.shape) for x, _ in batches] == [(n, SIZE, SIZE, 3) for n in (8, 8, 4)]
            assert {part.device for parts in batches for part in parts} == {device.device}
        assert device.downloads == 0


@pytest.mark.parametrize("resident", ["images", "arrays"])
def test_a_batch_that_a_graph_gathers_is_gathered_by_the_device_alone(resident):
    images, labels = np.zeros((20, SIZE, SIZE, 3), np.uint8), np.zeros(20, np.int64)
    augment = Augment(pad=2, flip=True, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.3))
    with fake_device() as device:
        if resident == "images":
            feed = BatchStream(images, labels, batch_size=8, seed=0, peer=0, augment=augment)
        else:
            feed = feed_of(images.astype("float32"), labels, batch_size=8)
        first, second, _ = feed.lazy_epoch(0)
        reads = _Gathered(first)
        assert reads._trace.objection([reads._part()]) == ""
        uploads = device.uploads
        for batch in (first, second):
            reads.load(batch)
            shapes = [(own.device, tuple(own.shape)) for own in reads.tensors()]
            assert shapes == [(device.device, (8, SIZE, SIZE, 3)), (device.device, (8,))]
        assert (device.uploads - uploads, device.downloads) == (0, 0)


def test_an_epoch_of_arrays_is_one_copy():
    with fake_device() as device:
        feed = feed_of(np.zeros((20, 4), "float32"), np.zeros(20, "int32"), batch_size=8)
        before = device.uploads
        assert len(list(feed.epoch(1))) == 3
        assert device.uploads - before == 1


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
