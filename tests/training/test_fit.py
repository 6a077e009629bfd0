import keras
import numpy as np
import pytest
from keras import layers

from kgraft.errors import UserError
from kgraft.grafting import Graft, Independent, Moment
from kgraft.training.feeds import feed_of
from kgraft.training.fit import GraftingFit
from tests.reference import grafting as reference

pytestmark = pytest.mark.core


def network(filters=4, lr=0.1, compiled=True):
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(filters, 3),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )
    if compiled:
        model.compile(
            keras.optimizers.SGD(lr, momentum=0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
    return model


def digits(count=60, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 8, 8, 1)).astype(np.float32)
    return x, (x.mean(axis=(1, 2, 3)) * 30).clip(-1, 1).round().astype(int) + 1


class Snapshots(keras.callbacks.Callback):
    """All peers' weights at the end of every epoch."""

    def __init__(self, peers):
        super().__init__()
        self.peers, self.after = peers, []

    def on_epoch_end(self, epoch, logs=None):
        self.after.append([peer.get_weights() for peer in self.peers])


def test_every_epoch_ends_with_the_blend_of_the_weights_before_it():
    peers = [network() for _ in range(3)]
    grafted, ungrafted = [], []

    class Spy(Graft):
        def apply(self, peers, state, moment):
            ungrafted.append([model.get_weights() for model in peers.models])
            state, record = super().apply(peers, state, moment)
            grafted.append(record)
            return state, record

    snapshots = Snapshots(peers)
    run = GraftingFit(peers, mixer=Spy())
    run.fit(*digits(), batch_size=20, epochs=3, verbose=0, callbacks=[snapshots])
    groups = [(g.kernel, g.members) for g in Graft().plan(peers).groups]
    assert len(grafted) == len(run.records) == 3
    for before, record, after in zip(ungrafted, grafted, snapshots.after, strict=True):
        expected, alphas = reference.graft(before, groups)
        np.testing.assert_allclose(record.coefficients, alphas, atol=1e-12)
        for own, blended in zip(after, expected, strict=True):
            for weight, value in zip(own, blended, strict=True):
                np.testing.assert_allclose(weight, value, atol=1e-6)


def test_one_peer_trains_as_keras_trains_it():
    ours, theirs = network(), network()
    theirs.set_weights(ours.get_weights())
    x, y = digits()
    history = GraftingFit([ours]).fit(x, y, batch_size=25, epochs=3, shuffle=False, verbose=0)[0]
    expected = theirs.fit(x, y, batch_size=25, epochs=3, shuffle=False, verbose=0)
    for a, b in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    np.testing.assert_allclose(history.history["loss"], expected.history["loss"], rtol=1e-5)


def test_peers_draw_orders_of_their_own_and_repeat_them():
    feed = feed_of(np.arange(10, dtype=np.float32), batch_size=4, seed=1)

    def order(peer, epoch):
        return np.concatenate(
            [keras.ops.convert_to_numpy(b[0]) for b in feed.for_peer(peer).epoch(epoch)]
        ).tolist()

    assert sorted(order(0, 0)) == list(range(10))
    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(p, e)) for p in range(3) for e in range(3)}) == 9
    assert [len(b[0]) for b in feed.epoch(0)] == [4, 4, 2]
    assert feed.steps == 3


def test_histories_hold_training_and_validation_of_every_peer():
    peers = [network(lr=lr) for lr in (0.1, 0.01)]
    run = GraftingFit(peers)
    histories = run.fit(*digits(), epochs=2, verbose=0, validation_data=digits(20, 1))
    for peer, history in zip(peers, histories, strict=True):
        assert peer.history is history
        for key in ("loss", "accuracy", "val_loss", "val_accuracy", "alpha"):
            assert len(history.history[key]) == 2
    assert len(histories[0].history["peer2_val_loss"]) == 2
    x, y = digits(20, 1)
    last = [peer.evaluate(x, y, verbose=0, return_dict=True)["loss"] for peer in peers]
    np.testing.assert_allclose(
        [history.history["val_loss"][-1] for history in histories], last, rtol=1e-5
    )


def test_authors_order_validates_before_the_grafting_and_leaves_the_last_epoch_ungrafted():
    peers = [network(), network()]
    run = GraftingFit(peers, evaluate="before")
    histories = run.fit(*digits(), epochs=3, verbose=0, validation_data=digits(20, 1))
    assert [epoch for epoch, _ in run.records] == [0, 1]
    assert any(
        not np.array_equal(a, b)
        for a, b in zip(*[peer.get_weights() for peer in peers], strict=True)
    )  # two peers are equal right after a grafting
    loss = peers[1].evaluate(*digits(20, 1), verbose=0, return_dict=True)["loss"]
    assert histories[1].history["val_loss"][-1] == pytest.approx(loss, rel=1e-5)


