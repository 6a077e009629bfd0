"""grouping="authors" against the loops of the authors' two scripts, over their own names."""

import keras
import numpy as np
import pytest

import kgraft
from kgraft.grafting import Graft, GraftPlan
from tests.reference import grafting as reference

NORM = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}


def norm(theirs, ours):
    return [(f"{theirs}.{part}", f"{ours}/{name}") for part, name in NORM.items()]


def wrn_names(blocks, width):
    """Their state dict's keys in its order, with our paths: shortcuts last in their block."""
    pairs, channels = [("conv.weight", "stem/kernel")], 16
    for stage, filters in enumerate((16 * width, 32 * width, 64 * width), start=1):
        for block in range(1, blocks + 1):
            theirs, ours = f"stage{stage}.block{block}", f"stage{stage}_block{block}"
            for n in (1, 2):
                pairs += norm(f"{theirs}.bn{n}", f"{ours}_bn{n}")
                pairs.append((f"{theirs}.conv{n}.weight", f"{ours}_conv{n}/kernel"))
            if channels != filters:
                pairs.append((f"{theirs}.shortcut.conv.weight", f"{ours}_shortcut/kernel"))
            channels = filters
    pairs += norm("bn", "last_bn")
    return [*pairs, ("fc.weight", "logits/kernel"), ("fc.bias", "logits/bias")]


def mobilenet_names():
    pairs, channels, count = [("conv1.weight", "stem/kernel"), *norm("bn1", "stem_bn")], 32, 0
    plan = ((16, 1, 1), (24, 2, 1), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))
    for stage, (filters, blocks, stride) in enumerate(plan, start=1):
        for block in range(1, blocks + 1):
            theirs, ours = f"layers.{count}", f"stage{stage}_block{block}"
            for n, part in enumerate(("expand", "depthwise", "project"), start=1):
                pairs.append((f"{theirs}.conv{n}.weight", f"{ours}_{part}/kernel"))
                pairs += norm(f"{theirs}.bn{n}", f"{ours}_{part}_bn")
            if channels != filters and (stride == 1 or block > 1):
                pairs.append((f"{theirs}.shortcut.0.weight", f"{ours}_shortcut/kernel"))
                pairs += norm(f"{theirs}.shortcut.1", f"{ours}_shortcut_bn")
            channels, count = filters, count + 1
    pairs += [("conv2.weight", "last/kernel"), *norm("bn2", "last_bn")]
    return [*pairs, ("linear.weight", "logits/kernel"), ("linear.bias", "logits/bias")]


def vgg_names():
    modules, pairs = [], []
    for stage, count in enumerate((2, 2, 3, 3, 3), start=1):
        for n in range(1, count + 1):
            theirs = f"features.{len(modules)}"
            modules += [("convolution", theirs), ("norm", f"{theirs}n"), ("other", f"{theirs}r")]
            pairs.append((f"{theirs}.weight", f"stage{stage}_conv{n}/kernel"))
            pairs += norm(f"{theirs}n", f"stage{stage}_bn{n}")
    return modules, dict(pairs)


def grouped(plan):
    return {
        plan.weights[group.kernel][0]: {plan.weights[i][0] for i in group.members}
        for group in plan.groups
    }


def plan_of(name):
    model = kgraft.models.build(name, input_shape=(32, 32, 3), classes=10)
    return GraftPlan.of(model, "authors")


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("wrn-10-1", wrn_names(1, 1)),
        ("wrn-16-2", wrn_names(2, 2)),
        ("mobilenet_v2", mobilenet_names()),
    ],
)
def test_groups_are_those_of_their_state_dict_loop(name, names):
    ours = dict(names)
    theirs = reference.authors_groups(ours)
    assert grouped(plan_of(name)) == {
        ours[owner]: {ours[key] for key in keys} for owner, keys in theirs.items()
    }


def test_vgg16_is_blended_as_in_their_loop_over_modules():
    modules, ours = vgg_names()
    theirs = reference.authors_vgg_groups(modules)
    assert grouped(plan_of("vgg16")) == {
        ours[owner]: {ours[key] for key in keys} for owner, keys in theirs.items()
    }


@pytest.mark.core
def test_what_their_vgg_script_does_not_blend_stays_to_the_last_bit():
    def vgg(seed):
        keras.utils.set_random_seed(seed)
        layers = keras.layers
        return keras.Sequential(
            [
                keras.Input((8, 8, 2)),
                layers.Conv2D(4, 3, name="a", bias_initializer="normal"),
                layers.BatchNormalization(),
                layers.ReLU(),
                layers.MaxPooling2D(),
                layers.Flatten(),
                layers.Dense(3, name="classifier"),
            ]
        )

    models = [vgg(k) for k in range(2)]
    before = models[0].get_weights()
    Graft.authors().mix(models)
    pairs = zip(models[0].weights, before, models[0].get_weights(), strict=True)
    kept = {"/".join(w.path.split("/")[-2:]) for w, a, b in pairs if np.array_equal(a, b)}
    assert {"a/bias", "classifier/kernel", "classifier/bias"} <= kept
    assert "a/kernel" not in kept
