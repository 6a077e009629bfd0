"""Online distillation: one step against a PyTorch computation, and whose views the peers see."""

import keras
import numpy as np
import pytest

import kgraft
from kgraft.data import Augment, BatchStream
from kgraft.grafting import Independent
from kgraft.training.mutual import Online
from tests.training.test_mutual import forward, images, network

RATES = (0.1, 0.05, 0.02)


def pictures(count=24):
    random = np.random.default_rng(0)
    return random.integers(0, 256, (count, 6, 6, 1), np.uint8), random.integers(0, 4, count)


def stream(count=24, batch_size=24):
    return BatchStream(
        *pictures(count), batch_size=batch_size, seed=3, peer=0, augment=Augment(pad=1, flip=True)
    )


def arrays(batch):
    return [keras.ops.convert_to_numpy(part) for part in batch]


@pytest.mark.core
@pytest.mark.parametrize("views", [True, False])
@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_one_step_is_that_of_k_losses_with_the_mean_of_all(engine, views):
    torch = pytest.importorskip("torch")
    peers = [network(k, lr) for k, lr in enumerate(RATES)]
    start = [peer.get_weights() for peer in peers]
    online = Online(weight=0.7, temperature=3.0, views=views)
    run = kgraft.GraftingFit(peers, mixer=online, engine=engine)
    histories = run.fit(stream(), epochs=1, verbose=0)

    seen = [arrays(next(iter(stream().view(k if views else 0).epoch(0)))) for k in range(3)]
    assert all((y == seen[0][1]).all() for _, y in seen)
    assert (seen[0][0] != seen[1][0]).any() == views
    made = [forward(torch, own, x) for own, (x, _) in zip(start, seen, strict=True)]
    together = torch.stack([torch.softmax(z.detach() / 3.0, 1) for z, _ in made]).mean(0)
    targets = torch.tensor(seen[0][1]).long()
    for k, ((logits, own), lr) in enumerate(zip(made, RATES, strict=True)):
        ce = torch.nn.functional.cross_entropy(logits, targets)
        kd = -9.0 * (together * torch.log_softmax(logits / 3.0, 1)).sum(1).mean()
        gradients = torch.autograd.grad(ce + 0.7 * kd, own, retain_graph=True)
        after = peers[k].get_weights()
        for value, gradient, index in zip(own, gradients, (0, 1, 2, 3, 6, 7), strict=True):
            expected = (value - lr * (gradient + 1e-3 * value)).detach().numpy()
            np.testing.assert_allclose(after[index], expected, atol=5e-6)
        history = histories[k].history
        assert history["student_loss"][0] == pytest.approx(ce.item(), rel=1e-5)
        assert history["mutual_loss"][0] == pytest.approx(kd.item(), rel=1e-4)
        assert history["loss"][0] == pytest.approx((ce + 0.7 * kd).item(), rel=1e-5)


def test_views_are_the_same_images_in_the_same_order_with_crops_of_their_own():
    first, second = stream(batch_size=8), stream(batch_size=8).view(1)
    plain = [arrays(batch) for batch in first.epoch(2)]
    other = [arrays(batch) for batch in second.epoch(2)]
    for (x, y), (x_other, y_other) in zip(plain, other, strict=True):
        np.testing.assert_array_equal(y, y_other)
        assert (x != x_other).any()
    crops = stream(batch_size=8).for_peer(1)
    assert second.for_peer(1).crops_of == crops.crops_of == 1


def test_data_without_crops_are_one_view_for_all():
    x, y = images()
    losses = []
    for views in (True, False):
        peers = [network(k, 0.05) for k in range(2)]
        run = kgraft.GraftingFit(peers, mixer=Online(views=views))
        histories = run.fit(x, y, batch_size=8, epochs=2, verbose=0)
        losses.append([own.history["loss"] for own in histories])
    assert losses[0] == losses[1]


def test_a_fit_with_views_is_one_with_everything_else():
    peers = [network(k, 0.05) for k in range(3)]
    run = kgraft.GraftingFit(peers, mixer=Online())
    x, y = pictures(20)
    validation = (x.astype("float32") / 255, y)
    histories = run.fit(stream(20, 8), epochs=3, validation_data=validation, verbose=0)
    assert len(histories) == 3
    assert all(np.isfinite(own.history["val_loss"]).all() for own in histories)
    assert histories[0].history["loss"][-1] < histories[0].history["loss"][0]
    assert not run.records and isinstance(run.mixer, Independent)


@pytest.mark.parametrize(
    "wrong", [{"weight": -1.0}, {"temperature": 0.0}, {"views": 2}, {"view": True}]
)
def test_settings_that_are_none_are_refused(wrong):
    with pytest.raises(kgraft.UserError, match=next(iter(wrong))):
        Online(**wrong)


def test_it_goes_on_where_it_was_broken_off(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    def run(**options):
        made = kgraft.GraftingFit([network(k, 0.05) for k in range(2)], mixer=Online())
        histories = made.fit(stream(batch_size=8), epochs=4, verbose=0, **options)
        return [own.history["loss"] for own in histories], made.peers

    expected, models = run()
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=tmp_path, callbacks=[Stop()])
    found, resumed = run(checkpoint=tmp_path)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    for own, other in zip(models, resumed, strict=True):
        for a, b in zip(own.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
