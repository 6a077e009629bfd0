"""Peers that start from one set of weights, and layers that are frozen."""

import json
import logging

import keras
import numpy as np
import pytest

from kgraft import models
from kgraft.errors import UserError
from kgraft.runs.assembly import assemble
from kgraft.runs.evaluation import evaluate_run
from kgraft.runs.execution import execute
from kgraft.runs.pretrained import freeze, start_from
from kgraft.runs.unfinished import read_unfinished
from kgraft.runs.weights import export_weights
from tests.runs.test_resume import Breaks, Broken, assert_one


def network(classes=10, side=8, channels=1, name="resnet8"):
    """With weights and statistics that no fresh one has."""
    model = models.build(name, input_shape=(side, side, channels), classes=classes)
    rng = np.random.default_rng(1)
    noisy = [own + 0.01 * abs(rng.normal(size=own.shape)) for own in model.get_weights()]
    model.set_weights([own.astype("float32") for own in noisy])
    return model


def saved(model, folder, suffix=".keras"):
    file = folder / f"{model.name}-{model.output_shape[-1]}.keras"
    model.save(file)
    if suffix == ".keras":
        return str(file)
    export_weights(file, folder / f"exported{suffix}")
    return str(folder / f"exported{suffix}")


def assert_equal(model, other, but="nothing"):
    every = zip(model.weights, model.get_weights(), other.get_weights(), strict=True)
    for weight, own, its in every:
        if but not in weight.path:
            np.testing.assert_array_equal(own, its)


@pytest.mark.core
@pytest.mark.parametrize("suffix", [".keras", ".safetensors", ".pt", ".pth"])
def test_all_peers_start_from_a_files_weights_bit_for_bit(tiny, tmp_path, suffix):
    source = network()
    config = tiny(model__weights=saved(source, tmp_path, suffix), teachers__count=0)
    for peer in assemble(config).peers:
        assert_equal(peer, source)


@pytest.mark.core
@pytest.mark.parametrize("suffix", [".keras", ".safetensors"])
def test_a_head_for_other_classes_begins_anew_and_is_the_same_in_all(
    tiny, tmp_path, suffix, caplog
):
    source = network(classes=7, side=16)
    file = saved(source, tmp_path, suffix)
    caplog.set_level(logging.INFO, "kgraft")
    one, other = assemble(tiny(model__weights=file, teachers__count=0)).peers
    said = (
        f"model.weights {file}: for 7 classes, the data have 10: the head 'logits' begins anew, "
        "the same in all networks"
    )
    assert caplog.messages.count(said) == 1
    assert_equal(one, other)
    assert_equal(one, source, but="logits")
    assert one.get_layer("logits").kernel.shape[-1] == 10
    (fresh, _) = assemble(tiny(teachers__count=0)).peers
    np.testing.assert_array_equal(
        one.get_layer("logits").get_weights()[0], fresh.get_layer("logits").get_weights()[0]
    )


def test_a_run_gives_the_weights_of_its_best_peer(tiny, tmp_path):
    summary = execute(assemble(tiny(teachers__count=0)), tmp_path / "run")
    scores = [row["validation_accuracy"] for row in summary["peers"]]
    best = keras.models.load_model(
        tmp_path / f"run/peers/peer-{scores.index(max(scores)) + 1}.keras", compile=False
    )
    config = tiny(model__weights=str(tmp_path / "run"), teachers__count=0)
    assert_equal(assemble(config).peers[1], best)


def test_teachers_of_the_peers_architecture_start_so_too_and_others_do_not(tiny, tmp_path):
    source = network()
    config = tiny(model__weights=saved(source, tmp_path), model__trainable_from="logits")
    (teacher,) = assemble(config).untrained
    assert_equal(teacher, source)
    assert len(teacher.trainable_weights) == 2
    (other,) = assemble(tiny(model__weights=saved(source, tmp_path),
                             teachers__model="resnet8-leaky")).untrained  # fmt: skip
    assert not np.array_equal(other.get_weights()[0], source.get_weights()[0])
    assert len(other.trainable_weights) > 2


@pytest.mark.core
@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_frozen_layers_and_their_statistics_stay_as_they_are(tiny, tmp_path, engine):
    source = network()
    config = tiny(
        model__weights=saved(source, tmp_path),
        model__trainable_from="stage3_block1_conv1",
        teachers__count=0,
        run__engine=engine,
    )
    execute(assemble(config), tmp_path / "run")
    for k in (1, 2):
        peer = keras.models.load_model(tmp_path / f"run/peers/peer-{k}.keras", compile=False)
        names = [layer.name for layer in peer.layers]
        first = names.index("stage3_block1_conv1")
        assert not any(layer.trainable for layer in peer.layers[:first] if layer.weights)
        for layer in peer.layers:
            for own, its in zip(
                layer.get_weights(), source.get_layer(layer.name).get_weights(), strict=True
            ):
                assert np.array_equal(own, its) == (names.index(layer.name) < first)
    lines = (tmp_path / "run" / "grafts.jsonl").read_text().splitlines()
    groups = {json.loads(line)["group"] for line in lines}
    assert groups and all("stage3" in group for group in groups)
    assert len(evaluate_run(tmp_path / "run")) == 3


