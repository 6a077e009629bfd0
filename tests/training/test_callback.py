import json
import logging

import keras
import numpy as np
import pytest
from keras import layers

import kgraft
from kgraft.errors import UserError
from kgraft.grafting import Entropy, Graft, GraftPlan
from kgraft.training.callback import GraftCallback
from tests.reference import grafting as reference
from tests.training.callback_cases import (
    BATCH,
    arrays,
    assert_same,
    batches,
    compile_,
    compiled,
    differ,
    network,
)


def fit(model, callbacks, *, epochs=2, validation=True, **options):
    x, y = arrays()
    if validation:
        options["validation_data"] = (x, y)
    options = {"batch_size": BATCH, "verbose": 0, **options}
    return model.fit(x, y, epochs=epochs, callbacks=callbacks, **options).history


class Weights(keras.callbacks.Callback):
    """Everybody's weights when validation begins or, without one, when the epoch ends."""

    def __init__(self, models):
        super().__init__()
        self.models, self.seen = models, []

    def on_test_begin(self, logs=None):
        self._keep()

    def on_epoch_end(self, epoch, logs=None):
        if len(self.seen) <= epoch:
            self._keep()

    def _keep(self):
        self.seen.append([model.get_weights() for model in self.models])


class WeightsAtEnd(Weights):
    def on_test_begin(self, logs=None):
        pass


@pytest.mark.core
@pytest.mark.parametrize("validation", [True, False])
def test_after_every_epoch_all_peers_are_the_blend_of_the_reference(validation):
    ring = [compiled(1), compiled(2), compiled(3)]
    before, after = Weights(ring), WeightsAtEnd(ring)
    grafting = GraftCallback(ring[1:])
    history = fit(ring[0], [before, grafting, after], epochs=3, validation=validation)
    plan = GraftPlan.of(ring[0])
    groups = [(group.kernel, group.members) for group in plan.groups]
    assert [epoch for epoch, _ in grafting.records] == [0, 1, 2]
    for (epoch, record), old, new in zip(grafting.records, before.seen, after.seen, strict=True):
        expected, alphas = reference.graft(old, groups)
        np.testing.assert_allclose(record.coefficients, alphas, atol=1e-9)
        np.testing.assert_allclose(history["alpha"][epoch], alphas[0].mean(), atol=1e-9)
        for peer, wanted in zip(new, expected, strict=True):
            for weight, value in zip(peer, wanted, strict=True):
                np.testing.assert_allclose(weight, value, atol=1e-6)
    assert_same(ring[0].get_weights(), after.seen[-1][0])


@pytest.mark.core
def test_a_logged_metric_belongs_to_the_grafted_weights_that_a_checkpoint_saves(tmp_path):
    x, y = arrays()
    model = compiled(1)
    path = str(tmp_path / "{epoch}.weights.h5")
    checkpoint = keras.callbacks.ModelCheckpoint(path, save_weights_only=True)
    history = fit(model, [checkpoint, GraftCallback([compiled(2)])])  # wherever it stands
    for epoch, logged in enumerate(history["val_loss"], start=1):
        model.load_weights(tmp_path / f"{epoch}.weights.h5")
        assert model.evaluate(x, y, batch_size=BATCH, verbose=0)[0] == pytest.approx(logged)


