"""Mutual learning: its loss against torch's, its step against K separate computations."""

import keras
import numpy as np
import pytest

import kgraft
from kgraft.grafting import Independent
from kgraft.training.mutual import Mutual, mutual_loss

pytestmark = pytest.mark.core


def network(seed, lr):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            keras.layers.Conv2D(3, 3),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Flatten(),
            keras.layers.Dense(4),
        ]
    )
    model.compile(
        kgraft.SGD(lr, momentum=0.9, l2=1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def images(count=24):
    random = np.random.default_rng(0)
    x = random.normal(size=(count, 6, 6, 1)).astype("float32")
    return x, random.integers(0, 4, count)


def _tensors(*arrays):
    return [keras.ops.convert_to_tensor(array) for array in arrays]


def softmax(z):
    shifted = np.exp(z - z.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


def forward(torch, weights, x):
    """PyTorch's logits of `network`, and the parameters that they depend on."""
    kernel, bias, gamma, beta, _, _, dense, dense_bias = weights
    trained = (kernel, bias, gamma, beta, dense, dense_bias)
    own = [torch.tensor(value, requires_grad=True) for value in trained]
    maps = torch.nn.functional.conv2d(
        torch.tensor(x).permute(0, 3, 1, 2), own[0].permute(3, 2, 0, 1), own[1]
    )
    maps = torch.nn.functional.batch_norm(maps, None, None, *own[2:4], training=True, eps=1e-3)
    return torch.relu(maps).permute(0, 2, 3, 1).flatten(1) @ own[4] + own[5], own


def test_the_loss_is_the_mean_divergence_from_the_others():
    random = np.random.default_rng(0)
    logits = [random.normal(size=(5, 4)).astype("float32") for _ in range(3)]
    own, *others = map(softmax, logits)
    expected = np.mean([(p * np.log(p / own)).sum(1) for p in others], axis=0)
    found = mutual_loss(*_tensors(logits[0]), _tensors(*logits[1:]))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(found), expected, rtol=1e-5)


def test_the_loss_is_torchs_kl_div():
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(1)
    own, other = (random.normal(size=(5, 4)).astype("float32") for _ in range(2))
    expected = torch.nn.functional.kl_div(
        torch.log_softmax(torch.tensor(own) / 3, 1),
        torch.log_softmax(torch.tensor(other) / 3, 1),
        reduction="none",
        log_target=True,
    ).sum(1)
    found = mutual_loss(*_tensors(own), _tensors(other), temperature=3.0)
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(found), 9 * expected.numpy(), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_one_step_is_that_of_k_separate_losses(engine):
    """A PyTorch computation of both networks' step, written from the paper."""
    torch = pytest.importorskip("torch")
    x, y = images()
    peers = [network(k, lr) for k, lr in enumerate((0.1, 0.05))]
    start = [peer.get_weights() for peer in peers]
    run = kgraft.GraftingFit(peers, mixer=Independent(), mutual=Mutual(weight=0.7), engine=engine)
    histories = run.fit(x, y, batch_size=len(x), shuffle=False, epochs=1, verbose=0)

    made = [forward(torch, own, x) for own in start]
    logits, parameters = [z for z, _ in made], [own for _, own in made]
    targets = torch.tensor(y)
    for k, (own, lr) in enumerate(zip(parameters, (0.1, 0.05), strict=True)):
        ce = torch.nn.functional.cross_entropy(logits[k], targets)
        kl = torch.nn.functional.kl_div(
            torch.log_softmax(logits[k], 1),
            torch.softmax(logits[1 - k].detach(), 1),
            reduction="batchmean",
        )
        gradients = torch.autograd.grad(ce + 0.7 * kl, own, retain_graph=True)
        after = peers[k].get_weights()
        for value, gradient, index in zip(own, gradients, (0, 1, 2, 3, 6, 7), strict=True):
            expected = (value - lr * (gradient + 1e-3 * value)).detach().numpy()
            np.testing.assert_allclose(after[index], expected, atol=2e-6)
        history = histories[k].history
        assert history["student_loss"][0] == pytest.approx(ce.item(), rel=1e-5)
        assert history["mutual_loss"][0] == pytest.approx(kl.item(), rel=1e-4)
        assert history["loss"][0] == pytest.approx((ce + 0.7 * kl).item(), rel=1e-5)
        correct = (logits[k].argmax(1) == targets).float().mean().item()
        assert history["accuracy"][0] == pytest.approx(correct)


@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_without_a_weight_every_peer_trains_as_if_it_were_alone(engine):
    """Peers of one architecture have layers, and so variables, of the same names."""
    random = np.random.default_rng(0)
    x = random.normal(size=(32, 8, 8, 3)).astype("float32")
    y = random.integers(0, 5, 32)

    def trained(mutual):
        peers = []
        for seed in range(2):
            keras.utils.set_random_seed(seed)
            peers.append(kgraft.models.build("resnet8", input_shape=(8, 8, 3), classes=5))
            peers[-1].compile(
                kgraft.SGD(0.01, momentum=0.9, l2=1e-3),
                keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            )
        run = kgraft.GraftingFit(peers, mixer=Independent(), mutual=mutual, engine=engine)
        run.fit(x, y, batch_size=8, shuffle=False, epochs=2, verbose=0)
        return [weight for peer in peers for weight in peer.get_weights()]

    for own, other in zip(trained(Mutual(weight=0.0)), trained(None), strict=True):
        np.testing.assert_allclose(own, other, atol=1e-4)


def test_peers_are_ordinary_models_afterwards_and_keep_their_optimizers():
    x, y = images()
    peers = [network(k, 0.1) for k in range(3)]
    run = kgraft.GraftingFit(peers, mixer=Independent(), mutual=Mutual())
    run.fit(x, y, batch_size=8, epochs=2, verbose=0, validation_data=(x, y))
    for peer in peers:
        assert int(keras.ops.convert_to_numpy(peer.optimizer.iterations)) == 6
        assert peer.evaluate(x, y, verbose=0)[0] > 0
        peer.fit(x, y, verbose=0)


def test_mutual_learning_and_grafting_go_together():
    x, y = images()
    peers = [network(k, 0.1) for k in range(2)]
    run = kgraft.GraftingFit(peers, mutual=Mutual())
    run.fit(x, y, batch_size=8, epochs=1, verbose=0)
    assert len(run.records) == 1
    for a, b in zip(*(peer.get_weights() for peer in peers), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)  # two grafted peers are one


def test_one_network_has_nobody_to_learn_from():
    with pytest.raises(kgraft.UserError, match="2 peers or more"):
        x, y = images()
        kgraft.GraftingFit([network(0, 0.1)], mutual=Mutual()).fit(x, y, verbose=0)
    teacher = network(1, 0.1)
    pair = [network(0, 0.1), network(2, 0.1)]
    with pytest.raises(kgraft.UserError, match="mutual= and teachers= exclude each other"):
        kgraft.GraftingFit(pair, [teacher], mutual=Mutual())
    with pytest.raises(kgraft.UserError, match=r"mixer=Mutual\(\) and teachers= exclude"):
        kgraft.GraftingFit(pair, [teacher], mixer=Mutual())
    with pytest.raises(kgraft.UserError, match=r"mutual=Mutual\(\) and mixer=Online\(\) are two"):
        kgraft.GraftingFit(pair, mutual=Mutual(), mixer=kgraft.Online())
    logits = [keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)]) for _ in range(2)]
    for logit in logits:
        logit.compile("sgd", "mse")
    with pytest.raises(kgraft.UserError, match="has one output: expected a logit a class"):
        kgraft.GraftingFit(logits, mutual=Mutual())