@pytest.mark.core
def test_a_run_that_is_broken_off_comes_to_the_same_end(tiny, tmp_path, caplog):
    file = saved(network(classes=7), tmp_path)
    config = tiny(
        run__epochs=3,
        model__weights=file,
        model__trainable_from="stage2_block1_conv1",
        teachers__count=0,
    )
    execute(assemble(config), tmp_path / "whole")
    out = tmp_path / "out"
    with pytest.raises(Broken):
        execute(assemble(config), out, Breaks("peers", 2))
    parts = json.loads((out / "environment.json").read_text())["parts"]
    assert list(parts) == [file] and len(parts[file]["sha256"]) == 64
    caplog.set_level(logging.WARNING, "kgraft")
    wanted = read_unfinished(out)
    assert not caplog.messages
    execute(assemble(wanted), out, resume=True)
    assert_one(tmp_path / "whole", out)


def test_weights_that_do_not_fit_are_refused_in_one_line(tiny, tmp_path):
    (tmp_path / "text.keras").write_text("x")
    (tmp_path / "text.h5").write_text("x")
    cases = {
        "none.keras": "model.weights none.keras: no such file.",
        "none.safetensors": "none.safetensors: no such file.",
        "imagenet": "model.weights imagenet: no such file. Expected .keras, .pt, ",
        str(tmp_path): f"{tmp_path} is no run's directory: it holds no run.toml.",
        str(tmp_path / "text.keras"): "is no Keras model that can be loaded",
        str(tmp_path / "text.h5"): "expected .keras, .pt, .pth, .safetensors, or a run.",
        saved(network(name="resnet20"), tmp_path): "'resnet20' has 97 weights, 'resnet8' 37: exp",
        saved(network(classes=3, channels=3), tmp_path): "stem/kernel is (3, 3, 3, 16), stem/kern",
        saved(network(classes=4, channels=3), tmp_path, ".pt"): "conv1.weight is (16, 3, 3, 3); re",
    }
    for file, message in cases.items():
        with pytest.raises(UserError) as refused:
            assemble(tiny(model__weights=file, teachers__count=0))
        assert message in str(refused.value) and "\n" not in str(refused.value)
    state = str(tmp_path / "exported.pt")
    with pytest.raises(UserError, match=r"exported\.pt: .* no PyTorch layout is known .*\.keras"):
        assemble(tiny(model__weights=state, model__name="MobileNetV3Small", data__size=32,
                      teachers__count=0))  # fmt: skip


@pytest.mark.parametrize("suffix", [".keras", ".pt"])
def test_weights_that_are_no_numbers_are_refused(tiny, tmp_path, suffix):
    sick = network()
    kernel = sick.get_layer("stage2_block1_conv1").kernel
    kernel.assign(np.full(kernel.shape, np.nan, np.float32))
    with pytest.raises(UserError, match=r"stage2_block1_conv1/kernel holds values that are no fin"):
        assemble(tiny(model__weights=saved(sick, tmp_path, suffix), teachers__count=0))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("stage3_blok1_conv1", "'resnet8' has no such layer. Did you mean 'stage3_block1_conv1'?"),
        ("x", "'resnet8' has no such layer. Known: logits, stage1_"),
    ],
)
def test_a_layer_that_is_not_there_is_refused_with_the_nearest(layer, message):
    with pytest.raises(UserError) as refused:
        freeze(network(), layer)
    assert message in str(refused.value)


def test_a_network_of_which_nothing_trains_is_refused():
    body = [keras.Input((8, 8, 1)), keras.layers.Conv2D(4, 3), keras.layers.Flatten()]
    model = keras.Sequential([*body, keras.layers.Dense(3), keras.layers.Identity(name="last")])
    with pytest.raises(UserError, match="nothing trains then"):
        freeze(model, "last")


def test_two_things_to_start_from_are_refused(tiny, tmp_path):
    config = tiny(model__weights=saved(network(), tmp_path), teachers__start="teacher")
    with pytest.raises(UserError, match="expected one or the other"):
        assemble(config)


def test_the_head_of_any_model_is_its_last_layer_with_weights(tmp_path):
    def build(classes, width=4):
        images = keras.Input((8, 8, 1))
        x = keras.layers.Conv2D(width, 3)(images)
        x = keras.layers.GlobalAveragePooling2D(keepdims=True)(x)
        x = keras.layers.Conv2D(classes, 1, name="top")(x)
        return keras.Model(images, keras.layers.Flatten()(x))

    source, same, other = build(5), build(5), build(6)
    file = tmp_path / "source.keras"
    source.save(file)
    start_from([same], str(file))
    assert_equal(same, source)
    fresh = other.get_layer("top").get_weights()[0]
    start_from([other, again := build(6)], str(file))
    np.testing.assert_array_equal(other.get_weights()[0], source.get_weights()[0])
    np.testing.assert_array_equal(other.get_layer("top").get_weights()[0], fresh)
    assert_equal(other, again)
    with pytest.raises(UserError, match="expected a network of the same architecture"):
        start_from([build(5, width=6)], str(file))