@pytest.mark.core
def test_evaluate_before_saves_what_it_validated_and_grafts_when_the_next_epoch_begins(tmp_path):
    x, y = arrays()
    model, peer = compiled(1), compiled(2)
    at_end = WeightsAtEnd([model, peer])
    path = str(tmp_path / "{epoch}.weights.h5")
    checkpoint = keras.callbacks.ModelCheckpoint(path, save_weights_only=True)
    grafting = GraftCallback([peer], evaluate="before")
    starts = Weights([model, peer])
    starts.on_epoch_begin = lambda epoch, logs=None: starts._keep()
    starts.on_epoch_end = starts.on_test_begin = lambda *arguments: None
    history = fit(model, [grafting, checkpoint, at_end, starts], epochs=3)
    assert [epoch for epoch, _ in grafting.records] == [0, 1]
    groups = [(group.kernel, group.members) for group in GraftPlan.of(model).groups]
    for ended, started in zip(at_end.seen, starts.seen[1:], strict=False):
        expected, _ = reference.graft(ended, groups)
        for peer_weights, wanted in zip(started, expected, strict=True):
            for weight, value in zip(peer_weights, wanted, strict=True):
                np.testing.assert_allclose(weight, value, atol=1e-6)
    alphas = [record.mean_coefficients[0] for _, record in grafting.records]
    assert history["alpha"] == [1.0, *alphas]
    for epoch, logged in enumerate(history["val_loss"], start=1):
        model.load_weights(tmp_path / f"{epoch}.weights.h5")
        assert model.evaluate(x, y, batch_size=BATCH, verbose=0)[0] == pytest.approx(logged)


@pytest.mark.parametrize(
    ("options", "epochs"),
    [({"every": 2}, [1, 3]), ({"epochs_grafted": 1}, [0]), ({"epochs_grafted": 0}, [])],
)
def test_only_chosen_epochs_are_grafted(options, epochs):
    grafting = GraftCallback([compiled(2)], **options)
    history = fit(compiled(1), [grafting], epochs=4, validation=False)
    assert [epoch for epoch, _ in grafting.records] == epochs
    assert [alpha != 1.0 for alpha in history["alpha"]] == [e in epochs for e in range(4)]


def test_an_epoch_without_validation_is_grafted_at_its_end():
    grafting = GraftCallback([compiled(2)])
    history = fit(compiled(1), [grafting], epochs=3, validation_freq=2)
    assert [epoch for epoch, _ in grafting.records] == [0, 1, 2]
    assert len(history["val_loss"]) == 1


@pytest.mark.core
def test_an_evaluate_of_another_callback_is_no_validation():
    x, y = arrays()
    grafting = GraftCallback([compiled(2)])
    seen = []

    class Nosy(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.evaluate(x[:4], y[:4], verbose=0)
            self.model.evaluate(x[:4], y[:4], verbose=0, callbacks=[grafting])
            self.model.predict(x[:4], verbose=0, callbacks=[grafting])
            seen.append(len(grafting.records))

    fit(compiled(1), [grafting, Nosy()])
    assert seen == [0] * 6 + [1] * 6
    grafting.set_model(None)
    compiled(3).evaluate(x, y, verbose=0, callbacks=[grafting])
    assert len(grafting.records) == 2


@pytest.mark.core
def test_logs_reach_history_csv_and_the_progress_bar(tmp_path, capsys):
    log = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    history = fit(compiled(1), [GraftCallback([compiled(2), compiled(3)]), log], verbose=1)
    names = {"alpha", "peer2_loss", "peer2_accuracy", "peer3_loss", "peer3_accuracy"}
    assert names | {"loss", "accuracy", "val_loss", "val_accuracy"} == set(history)
    assert all(len(values) == 2 and np.isfinite(values).all() for values in history.values())
    assert names < set((tmp_path / "log.csv").read_text().splitlines()[0].split(","))
    assert all(
        f"{name}: " in capsys_text for capsys_text in [capsys.readouterr().out] for name in names
    )


def test_a_model_among_the_peers_keeps_its_place():
    model, others = compiled(2), [compiled(1), compiled(3)]
    grafting = GraftCallback([others[0], model, others[1]])
    history = fit(model, [grafting])
    _, record = grafting.records[-1]
    assert record.donors == (2, 0, 1)
    assert history["alpha"][-1] == record.mean_coefficients[1]
    assert {"peer1_loss", "peer3_loss"} < set(history)
    assert "peer2_loss" not in history


@pytest.mark.core
def test_a_peer_that_is_not_compiled_copies_the_compile_config_with_an_optimizer_of_its_own():
    def own_loss(y_true, y_pred):
        return keras.losses.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True)

    model, peer, reference_peer = network(1), network(2), network(2)
    for one in (model, reference_peer):
        one.compile(keras.optimizers.SGD(0.02), own_loss, metrics=["accuracy"])
    history = fit(model, [GraftCallback([peer], epochs_grafted=0)], shuffle=False)
    assert peer.optimizer is not model.optimizer
    fit(reference_peer, [], shuffle=False, validation=False)
    for own, expected in zip(peer.get_weights(), reference_peer.get_weights(), strict=True):
        np.testing.assert_allclose(own, expected, atol=1e-5)
    assert "peer2_accuracy" in history


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.first, self.last = layers.Conv2D(3, 3), layers.Dense(3)
        self.flat = layers.Flatten()

    def call(self, x):
        return self.last(self.flat(self.first(x)))