def test_only_some_epochs_are_grafted():
    run = GraftingFit([network(), network()], every=2, epochs_grafted=5)
    run.fit(*digits(), epochs=8, verbose=0)
    assert [epoch for epoch, _ in run.records] == [1, 3]
    assert [e for e in range(4) if Graft().due(Moment(e))] == [0, 1, 2, 3]


def test_callbacks_watch_the_first_peer_or_one_each():
    peers = [network() for _ in range(3)]
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append((self.model, sorted(logs)))

    GraftingFit(peers).fit(*digits(), epochs=1, verbose=0, callbacks=[Watch()])
    assert seen[0][0] is peers[0]
    assert {"loss", "peer3_loss", "alpha"} <= set(seen[0][1])
    seen.clear()
    GraftingFit(peers).fit(*digits(), epochs=1, verbose=0, callbacks=lambda k: [Watch()])
    assert [model for model, _ in seen] == peers


def test_any_peer_can_stop_the_run():
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 1

    run = GraftingFit([network(), network()])
    histories = run.fit(
        *digits(), epochs=5, verbose=0, callbacks=lambda k: [Stop()] if k == 1 else []
    )
    assert len(histories[0].epoch) == 2


def test_a_run_in_two_parts_sees_the_batches_of_a_run_in_one():
    whole, parts = ([network(), network()] for _ in range(2))
    for a, b in zip(whole, parts, strict=True):
        b.set_weights(a.get_weights())
    GraftingFit(whole, seed=7).fit(*digits(), epochs=4, verbose=0)
    run = GraftingFit(parts, seed=7)
    run.fit(*digits(), epochs=2, verbose=0)
    run.fit(*digits(), epochs=4, initial_epoch=2, verbose=0)
    for a, b in zip(whole, parts, strict=True):
        for weight, value in zip(a.get_weights(), b.get_weights(), strict=True):
            np.testing.assert_array_equal(weight, value)


