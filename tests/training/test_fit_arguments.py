"""GraftingFit takes what Model.fit takes, and refuses mistakes in one line."""

import inspect

import keras
import numpy as np
import pytest

import kgraft
from kgraft.errors import UserError
from kgraft.grafting import Graft, Independent, Mixer
from kgraft.training.fit import GraftingFit
from tests.training.test_fit import Numbers, digits, network

WEIGHTS = np.linspace(0.5, 1.5, 60).astype("float32")


class Batches(keras.utils.PyDataset):
    """Ten examples a batch."""

    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x) // 10

    def __getitem__(self, index):
        own = slice(10 * index, 10 * index + 10)
        return self.x[own], self.y[own]


class Told(keras.callbacks.Callback):
    """Everything that callbacks are told, in order."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def on_epoch_begin(self, epoch, logs=None):
        self.calls.append(("epoch", epoch))

    def on_epoch_end(self, epoch, logs=None):
        self.calls.append(("epoch_end", epoch, sorted(logs)))

    def on_test_begin(self, logs=None):
        self.calls.append(("test",))

    def on_test_batch_begin(self, batch, logs=None):
        self.calls.append(("test_batch", batch))

    def on_test_batch_end(self, batch, logs=None):
        self.calls.append(("test_batch_end", batch, sorted(logs)))

    def on_test_end(self, logs=None):
        self.calls.append(("test_end", sorted(logs)))


def trained_by_both(x, y=None, **given):
    """Weights and history of one network, trained by GraftingFit and by Model.fit."""
    ours, theirs = network(), network()
    theirs.set_weights(ours.get_weights())
    options = {"verbose": 0, "shuffle": False} | given
    run = GraftingFit([ours])
    own = run.fit(x, y, **options)[0].history
    expected = theirs.fit(x, y, **options).history
    return ours, own, theirs, expected


# every parameter of Model.fit -> arguments with which both train the same network the same way
LIKE_KERAS = {
    "x": {},
    "y": {},
    "batch_size": {"batch_size": 7},
    "epochs": {"epochs": 3},
    "verbose": {"verbose": 2},
    "callbacks": {"callbacks": Told()},
    "validation_split": {"validation_split": 0.25},
    "validation_data": {"validation_data": list(digits(20, 1))},
    "shuffle": {"shuffle": False},
    "class_weight": {"class_weight": {0: 0.5, 2: 2.0}},
    "sample_weight": {"sample_weight": WEIGHTS},
    "initial_epoch": {"initial_epoch": 1, "epochs": 3},
    "steps_per_epoch": {"steps_per_epoch": 3},
    "validation_steps": {
        "validation_data": digits(20, 1),
        "validation_steps": 2,
        "validation_batch_size": 5,
    },
    "validation_batch_size": {"validation_data": digits(20, 1), "validation_batch_size": 20},
    "validation_freq": {"validation_data": digits(20, 1), "validation_freq": [1, 3], "epochs": 4},
}


def test_the_parameters_of_model_fit_come_in_its_order():
    theirs = list(inspect.signature(keras.Model.fit).parameters)
    ours = inspect.signature(GraftingFit.fit).parameters
    assert [
        name for name in ours if ours[name].kind is not inspect.Parameter.KEYWORD_ONLY
    ] == theirs
    assert set(LIKE_KERAS) == set(theirs) - {"self"}
    for method in ("evaluate", "predict"):
        known = inspect.signature(getattr(GraftingFit, method)).parameters
        wanted = inspect.signature(getattr(keras.Model, method)).parameters
        assert list(known) == [name for name in wanted if name != "kwargs"]


@pytest.mark.parametrize("name", LIKE_KERAS)
def test_each_parameter_of_model_fit_does_the_same(name):
    ours, own, theirs, expected = trained_by_both(*digits(), **LIKE_KERAS[name])
    assert set(own) == {*expected, "alpha"}
    for key, values in expected.items():
        np.testing.assert_allclose(own[key], values, rtol=1e-4, atol=1e-6, err_msg=key)
    for a, b in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")  # says Keras, and goes on
@pytest.mark.parametrize("steps", [2, 3, 7])
@pytest.mark.parametrize("data", ["arrays", "batches"])
def test_steps_that_do_not_divide_the_data_end_where_the_data_end(data, steps):
    x, y = digits(50)
    given = {"x": Batches(x, y)} if data == "batches" else {"x": x, "y": y, "batch_size": 10}
    ours, own, theirs, expected = trained_by_both(**given, steps_per_epoch=steps, epochs=4)
    for key, values in expected.items():
        np.testing.assert_allclose(own[key], values, rtol=1e-4, atol=1e-6, err_msg=key)
    for a, b in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    once, peer = network(), network()
    peer.set_weights(once.get_weights())
    given |= {"steps_per_epoch": steps, "verbose": 0, "shuffle": False}
    GraftingFit([once]).fit(epochs=3, **given)
    run = GraftingFit([peer])
    for _ in range(3):
        run.fit(epochs=1, **given)
    for a, b in zip(once.get_weights(), peer.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_batch_larger_than_the_data_is_all_of_them():
    ours, own, theirs, expected = trained_by_both(*digits(), batch_size=100, epochs=2)
    np.testing.assert_allclose(own["loss"], expected["loss"], rtol=1e-5)
    assert int(ours.optimizer.iterations) == int(theirs.optimizer.iterations) == 2


@pytest.mark.core
def test_callbacks_hear_of_the_validation_what_they_hear_in_model_fit():
    given = {"validation_data": digits(20, 1), "validation_batch_size": 8, "epochs": 2}
    heard = []
    for fit in (network().fit, GraftingFit([network()]).fit):
        told = Told()
        fit(*digits(), verbose=0, callbacks=[told], **given)
        heard.append(
            [
                tuple(
                    [n for n in part if n != "alpha"] if type(part) is list else part for part in c
                )
                for c in told.calls
            ]
        )
    assert heard[0] == heard[1]
    assert ("test_batch_end", 2, ["accuracy", "loss"]) in heard[1]


def test_callbacks_are_one_or_a_list_or_keras_own_list():
    told = Told()
    in_list = keras.callbacks.CallbackList([told], add_history=True)
    for given in (told, [told], (told,), in_list, lambda k: told if k == 0 else None):
        told.calls.clear()
        histories = GraftingFit([network(), network()]).fit(*digits(), verbose=0, callbacks=given)
        assert [call[0] for call in told.calls] == ["epoch", "epoch_end"]
        assert "peer2_loss" in told.calls[1][2]
        assert len(histories[1].history["loss"]) == 1


def test_a_peer_that_stops_stops_them_all():
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 1

    run = GraftingFit([network(), network()])
    histories = run.fit(*digits(), epochs=5, verbose=0, callbacks=lambda k: [Stop()] if k else [])
    assert [history.epoch for history in histories] == [[0, 1], [0, 1]]


def test_alpha_is_logged_in_every_epoch_and_is_one_without_grafting():
    run = GraftingFit([network(), network()], every=2)
    history = run.fit(*digits(), epochs=3, verbose=0)[1].history
    assert history["alpha"] == [1.0, run.records[0][1].mean_coefficients[1], 1.0]
    run = GraftingFit([network(), network()], evaluate="before")
    history = run.fit(*digits(), epochs=3, verbose=0)[0].history
    assert history["alpha"] == [1.0, *[record.mean_coefficients[0] for _, record in run.records]]
    alone = GraftingFit([network()], mixer=Independent()).fit(*digits(), epochs=1, verbose=0)
    assert alone[0].history["alpha"] == [1.0]


@pytest.mark.core
def test_evaluate_and_predict_take_what_keras_takes():
    peers = [network(), network()]
    run = GraftingFit(peers)
    x, y = digits()
    given = {"batch_size": 20, "steps": 2, "sample_weight": WEIGHTS, "verbose": 0}
    told = Told()
    found = run.evaluate(x, y, callbacks=told, **given)
    for peer, own in zip(peers, found, strict=True):
        assert own == pytest.approx(peer.evaluate(x, y, return_dict=True, **given), rel=1e-5)
    assert [c[:2] for c in told.calls if c[0] == "test_batch_end"] == [
        ("test_batch_end", 0),
        ("test_batch_end", 1),
    ]
    assert run.evaluate(x, y, verbose=0, return_dict=False)[1] == pytest.approx(
        peers[1].evaluate(x, y, verbose=0), rel=1e-5
    )
    predicted = run.predict(x, batch_size=20, verbose=0, steps=2)
    np.testing.assert_allclose(
        predicted[1], peers[1].predict(x, batch_size=20, verbose=0, steps=2), atol=1e-6
    )


class Images(keras.utils.PyDataset):
    """Inputs without targets, an array a batch."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return digits()[0][20 * index : 20 * index + 20]


