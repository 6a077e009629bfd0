"""The plans of CNNs stand still: pinned as they were when every dense layer rode by rule."""

import hashlib
import json

import keras
import pytest

import kgraft
from kgraft.grafting import GraftPlan

PINNED = {
    ("resnet8", "default"): (7, "b77646954b03"),
    ("resnet8-leaky", "default"): (7, "b77646954b03"),
    ("resnet20", "default"): (19, "f45911af4971"),
    ("resnet20", "authors"): (19, "f45911af4971"),
    ("resnet32", "default"): (31, "25520835ef30"),
    ("resnet44", "default"): (43, "19d2ca6fda50"),
    ("resnet56", "default"): (55, "a3b53d41536d"),
    ("resnet110", "default"): (109, "e6d4fa9623a5"),
    ("mobilenet_v2", "default"): (57, "665540737286"),
    ("mobilenet_v2", "authors"): (53, "d4dc6538ec25"),
    ("vgg16", "default"): (13, "63964b19b7f6"),
    ("wrn-10-1", "default"): (9, "e3a64cc594c9"),
    ("wrn-16-2", "default"): (16, "427c8f46f192"),
    ("wrn-28-10", "default"): (28, "6d9b256fb006"),
    ("resnet18", "default"): (20, "ec57a7bc790d"),
    ("resnet18", "authors"): (17, "26f49c8c4f46"),
    ("resnet34", "default"): (36, "30e6e000af81"),
    ("resnet50", "default"): (53, "992dbe391b79"),
    ("resnet50", "authors"): (49, "7a5ff36cd6b5"),
    ("mobilenet_v2-224", "default"): (52, "c4981df4fa18"),
}
APPLICATIONS = {
    "ResNet50": (53, "24234cd39f0c"),
    "ResNet50V2": (53, "4df6289ead8a"),
    "EfficientNetV2B0": (91, "8b7748e1e91c"),
    "MobileNetV3Small": (54, "0ae8741cacce"),
    "ConvNeXtTiny": (22, "044083402551"),
    "DenseNet121": (120, "1bd535015be8"),
    "InceptionV3": (94, "d8f0fcb4d165"),
    "Xception": (74, "10bc6d57c554"),
}


def fingerprint(plan):
    groups = [[list(group.members), list(group.filter_axes)] for group in plan.groups]
    return len(groups), hashlib.sha256(json.dumps(groups).encode()).hexdigest()[:12]


@pytest.mark.parametrize(("name", "grouping"), PINNED)
def test_the_plan_of_an_architecture_is_what_it_was(name, grouping):
    model = kgraft.models.build(name, input_shape=(8, 8, 3), classes=10)
    assert fingerprint(GraftPlan.of(model, grouping)) == PINNED[name, grouping]


def test_every_listed_architecture_is_pinned():
    assert set(kgraft.models.names()) <= {name for name, _ in PINNED}


@pytest.mark.slow
@pytest.mark.parametrize("name", APPLICATIONS)
def test_the_plan_of_a_keras_application_is_what_it_was(name):
    build = getattr(keras.applications, name)
    model = build(weights=None, input_shape=(96, 96, 3), classes=10)
    assert fingerprint(GraftPlan.of(model)) == APPLICATIONS[name]


def test_the_plan_of_a_nested_application_is_what_it_was():
    backbone = keras.applications.MobileNetV2(
        (96, 96, 3), alpha=0.35, include_top=False, weights=None, pooling="avg"
    )
    images = keras.Input((96, 96, 3))
    model = keras.Model(images, keras.layers.Dense(5)(backbone(images)))
    assert fingerprint(GraftPlan.of(model)) == (52, "c4981df4fa18")
