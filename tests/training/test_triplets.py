"""The triplet loss of features, against loops over all triplets and torch's own gradients."""

import keras
import numpy as np
import pytest

import kgraft
from kgraft.training.triplets import triplet_loss


def by_hand(features, labels, margin):
    """Every image's loss, None without a pair or a stranger."""
    found = []
    for i, own in enumerate(features):
        same = [
            np.linalg.norm(own - f)
            for j, f in enumerate(features)
            if labels[j] == labels[i] and j != i
        ]
        other = [np.linalg.norm(own - f) for j, f in enumerate(features) if labels[j] != labels[i]]
        if not same or not other:
            found.append(None)
            continue
        excess = max(same) - min(other)
        found.append(np.log1p(np.exp(excess)) if margin is None else max(0.0, margin + excess))
    return found


@pytest.mark.parametrize("margin", [0.0, 0.3, None])
@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.core
def test_losses_are_those_of_the_hardest_of_all_triplets(margin, offset):
    rng = np.random.default_rng(0)
    labels = np.array([0, 0, 0, 1, 1, 2, 3, 3])
    features = rng.normal(size=(8, 5)) + offset
    losses, counts = triplet_loss(keras.ops.array(features.astype("float32")), labels, margin)
    expected = by_hand(features, labels, margin)
    np.testing.assert_allclose(losses, [own or 0.0 for own in expected], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(counts, [own is not None for own in expected])


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3]])
def test_without_pairs_or_strangers_nothing_is_lost(labels):
    losses, counts = triplet_loss(keras.ops.ones((4, 2)), np.array(labels))
    assert not np.asarray(losses).any() and not np.asarray(counts).any()


def network(seed=0, head=True):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6, 6, 1))
    x = keras.layers.Conv2D(4, 3, use_bias=False)(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.ReLU()(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    x = keras.layers.BatchNormalization(name="neck")(x) if head else x
    model = keras.Model(inputs, keras.layers.Dense(4, name="head")(x))
    model.compile(
        kgraft.SGD(0.1, momentum=0.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def images(count=16):
    rng = np.random.default_rng(0)
    return rng.normal(size=(count, 6, 6, 1)).astype("float32"), np.arange(count) // 4


def run(triplet, engine="auto", peers=2, epochs=1, **given):
    x, y = images()
    models = [network(k) for k in range(peers)]
    fit = kgraft.GraftingFit(
        models, mixer=kgraft.grafting.Independent(), triplet=triplet, engine=engine
    )
    histories = fit.fit(x, y, batch_size=16, epochs=epochs, shuffle=False, verbose=0, **given)
    return models, [own.history for own in histories]


def seen(model, layer):
    x, y = images()
    graph = keras.Model(model.inputs[0], [model.output, model.get_layer(layer).output])
    logits, features = (keras.ops.convert_to_numpy(own) for own in graph(x, training=True))
    shifted = logits - logits.max(1, keepdims=True)
    log_shares = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return -log_shares[np.arange(len(y)), y].mean(), features, y


@pytest.mark.parametrize(("layer", "taken"), [(None, "neck"), ("pool", "pool")])
@pytest.mark.core
def test_the_loss_is_the_models_own_and_the_features(layer, taken):
    _, histories = run(kgraft.Triplet(weight=2.0, layer=layer))
    for k, history in enumerate(histories):
        entropy, features, y = seen(network(k), taken)
        apart = np.mean(by_hand(features, y, 0.3))
        assert history["student_loss"][0] == pytest.approx(entropy, rel=1e-4)
        assert history["triplet_loss"][0] == pytest.approx(apart, rel=1e-4)
        assert history["loss"][0] == pytest.approx(entropy + 2 * apart, rel=1e-4)


@pytest.mark.core
def test_compiled_peers_end_where_eager_ones_end():
    compiled, _ = run(kgraft.Triplet(layer="pool"), epochs=12)
    eager, _ = run(kgraft.Triplet(layer="pool"), "eager", epochs=12)
    plain, _ = run(None, epochs=12)
    for own, other, without in zip(compiled, eager, plain, strict=True):
        for a, b in zip(own.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)
        assert not np.allclose(own.get_weights()[0], without.get_weights()[0], atol=1e-3)


def test_a_step_is_the_gradient_of_all_triplets():
    torch = pytest.importorskip("torch")
    if keras.config.backend() != "torch":
        pytest.skip("torch's gradients")
    model = network()
    x, y = images()
    graph = keras.Model(model.inputs[0], [model.output, model.get_layer("pool").output])
    logits, features = graph(torch.tensor(x), training=True)
    labels = torch.tensor(y)
    losses = []
    for i in range(len(y)):
        apart = torch.stack([torch.sqrt(((features[i] - f) ** 2).sum() + 1e-30) for f in features])
        same = (labels == labels[i]) & (torch.arange(len(y)) != i)
        losses.append(torch.relu(0.3 + apart[same].max() - apart[labels != labels[i]].min()))
    loss = torch.nn.functional.cross_entropy(logits, labels) + torch.stack(losses).mean()
    values = [own.value for own in model.trainable_variables]
    expected = [
        (value - 0.1 * grad).detach().numpy()
        for value, grad in zip(values, torch.autograd.grad(loss, values), strict=True)
    ]
    (trained,), _ = run(kgraft.Triplet(layer="pool"), peers=1)
    for own, wanted in zip(trained.trainable_variables, expected, strict=True):
        np.testing.assert_allclose(keras.ops.convert_to_numpy(own), wanted, rtol=1e-3, atol=1e-5)


def test_weights_of_images_weigh_both_losses_and_evaluation_has_the_models_own():
    x, y = images()
    model = network()
    fit = kgraft.GraftingFit([model], triplet=kgraft.Triplet())
    weights = np.where(y < 2, 1.0, 0.0).astype("float32")
    (history,) = fit.fit(
        x, y, batch_size=16, sample_weight=weights, shuffle=False, verbose=0, validation_data=(x, y)
    )
    _, features, _ = seen(network(), "neck")
    losses = np.array(by_hand(features, y, 0.3))
    assert history.history["triplet_loss"][0] == pytest.approx((losses * weights).mean(), rel=1e-4)
    own = model.evaluate(x, y, verbose=0, return_dict=True)
    assert history.history["val_loss"][0] == pytest.approx(own["loss"], rel=1e-5)
    assert "val_triplet_loss" not in history.history


def test_a_saved_peer_needs_nothing_of_it(tmp_path):
    (model,), _ = run(kgraft.Triplet(), peers=1)
    model.save(tmp_path / "peer.keras")
    x, _ = images()
    loaded = keras.models.load_model(tmp_path / "peer.keras", compile=False)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))


def test_a_dozen_steps_bring_the_own_kind_nearer():
    def apart(model):
        _, features, y = seen(model, "neck")
        return np.mean(by_hand(features, y, 0.3))

    (model,), _ = run(kgraft.Triplet(weight=5.0), peers=1, epochs=30)
    (plain,), _ = run(None, peers=1, epochs=30)
    assert apart(model) < min(apart(network()), apart(plain)) - 0.05


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"triplet": 0.3}, "expected kgraft.Triplet"),
        ({"triplet": kgraft.Triplet(layer="nowhere")}, "no layer 'nowhere'"),
        ({"triplet": kgraft.Triplet(layer="conv2d")}, "expected .None, d."),
        ({"triplet": kgraft.Triplet(), "mutual": kgraft.Mutual()}, "mutual learning exclude"),
    ],
)
def test_what_cannot_be_is_refused(given, said):
    if given.get("triplet") == kgraft.Triplet(layer="conv2d"):
        given = {"triplet": kgraft.Triplet(layer=network().layers[1].name)}
        models = [network()]
        given = {"triplet": kgraft.Triplet(layer=models[0].layers[1].name)}
    else:
        models = [network(k) for k in range(2)]
    with pytest.raises(kgraft.UserError, match=said):
        kgraft.GraftingFit(models, **given)