@pytest.mark.core
def test_inputs_without_targets_are_predicted_whole():
    run = GraftingFit([network(), network()])
    found = run.predict(Images())
    assert found.shape == (2, 60, 3)
    np.testing.assert_allclose(found, run.predict(digits()[0]), atol=1e-6)


class Generous(Graft):
    """Says when it is called."""

    def __init__(self):
        super().__init__()
        self.called = []

    def init(self, peers, last=None):
        self.called.append(("begin", [m.optimizer.built for m in peers.models]))
        return {}

    def apply(self, peers, state, moment):
        self.called.append(("apply", moment.epoch))
        return super().apply(peers, state, moment)

    def finish(self, peers, state):
        self.called.append(("end", peers.plan is not None))
        return state


def test_a_mixer_hears_where_a_training_begins_and_ends_whatever_happens():
    class Watch(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            mixer.called.append(("callbacks",))

    class Fail(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise RuntimeError("out of power")

    mixer = Generous()
    run = GraftingFit([network(), network()], mixer=mixer)
    run.fit(*digits(), epochs=2, verbose=0, callbacks=Watch())
    begin, end = ("begin", [True, True]), ("end", True)
    assert mixer.called == [begin, ("apply", 0), ("apply", 1), end, ("callbacks",)]
    mixer.called.clear()
    with pytest.raises(RuntimeError, match="out of power"):
        run.fit(*digits(), epochs=2, verbose=0, callbacks=[Watch(), Fail()])
    assert mixer.called == [begin, ("apply", 2), end]


def build_network():
    return network()


X, Y = digits()
SHARED = Told()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GraftingFit(network()), "peers is the model 'sequential.*expected a list"),
        (lambda: GraftingFit("peers"), "peers is 'peers': expected a list"),
        (lambda: GraftingFit(None), "peers is None: expected a list"),
        (lambda: GraftingFit([1, 2]), "peer 1 is 1: expected a Keras model"),
        (lambda: GraftingFit([build_network]), "peer 1 is the function 'build_network': call it"),
        (lambda: GraftingFit([keras.Model]), "peer 1 is the class Model: call it"),
        (lambda: GraftingFit(k for k in range(2)), "peer 1 is 0: expected a Keras model"),
        (lambda: GraftingFit([network()], teachers=network()), "teachers is the model 'seq"),
        (
            lambda: GraftingFit([network()], teachers=["t.keras"]),
            "teacher 1 is 't.keras': load it with keras.models.load_model",
        ),
        (lambda: GraftingFit([network()], mixer="entropy"), "mixer is 'entropy': expected a mixer"),
        (lambda: GraftingFit([network()], mixer=kgraft.Graft), r"class Graft: pass Graft\("),
        (lambda: GraftingFit([network()], mixer=False), "mixer is False: expected a mixer"),
        (lambda: GraftingFit([network()], mutual=True), r"mutual is True: expected kgraft.Mutual"),
        (lambda: GraftingFit([network()], mutual=kgraft.Mutual), "mutual is the class Mutual"),
        (lambda: GraftingFit([network()], every="2"), r"every='2'\): expected a whole number"),
        (lambda: GraftingFit([network()], epochs_grafted=1.5), r"epochs=1\.5"),
        (lambda: GraftingFit([network()], seed=-1), "seed=-1: expected 0 or more"),
        (lambda: GraftingFit([network()]).fit(), "x is None"),
        (
            lambda: GraftingFit([network()]).fit(X),
            "x is without targets, and peer 1 .*expected x and y",
        ),
        (lambda: GraftingFit([network()]).evaluate(X), "without targets, and peer 1"),
        (lambda: GraftingFit([network()]).fit(Images()), "x is without targets, and peer 1"),
        (
            lambda: GraftingFit([network()]).fit(X, Y, validation_data=X),
            "validation_data is without targets",
        ),
        (lambda: GraftingFit([network()]).predict(None), "x is None"),
        (lambda: GraftingFit([network()]).fit(X.tolist(), Y), "x is a list of list: expected an a"),
        (lambda: GraftingFit([network()]).fit((X, Y)), "without targets, and peer 1"),
        (lambda: GraftingFit([network()]).fit(X, Y, epochs="3"), "epochs='3'"),
        (lambda: GraftingFit([network()]).fit(X, Y, initial_epoch=-1), "initial_epoch=-1"),
        (lambda: GraftingFit([network()]).fit(X, Y, batch_size=2.5), r"batch_size=2\.5"),
        (
            lambda: GraftingFit([network()]).fit(X, Y, steps_per_epoch=0),
            "steps_per_epoch=0.*1 or more",
        ),
        (lambda: GraftingFit([network()]).fit(X, Y, shuffle="all"), "shuffle='all'"),
        (lambda: GraftingFit([network()]).fit(X, Y, validation_freq=0), "validation_freq=0"),
        (lambda: GraftingFit([network()]).fit(X, Y, validation_split=2), "validation_split=2"),
        (lambda: GraftingFit([network()]).fit(X, Y, validation_split=0.999), "leaves no example"),
        (
            lambda: GraftingFit([network()]).fit(Numbers(), validation_split=0.5),
            "validation_split needs arrays",
        ),
        (
            lambda: GraftingFit([network()]).fit(X, Y, validation_data=(X, Y, Y, Y)),
            "validation_data holds 4 parts",
        ),
        (
            lambda: GraftingFit([network()]).fit(
                X, Y, validation_data=Numbers(), validation_batch_size=3
            ),
            "batch_size cannot be given with a Numbers",
        ),
        (
            lambda: GraftingFit([network()]).fit(X, Y, callbacks=keras.callbacks.History),
            r"callbacks holds the class History: pass History\(",
        ),
        (lambda: GraftingFit([network()]).fit(X, Y, callbacks=["stop"]), "callbacks holds a str"),
        (
            lambda: GraftingFit([network()]).fit(
                X, Y, class_weight={0: 2.0}, sample_weight=np.ones(60)
            ),
            "class_weight and sample_weight exclude each other",
        ),
        (lambda: GraftingFit([network()]).fit(X, Y, class_weight=[1, 2]), "class_weight is a list"),
        (lambda: GraftingFit([network()]).predict(X, callbacks=Told()), "predict takes no callb"),
        (lambda: GraftingFit([network()]).fit([(X, Y)] * 3), "3 data sets for 1 peers"),
        (
            lambda: GraftingFit([network(), network()]).fit([(X, Y)] * 2, Y),
            "^y cannot be given with a list of data sets",
        ),
        (
            lambda: GraftingFit([network(), network()]).fit([(X, Y)] * 2, sample_weight=WEIGHTS),
            "^sample_weight cannot be given with a list of data sets",
        ),
        (
            lambda: GraftingFit([network(), network(), network()]).fit(
                X, Y, callbacks=lambda k: [SHARED] if k else []
            ),
            "^peer 2 and peer 3 share one Told: a callback belongs to one model",
        ),
        (lambda: GraftingFit([network()], temperature=3.0), "temperature is .* no teachers"),
        (lambda: GraftingFit([network()], distillation_weight=0), "distillation_weight is .* no t"),
        (
            lambda: GraftingFit([network(), network()], mutual=kgraft.Mutual(), temperature=3),
            r"Mutual\(temperature=",
        ),
        (
            lambda: GraftingFit(
                [network()],
                feature_losses=[keras.distillation.FeatureDistillation("mse", "a", "b")],
            ),
            "feature_losses is .* no teachers",
        ),
        (lambda: GraftingFit([network()]).fit([(X, Y, Y, Y)]), "data set 1 is a tuple of 4"),
    ],
)
def test_mistakes_are_told_in_one_line(build, message):
    with pytest.raises(UserError, match=message) as error:
        build()
    assert "\n" not in str(error.value)


