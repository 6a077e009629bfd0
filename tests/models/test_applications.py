"""Architectures that are not kgraft's: Keras' applications, those of packages, one's own."""

import re
import sys
from importlib.metadata import EntryPoint, EntryPoints

import keras
import numpy as np
import pytest

import kgraft
from kgraft import models
from kgraft.errors import UserError
from kgraft.models import applications, registry

CODE = """
import keras
from keras import layers


def build(input_shape, classes, width=4):
    body = [layers.Conv2D(width, 3), layers.GlobalAveragePooling2D(), layers.Dense(classes)]
    return keras.Sequential([keras.Input(input_shape), *body])


class Own(keras.Model):
    def __init__(self, classes):
        super().__init__()
        self.last = layers.Dense(classes)

    def call(self, x):
        return self.last(keras.ops.mean(x, (1, 2)))


def subclassed(input_shape, classes):
    return Own(classes)


def unbuilt(input_shape, classes):
    return keras.Sequential([layers.Flatten(), layers.Dense(classes)])


def more_classes(input_shape, classes):
    return build(input_shape, classes + 1)


def larger(input_shape, classes):
    return build((9, 9, 1), classes)


def two(input_shape, classes):
    images = keras.Input(input_shape)
    flat = layers.Flatten()(images)
    return keras.Model(images, [layers.Dense(classes)(flat), layers.Dense(classes)(flat)])


def maps(input_shape, classes):
    images = keras.Input(input_shape)
    return keras.Model(images, layers.Conv2D(classes, 1)(images))


def name_of_one(input_shape, classes):
    return "resnet8"
"""
SHAPE = {"input_shape": (8, 8, 1), "classes": 3}


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine_of_models.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("mine_of_models", None)


@pytest.mark.core
def test_a_function_of_ones_own_builds_a_model(mine):
    model = models.build("mine_of_models:build", **SHAPE, width=7)
    assert model.output_shape == (None, 3) and model.layers[0].filters == 7
    assert [row.name for row in models.describe((8, 8, 1), 3, ["mine_of_models:build"])] == [
        "mine_of_models:build"
    ]
    assert models.build("resnet8", **SHAPE).output_shape == (None, 3)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "build",
            {"widht": 1},
            "kgraft.models.build: unknown key 'widht': model 'mine_of_models:b",
        ),
        ("subclassed", {}, "has no graph, one input and one output: expected a functional model"),
        ("unbuilt", {}, "or a Sequential one that begins with keras.Input."),
        ("more_classes", {}, "tells 4 classes apart, the data have 3."),
        ("larger", {}, "takes images of (9, 9, 1), the data have (8, 8, 1)."),
        ("two", {}, "has not one input and one output: expected a classifier."),
        ("maps", {}, "gives (None, 8, 8, 3): expected one number a class, (None, 3)."),
        ("name_of_one", {}, "is 'resnet8': expected a keras.Model."),
    ],
)
def test_what_is_no_classifier_of_these_images_is_refused(mine, name, options, message):
    with pytest.raises(UserError, match=re.escape(message)) as refused:
        models.build(f"mine_of_models:{name}", **SHAPE, **options)
    assert "\n" not in str(refused.value)


def test_a_package_can_add_a_model(mine, monkeypatch):
    found = [EntryPoint("tiny", "mine_of_models:build", "kgraft.models")]
    monkeypatch.setattr(
        registry, "entry_points", lambda **wanted: EntryPoints(found).select(**wanted)
    )
    assert models.build("tiny", **SHAPE, width=7).layers[0].filters == 7
    assert registry.part("tiny").reference == "mine_of_models:build"
    assert models.packaged() == ("tiny",)
    with pytest.raises(UserError, match=r"model 'tinu' is unknown\. Did you mean 'tiny'\?"):
        models.build("tinu", **SHAPE)
    with pytest.raises(UserError, match="model 'tiny' has no usual size"):
        models.default_size("tiny")


def test_a_package_whose_model_is_not_there_is_named(mine, monkeypatch):
    broken = EntryPoint("broken", "mine_of_models:gone", "kgraft.models")
    monkeypatch.setattr(
        registry, "entry_points", lambda **wanted: EntryPoints([broken]).select(**wanted)
    )
    message = r"model 'broken', which a package brings: 'mine_of_models:gone' cannot be loaded: "
    with pytest.raises(UserError, match=message):
        models.build("broken", **SHAPE)


def test_the_names_are_those_of_keras():
    names = applications.names()
    assert {"MobileNetV3Small", "ResNet50V2", "EfficientNetV2B0", "ConvNeXtTiny"} < set(names)
    assert "imagenet_utils" not in names and "resnet" not in names


@pytest.mark.core
def test_an_application_gives_logits_and_normalises_nothing():
    keras.utils.set_random_seed(3)
    model = models.build("MobileNetV3Small", input_shape=(32, 32, 1), classes=5, alpha=0.5)
    assert model.output_shape == (None, 5)
    kinds = {type(layer) for layer in model.layers}
    assert not kinds & {keras.layers.Rescaling, keras.layers.Normalization, keras.layers.Softmax}
    keras.utils.set_random_seed(3)
    again = models.build("MobileNetV3Small", input_shape=(32, 32, 1), classes=5, alpha=0.5)
    for own, other in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(own, other)
    plan = kgraft.GraftPlan.of(model)
    convolutions = [layer for layer in model.layers if "Conv2D" in type(layer).__name__]
    assert len(plan.groups) > 30 and len(plan.blended) == len(model.weights)
    assert len(plan.groups) <= len(convolutions)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ResNet50V2", "DenseNet121", "EfficientNetV2B0", "ConvNeXtTiny"])
def test_plans_of_applications_hold_every_weight_that_trains(name):
    model = models.build(name, input_shape=(32, 32, 3), classes=5)
    assert model.layers[-1].activation is keras.activations.linear
    assert len(kgraft.GraftPlan.of(model).blended) == len(model.weights)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "MobileNetV3Small",
            {"weights": "imagenet"},
            "weights: kgraft sets it: fresh weights, a c",
        ),
        ("MobileNetV3Small", {"include_preprocessing": True}, "normalises images itself"),
        ("MobileNetV3Small", {"alfa": 1.0}, "has no such argument. Did you mean 'alpha'?"),
        ("MobileNetV3Small", {}, "failed: ValueError: Input size must be at least 32x32"),
        ("MobileNetV3Smal", {}, "is unknown. Did you mean 'MobileNetV3Small'?"),
        ("keras.applications:VGG16", {}, "Keras' own are asked for by name alone: 'VGG16'."),
        (
            "resnet8",
            {"width": 3},
            "model 'resnet8' has no width. Known: dropout, head_init, last_stride.",
        ),
        ("mypkg.nets.build", {}, "module:function of your own, e.g. mypkg.nets:build."),
    ],
)
def test_each_mistake_is_one_line(name, options, message):
    with pytest.raises(UserError, match=re.escape(message)) as refused:
        models.build(name, **SHAPE, **options)
    assert "\n" not in str(refused.value)
