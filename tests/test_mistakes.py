"""What the public API says to a value of the wrong kind: one line, before anything has happened."""

import inspect

import keras
import numpy as np
import pytest

import kgraft
from kgraft import Graft, GraftCallback, GraftingFit, GraftPlan, UserError, grafting

NAN = float("nan")
WRONG = [None, "x", -1, NAN, [], {}, dict, np.zeros(2), 1.5, lambda *_: 3, keras.Model]
X, Y = np.random.default_rng(0).random((8, 6)).astype("float32"), np.arange(8) % 3


def network():
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(4), keras.layers.Dense(3)])


def compiled():
    model = network()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def fitted(**options):
    return GraftingFit([compiled()]).fit(**{"x": X, "y": Y, "epochs": 0, **options})


ONE, OTHER, TEACHER = compiled(), compiled(), network()
STEPS = {"epochs": 2, "steps_per_epoch": 3}
CALLS = {
    "GraftingFit": (GraftingFit, {"peers": [ONE, OTHER]}),
    "GraftingFit taught": (GraftingFit, {"peers": [ONE, OTHER], "teachers": [TEACHER]}),
    "fit": (fitted, {}, GraftingFit.fit),
    "GraftCallback": (GraftCallback, {"peers": [ONE], "data": (X, Y)}),
    "Distiller": (kgraft.Distiller, {"student": ONE, "teachers": [TEACHER]}, kgraft.Distiller),
    "SGD": (kgraft.SGD, {}),
    "cosine": (kgraft.cosine, {"lr": 0.1, **STEPS}),
    "cosine_per_step": (kgraft.cosine_per_step, {"lr": 0.1, **STEPS}),
    "step_decay": (kgraft.step_decay, {"lr": 0.1, "every": 2, "steps_per_epoch": 3}),
    "warmup": (kgraft.warmup, {"schedule": 0.1, **STEPS}),
    "spread": (kgraft.spread, {"lr": 0.1, "k": 0, "K": 2}),
    "GraftPlan.of": (GraftPlan.of, {"model": ONE}),
    "Noise.mix": (grafting.Noise().mix, {"models": [ONE, OTHER]}),
    "Graft.mix": (Graft().mix, {"models": [ONE, OTHER]}),
    "Mutual": (kgraft.Mutual, {}),
    **{
        name: (own, {})
        for name, own in vars(grafting).items()
        if inspect.isclass(own) and issubclass(own, grafting.Mixer) and own is not grafting.Mixer
    },
}
CALLS = {name: (*call, call[0])[:3] for name, call in CALLS.items()}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # graft=
@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_kind_is_refused_in_one_line_or_taken(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # checkpoint="x" is none
    call, right, described = CALLS[name]
    for argument in inspect.signature(described).parameters:
        if argument in ("self", "options", "x"):
            continue
        for value in WRONG:
            try:
                call(**{**right, argument: value})
            except UserError as error:
                assert "\n" not in str(error) and len(str(error)) < 300


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Graft(foo=1), r"Graft\(foo=...\): no such argument. Known: amplitude, "),
        (lambda: Graft(amplitud=0.1), r"no such argument. Did you mean 'amplitude'\?$"),
        (lambda: GraftPlan.of(3), "model is 3: expected a keras.Model"),
        (lambda: Graft().mix(network()), r"models is the model '\w+': expected a list"),
        (lambda: grafting.Noise().mix([network()], epoch=-1), "epoch=-1: expected 0 or more"),
        (lambda: kgraft.SGD("0.1"), "learning_rate='0.1': expected a number"),
        (lambda: kgraft.SGD(0.1, momentum=None), "momentum=None: expected a number"),
        (lambda: kgraft.SGD(0.1, exclude_from_l2="bias"), "'bias': expected a list of strings"),
        (lambda: kgraft.spread("x", 0, 2), "lr='x': expected a number"),
        (lambda: kgraft.cosine(0.1, epochs=1.5, steps_per_epoch=3), "1.5: expected a whole number"),
        (lambda: kgraft.warmup("x", **STEPS), "schedule='x': expected a number"),
        (lambda: kgraft.Distiller(3, [TEACHER]), "student is 3: expected a keras.Model"),
        (lambda: GraftingFit([ONE], temperature="a"), "temperature='a': expected a number"),
        (lambda: GraftingFit([ONE], distillation_weight=NAN), "weight=nan: expected 0 or more"),
        (lambda: GraftingFit([ONE], feature_losses=3), "feature_losses is 3: expected a list"),
        (lambda: GraftingFit([ONE, ONE]), r"peers holds '\w+' twice, at places 1 and 2"),
        (lambda: GraftCallback([ONE], train_peers="no"), "train_peers='no': expected true or"),
        (lambda: GraftCallback([ONE], backup_dir=3), "backup_dir is 3: expected a directory"),
        (lambda: fitted(verbose="x"), "verbose='x': expected 'auto', 0, 1 or 2"),
        (lambda: GraftingFit([ONE]).evaluate(X, Y, verbose="x"), "verbose='x'"),
        (lambda: GraftingFit([ONE]).predict(X, verbose="x"), "verbose='x'"),
        (lambda: fitted(y=[]), "y is an empty list: expected arrays"),
        (lambda: fitted(validation_batch_size="x"), "validation_batch_size='x'"),
    ],
)
def test_the_line_says_what_was_found_and_what_is_expected(call, message):
    with pytest.raises(UserError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({0: NAN}, r"class_weight\[0\]=nan: expected 0 or more"),
        ({0: None}, r"class_weight\[0\]=None: expected a number"),
        ({0: -1.0}, r"class_weight\[0\]=-1.0: expected 0 or more"),
        ({"a": 1.0}, "class_weight holds the class 'a': expected whole numbers, 0 or more"),
        ({-1: 1.0}, "the class -1: expected"),
        ({0.5: 1.0}, "the class 0.5: expected"),
        ({NAN: 1.0}, "the class nan: expected"),
        ({float("inf"): 1.0}, "the class inf: expected"),
        ([1.0], "class_weight is a list: expected a dict"),
    ],
)
def test_class_weights_are_finite_numbers_of_class_numbers(weights, message):
    for call in (
        lambda: fitted(class_weight=weights),
        lambda: GraftCallback([ONE], data=(X, Y), class_weight=weights),
    ):
        with pytest.raises(UserError, match=message):
            call()


def test_class_numbers_of_other_types_are_taken():
    fitted(class_weight={np.int64(0): np.float32(2), 1.0: 1})


@pytest.mark.parametrize(
    ("call", "right"),
    [
        (kgraft.models.build, {"name": "resnet8", "input_shape": (8, 8, 1), "classes": 3}),
        (kgraft.models.default_size, {"name": "resnet8"}),
        (kgraft.models.parameters, {"model": ONE}),
        (kgraft.models.filters, {"model": ONE}),
        (kgraft.models.macs, {"model": ONE}),
        (kgraft.models.flops, {"model": ONE}),
        (kgraft.data.load, {"name": "digits"}),
        (kgraft.data.prepare, {"name": "digits"}),
    ],
)
def test_models_and_data_are_asked_for_by_what_they_are(call, right):
    for argument in ("name", "model", "limit_train", "limit_test", "validation", "seed"):
        if argument not in inspect.signature(call).parameters:
            continue
        for value in WRONG:
            try:
                call(**{**right, argument: value})
            except UserError as error:
                assert "\n" not in str(error)