def test_a_generator_of_peers_is_read_once():
    run = GraftingFit(network() for _ in range(2))
    run.fit(X, Y, verbose=0)
    assert len(run.records) == 1


def test_a_model_with_a_loss_of_its_own_needs_no_targets():
    class Autoencoder(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(4)

        def call(self, x):
            return self.dense(x)

        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return keras.ops.mean((x - y_pred) ** 2)

    x = np.random.default_rng(0).normal(size=(20, 4)).astype("float32")
    peer = Autoencoder()
    peer.compile("sgd")
    history = GraftingFit([peer], mixer=Independent()).fit(x, epochs=1, verbose=0)
    assert len(history[0].history["loss"]) == 1


def test_old_names_work_for_a_version():
    with pytest.warns(DeprecationWarning, match="graft= is called mixer="):
        run = GraftingFit([network()], graft=Graft(amplitude=0.2))
    assert run.mixer == Graft(amplitude=0.2)
    with pytest.warns(DeprecationWarning, match="graft= is called mixer="):
        callback = kgraft.GraftCallback([network()], graft=Graft(sharpness=3.0))
    assert callback.mixer == Graft(sharpness=3.0)
    with pytest.warns(DeprecationWarning, match=r"Mixer\(\) is called Independent\(\)"):
        run = GraftingFit([network(), network()], mixer=Mixer())
    run.fit(*digits(), epochs=1, verbose=0)
    assert run.records == []
    with pytest.raises(UserError, match="graft= is the old name of mixer="):
        GraftingFit([network()], graft=Graft(), mixer=Graft())