def test_teachers_and_negative_margins_are_refused():
    with pytest.raises(kgraft.UserError, match="teachers= exclude"):
        kgraft.GraftingFit([network(0)], [network(1)], triplet=kgraft.Triplet())
    with pytest.raises(kgraft.UserError, match="margin"):
        kgraft.Triplet(margin=-0.1)


def test_another_way_of_learning_is_another_training(tmp_path):
    x, y = images()
    ways = [{"triplet": kgraft.Triplet()}, {"triplet": kgraft.Triplet(margin=0.5)}, {}]
    for first in ways:
        for then in ways:
            place = tmp_path / str(ways.index(first))
            given = {"batch_size": 16, "verbose": 0, "checkpoint": place}
            if not place.exists():
                kgraft.GraftingFit([network()], **first).fit(x, y, epochs=1, **given)
            fit = kgraft.GraftingFit([network()], **then)
            if first == then:
                fit.fit(x, y, epochs=1, **given)
                continue
            with pytest.raises(kgraft.UserError, match="another training"):
                fit.fit(x, y, epochs=2, **given)


def test_an_image_of_weight_nothing_still_stands_beside_the_others():
    x, y = images()
    weights = np.array([0.0, 1, 1, 1] + [1.0] * 12, "float32")
    fit = kgraft.GraftingFit([network()], triplet=kgraft.Triplet())
    (history,) = fit.fit(x, y, batch_size=16, sample_weight=weights, shuffle=False, verbose=0)
    _, features, _ = seen(network(), "neck")
    expected = (np.array(by_hand(features, y, 0.3)) * weights).mean()
    assert history.history["triplet_loss"][0] == pytest.approx(expected, rel=1e-4)