@pytest.mark.core
def test_a_peer_that_is_not_built_is_built_from_the_first_batch():
    model, peer = compile_(Subclassed()), Subclassed()
    grafting = GraftCallback([peer])
    fit(model, [grafting], epochs=1)
    assert peer.built
    assert len(grafting.records) == 1


@pytest.mark.core
def test_peers_that_others_train_are_grafted_only():
    peer = compiled(2)
    before = peer.get_weights()
    at_end = Weights([peer])
    grafting = GraftCallback([peer], train_peers=False)
    history = fit(compiled(1), [at_end, grafting], epochs=1)
    assert_same(at_end.seen[0][0], before)
    assert len(grafting.records) == 1
    assert differ(peer.get_weights(), at_end.seen[0][0])
    assert int(keras.ops.convert_to_numpy(peer.optimizer.iterations)) == 0
    assert not any(name.startswith("peer") for name in history)


def test_two_peers_with_everything_in_common_are_warned_of_once(caplog):
    def warnings():
        return [record.message for record in caplog.records if record.name == "kgraft"]

    with caplog.at_level(logging.WARNING, "kgraft"):
        grafting = GraftCallback([compiled(2)], epochs_grafted=0)
        model = compiled(1)
        fit(model, [grafting], epochs=1)
        fit(model, [grafting], epochs=1)
        assert len(warnings()) == 1
        assert "data=" in warnings()[0]
        fit(model, [GraftCallback([compiled(2, learning_rate=0.01)])], epochs=1)
        fit(model, [GraftCallback([compiled(2)], data=arrays())], epochs=1)
        fit(model, [GraftCallback([compiled(2), compiled(3)])], epochs=1)
        assert len(warnings()) == 1


def test_settings_are_json():
    peers = [compiled(2), compiled(3)]
    grafting = GraftCallback(peers, mixer=Graft.authors(), data=[arrays(), arrays()], every=2)
    assert json.loads(json.dumps(grafting.get_config())) == {
        "peers": ["net2", "net3"],
        "link": None,
        "mixer": {
            "mixer": "Graft",
            "criterion": {"name": "Entropy", "bins": 10, "binning": "authors"},
            "amplitude": 0.4,
            "sharpness": 500.0,
            "grouping": "authors",
            "decimals": 2,
            "blend_frozen": False,
            "revive": False,
            "every": 2,
            "epochs": None,
            "evaluate": "after",
        },
        "data": ["tuple", "tuple"],
        "class_weight": None,
        "train_peers": True,
        "backup_dir": None,
        "engine": "auto",
    }
    for criterion, expected in [("l1", "l1"), (np.std, "function"), (Entropy(), None)]:
        config = GraftCallback(peers, mixer=Graft(criterion=criterion)).get_config()
        assert json.dumps(config)
        if expected == "l1":
            assert config["mixer"]["criterion"] == expected