class Numbers(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        x, y = digits()
        return x[index * 20 : (index + 1) * 20], y[index * 20 : (index + 1) * 20]


def test_a_data_set_is_iterated_by_every_peer():
    peers = [network(), network()]
    peers[1].set_weights(peers[0].get_weights())
    GraftingFit(peers, mixer=Independent()).fit(Numbers(), epochs=2, verbose=0, shuffle=False)
    for a, b in zip(*[peer.get_weights() for peer in peers], strict=True):
        np.testing.assert_array_equal(a, b)
    assert int(peers[1].optimizer.iterations) == 6


def test_every_peer_can_have_a_data_set_of_its_own():
    peers = [network(), network()]
    GraftingFit(peers).fit([Numbers(), Numbers()], epochs=1, verbose=0)
    assert [int(peer.optimizer.iterations) for peer in peers] == [3, 3]
    with pytest.raises(UserError, match="3 data sets for 2 peers"):
        GraftingFit(peers).fit([Numbers()] * 3)


def test_a_list_of_tensors_feeds_a_model_of_several_inputs():
    def two_inputs():
        inputs = [keras.Input((8, 8, 1)), keras.Input((8, 8, 1))]
        merged = layers.Flatten()(layers.Conv2D(2, 3)(layers.Add()(inputs)))
        model = keras.Model(inputs, layers.Dense(3)(merged))
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        return model

    x, y = digits()
    peers = [two_inputs(), two_inputs()]
    x = keras.ops.convert_to_tensor(x)
    GraftingFit(peers).fit([x, x], y, epochs=1, verbose=0, batch_size=20)
    assert [int(peer.optimizer.iterations) for peer in peers] == [3, 3]


def test_a_feed_of_ones_own_keeps_its_order():
    x, y = digits()
    own = feed_of(x, y, batch_size=20, seed=4)
    listed, numbered = ([network(), network()] for _ in range(2))
    for a, b in zip(listed, numbered, strict=True):
        b.set_weights(a.get_weights())
    GraftingFit(listed).fit([own.for_peer(0), own.for_peer(1)], epochs=1, verbose=0)
    GraftingFit(numbered).fit(own, epochs=1, verbose=0)
    for a, b in zip(listed, numbered, strict=True):
        np.testing.assert_array_equal(a.get_weights()[0], b.get_weights()[0])


def test_a_generator_cannot_feed_two_peers():
    def generator():
        while True:
            yield digits(20)

    with pytest.raises(UserError, match="only once"):
        GraftingFit([network(), network()]).fit(generator(), steps_per_epoch=2)


@pytest.mark.skipif(keras.config.backend() != "torch", reason="torch DataLoader")
def test_a_torch_data_loader_feeds_every_peer():
    torch = pytest.importorskip("torch")
    x, y = digits()
    data = torch.utils.data.TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    peers = [network(), network()]
    GraftingFit(peers).fit(torch.utils.data.DataLoader(data, batch_size=20), epochs=1, verbose=0)
    assert [int(peer.optimizer.iterations) for peer in peers] == [3, 3]


def test_class_and_sample_weights_count():
    first, second = network(), network()
    second.set_weights(first.get_weights())
    x, y = digits()
    GraftingFit([first]).fit(x, y, epochs=1, verbose=0, class_weight={0: 0.0, 1: 2.0, 2: 1.0})
    weights = np.array([0.0, 2.0, 1.0], np.float32)[y]
    GraftingFit([second]).fit(x, y, epochs=1, verbose=0, sample_weight=weights)
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_predictions_and_evaluation_of_all_peers():
    peers = [network(), network()]
    run = GraftingFit(peers)
    x, y = digits(30)
    assert run.predict(x).shape == (2, 30, 3)
    np.testing.assert_allclose(run.predict(x)[1], peers[1].predict(x, verbose=0), atol=1e-6)
    assert run.evaluate(x, y)[0] == pytest.approx(
        peers[0].evaluate(x, y, verbose=0, return_dict=True), rel=1e-5
    )


def test_validation_split_holds_the_end_out():
    x, y = digits()
    first, second = network(), network()
    second.set_weights(first.get_weights())
    a = GraftingFit([first]).fit(x, y, epochs=1, verbose=0, validation_split=0.5)
    b = GraftingFit([second]).fit(
        x[:30], y[:30], epochs=1, verbose=0, validation_data=(x[30:], y[30:])
    )
    assert a[0].history["val_loss"] == pytest.approx(b[0].history["val_loss"])


def test_a_peer_that_diverges_is_left_behind(caplog):
    peers = [network(lr=0.1), network(lr=1e30), network(lr=0.1)]
    run = GraftingFit(peers)
    run.fit(*digits(), epochs=3, verbose=0)
    assert run.records[-1][1].donors == (2, None, 0)
    assert caplog.text.count("peer 2 has weights that are not finite") == 1
    assert all(np.isfinite(w).all() for k in (0, 2) for w in peers[k].get_weights())


def test_unbuilt_peers_are_built_from_the_first_batch():
    peers = [
        keras.Sequential([layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(3)]) for _ in range(2)
    ]
    for peer in peers:
        peer.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    run = GraftingFit(peers)
    run.fit(*digits(), epochs=1, verbose=0)
    assert len(run.records) == 1


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GraftingFit([]), "no peers"),
        (lambda: GraftingFit([network(compiled=False)]), "peer 1 .* is not compiled"),
        (lambda: GraftingFit([network(), network(5)]), "peer 1 and peer 2 differ"),
        (lambda: GraftingFit([network()], every=0), "every=0"),
        (lambda: GraftingFit([network()], epochs_grafted=-1), "epochs=-1"),
        (lambda: GraftingFit([network()], evaluate="befor"), "Did you mean 'before'"),
        (lambda: GraftingFit([network()]).fit(*digits(), batch_size=0), "batch_size=0.*1 or more"),
        (lambda: GraftingFit([network()]).fit(digits()[0], digits(9)[1]), r"\[9, 60\] examples"),
        (
            lambda: GraftingFit([network()]).fit(Numbers(), batch_size=2),
            "with a Numbers: it has batches",
        ),
        (lambda: GraftingFit([network()]).fit({1, 2}), "x is a set, which Keras cannot read"),
    ],
)
def test_mistakes_are_told_in_one_line(build, message):
    with pytest.raises(UserError, match=message) as error:
        build()
    assert "\n" not in str(error.value)


def test_students_learn_from_their_teachers_and_stay_ordinary_models(tmp_path):
    teachers = [network(6, compiled=False), network(8, compiled=False)]
    taught = [teacher.get_weights() for teacher in teachers]
    peers = [network(), network()]
    run = GraftingFit(peers, teachers)
    history = run.fit(*digits(), epochs=3, verbose=0, validation_data=digits(20, 1))[1].history
    for step, own in enumerate(history["loss"]):
        parts = history["student_loss"][step] + history["distillation_loss"][step]
        assert own == pytest.approx(parts, rel=1e-4)
    loss = peers[1].evaluate(*digits(20, 1), verbose=0, return_dict=True)["loss"]
    assert history["val_loss"][-1] == pytest.approx(loss, rel=1e-5)
    assert [int(peer.optimizer.iterations) for peer in peers] == [6, 6]
    for teacher, weights in zip(teachers, taught, strict=True):
        for weight, value in zip(teacher.get_weights(), weights, strict=True):
            np.testing.assert_array_equal(weight, value)
    assert {group.split("/")[-1] for group in run.records[0][1].groups} == {"kernel"}
    peers[0].save(tmp_path / "student.keras")
    student = keras.models.load_model(tmp_path / "student.keras")
    x, _ = digits(5)
    np.testing.assert_allclose(
        student.predict(x, verbose=0), peers[0].predict(x, verbose=0), atol=1e-6
    )


def test_a_shared_optimizer_is_refused():
    first, second = network(), network(compiled=False)
    second.compile(first.optimizer, first.loss)
    with pytest.raises(UserError, match="peer 1 and peer 2 share one optimizer"):
        GraftingFit([first, second])