@pytest.mark.parametrize(
    ("peers", "options", "message"),
    [
        (lambda: [], {}, "no peers"),
        (lambda: [compiled(2)] * 2, {}, "'net2' twice"),
        (lambda: compiled(2), {}, "expected a list"),
        (lambda: ["net"], {}, r"peer 1 is 'net'"),
        (lambda: [compiled(2)], {"evaluate": "befor"}, "Did you mean 'before'"),
        (lambda: [compiled(2)], {"every": 0}, "every=0"),
        (lambda: [compiled(2)], {"every": "2"}, r"every='2'\): expected a whole number"),
        (lambda: [compiled(2)], {"epochs_grafted": 1.5}, "epochs=1.5"),
        (lambda: [compiled(2)], {"epochs_grafted": -1}, "-1"),
        (lambda: [compiled(2)], {"data": 1, "train_peers": False}, "train_peers=False"),
        (lambda: (), {"data": arrays()}, "no peers"),
        (lambda: 3, {}, "peers is 3"),
        (lambda: network, {}, "peers is the function 'network'"),
        (lambda: "net", {}, "peers is 'net'"),
        (lambda: [compiled(2)], {"mixer": kgraft.Mutual()}, "mutual learning is how peers learn"),
        (lambda: [compiled(2)], {"mixer": "entropy"}, r"Graft\(criterion='entropy'\)"),
        (lambda: [compiled(2)], {"mixer": Graft}, r"class Graft: pass Graft\("),
        (lambda: [compiled(2)], {"mixer": Entropy()}, "mixer is an Entropy: expected a mixer"),
        (lambda: [compiled(2)], {"data": arrays()[0]}, "data is an array without targets"),
        (lambda: [compiled(2)], {"data": [*arrays()]}, r"data\[0\] is an array without"),
        (lambda: [compiled(2)], {"data": [None]}, r"data\[0\] is None"),
        (lambda: [compiled(2)], {"data": (*arrays(), None, None)}, "data holds 4 parts"),
        (lambda: [compiled(2)], {"class_weight": {0: 1.0}}, "for the peers' own data="),
        (
            lambda: [compiled(2)],
            {"class_weight": {0: 1.0}, "data": (*arrays(), arrays()[1])},
            "class_weight= and the sample_weight in data exclude each other",
        ),
        (lambda: [compiled(2)], {"backup_dir": __file__}, "is a file"),
    ],
)
def test_a_mistake_gets_one_line(peers, options, message):
    with pytest.raises(UserError, match=message) as error:
        GraftCallback(peers(), **options)
    assert "\n" not in str(error.value)


def test_a_mistake_of_whoever_leaves_the_peers_out_gets_one_line():
    with pytest.raises(UserError, match="no peers"):
        GraftCallback(data=arrays())


def test_peers_may_come_from_a_generator():
    grafting = GraftCallback(compiled(k) for k in (2, 3))
    assert [peer.name for peer in grafting.peers] == ["net2", "net3"]
    fit(compiled(1), [grafting], epochs=1)
    assert len(grafting.records) == 1


def sharing(model):
    peer = network(2)
    peer.compile(model.optimizer, "mse")
    return peer


def iterated_once():
    return (batch for batch in batches(*arrays())[:2])


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize(
    ("peers", "options", "message"),
    [
        (lambda model: [model], {}, "only fit's model"),
        (lambda model: [compiled(2, filters=4)], {}, r"peer 1 and peer 2 differ: .*\(3, 3, 1, 3\)"),
        (lambda model: [compiled(2)], {"data": [arrays(), arrays()]}, "2 data sets for 1 peers"),
        (lambda model: [sharing(model)], {}, "peer 1 and peer 2 share one optimizer"),
        (lambda model: [compiled(2)], {"data": 3}, "data: x is a int, which Keras cannot read"),
        (
            lambda model: [compiled(2)],
            {"data": (arrays()[0], arrays(5)[1])},
            "data: .* expected equal",
        ),
        (
            lambda model: [compiled(2)],
            {"data": [iterated_once()]},
            "peer2 .*read only once",
        ),
    ],
)
def test_a_mistake_found_when_fit_begins_gets_one_line(peers, options, message):
    model = compiled(1)
    with pytest.raises(UserError, match=message) as error:
        fit(model, [GraftCallback(peers(model), **options)])
    assert "\n" not in str(error.value)
