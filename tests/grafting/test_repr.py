"""RePr: its ranking by hand, its new filters by their defining property, its schedule on a run."""

import keras
import numpy as np
import pytest

import kgraft
from kgraft.grafting import RePr
from kgraft.grafting.chains import chains
from kgraft.grafting.repr import most_overlapping, orthogonal_filters, overlap
from kgraft.training.fit import GraftingFit
from tests.grafting.driven import Driven

pytestmark = pytest.mark.core


def network(seed=0):
    keras.utils.set_random_seed(seed)
    return kgraft.models.build("resnet8", input_shape=(8, 8, 3), classes=5)


def test_overlap_is_the_mean_cosine_with_the_others():
    filters = np.random.default_rng(0).normal(size=(5, 7))
    expected = [
        sum(
            abs(filters[f] @ filters[j]) / (np.linalg.norm(filters[f]) * np.linalg.norm(filters[j]))
            for j in range(5)
            if j != f
        )
        / 5
        for f in range(5)
    ]
    np.testing.assert_allclose(overlap(filters), expected)


def test_a_filter_of_zeros_overlaps_with_nothing():
    assert overlap(np.array([[0.0, 0.0], [1.0, 1.0], [1.0, 0.0]]))[0] == 0


def test_filters_are_ranked_over_all_layers_and_no_layer_loses_its_last():
    masks = most_overlapping([np.array([0.9, 0.8]), np.array([0.1, 0.7, 0.2])], 0.6)
    assert [mask.tolist() for mask in masks] == [[True, False], [False, True, True]]


def test_new_filters_are_orthogonal_to_the_kept_and_the_dropped_and_to_each_other():
    random = np.random.default_rng(1)
    kept, dropped = random.normal(size=(5, 18)), random.normal(size=(3, 18))
    new = orthogonal_filters(kept, dropped, random)
    np.testing.assert_allclose(new @ np.concatenate([kept, dropped]).T, 0, atol=1e-10)
    length = np.linalg.norm(kept, axis=1).mean()
    np.testing.assert_allclose(new @ new.T, length**2 * np.eye(3), atol=1e-10)


def test_without_room_new_filters_take_the_least_used_directions():
    random = np.random.default_rng(1)
    kept, dropped = random.normal(size=(9, 4)), random.normal(size=(2, 4))
    new = orthogonal_filters(kept, dropped, random)
    used = np.concatenate([kept, dropped])
    strengths = np.linalg.norm(used @ (new / np.linalg.norm(new, axis=1, keepdims=True)).T, axis=0)
    np.testing.assert_allclose(strengths, np.linalg.svd(used)[1][::-1][:2])


def test_dropped_filters_are_silent_until_they_come_back():
    model, mixer = network(), RePr(full_epochs=1, pruned_epochs=1, cycles=1, share=0.3)
    run = Driven(mixer, [model])
    links = chains(model)
    run.epoch(0)
    weights = model.get_weights()
    silent = {i: weights[c.scale] == 0 for i, c in enumerate(links)}
    assert not silent[0].any()
    filters = sum(len(own) for i, own in silent.items() if i)
    assert sum(own.sum() for own in silent.values()) == round(0.3 * filters)
    model.set_weights([w + np.float32(0.1) for w in weights])
    run.step(0)
    held = model.get_weights()
    for i, chain in enumerate(links):
        assert (held[chain.kernel][..., silent[i]] == 0).all()
        assert (held[chain.scale][silent[i]] == 0).all()
        assert (held[chain.shift][silent[i]] == 0).all()
        assert (held[chain.kernel][..., ~silent[i]] != 0).any()
    run.epoch(1)
    back = model.get_weights()
    for i, chain in enumerate(links):
        assert (back[chain.scale][silent[i]] == 1).all()
        assert (np.abs(back[chain.kernel][..., silent[i]]).sum(axis=(0, 1, 2)) > 0).all()
    run.epoch(2)
    assert all(np.array_equal(a, b) for a, b in zip(back, model.get_weights(), strict=True))


def test_a_dropped_filter_changes_nothing_that_its_layer_says():
    """The network with silent filters says what one with any other weights in them says."""
    model, mixer = network(), RePr(1, 1, 1, 0.3)
    mixer.mix([model])
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32")
    before = keras.ops.convert_to_numpy(model(x, training=False))
    weights = model.get_weights()
    for chain in chains(model):
        weights[chain.kernel][..., weights[chain.scale] == 0] = 3.0
    model.set_weights(weights)
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(model(x, training=False)), before, atol=1e-5
    )


def test_what_is_out_of_range_is_refused():
    with pytest.raises(kgraft.UserError, match=r"share=1\.0"):
        RePr(share=1.0)
    with pytest.raises(kgraft.UserError, match="cycles=0"):
        RePr(cycles=0)


def silent_filters(model):
    """For each convolution but the first, which filters say nothing."""
    weights = model.get_weights()
    return [weights[chain.scale] == 0 for chain in chains(model)[1:]]


def count(masks):
    return sum(int(mask.sum()) for mask in masks)


def dropped():
    """A model, and a RePr that has just dropped its filters."""
    model = network()
    run = Driven(RePr(full_epochs=1, pruned_epochs=2, cycles=1), [model])
    run.epoch(0)
    assert count(silent_filters(model)) > 0
    return model, run


def test_a_training_that_ends_without_them_brings_filters_back():
    model, run = dropped()
    run.finish()
    assert count(silent_filters(model)) == 0
    back = model.get_weights()
    run.step(0)
    assert all(np.array_equal(a, b) for a, b in zip(back, model.get_weights(), strict=True))


def test_what_one_training_drops_is_not_held_in_another():
    model, run = dropped()
    other = network(1)
    before = other.get_weights()
    Driven(run.mixer, [other]).step(0)
    assert all(np.array_equal(a, b) for a, b in zip(before, other.get_weights(), strict=True))
    model.set_weights([w + np.float32(0.1) for w in model.get_weights()])
    run.step(0)
    assert count(silent_filters(model)) > 0


def test_a_training_that_goes_on_from_there_drops_it_again():
    model, run = dropped()
    masks = silent_filters(model)
    straight, other = dropped()
    run.finish()
    again = Driven(run.mixer, [model], run.state)
    assert all(np.array_equal(a, b) for a, b in zip(masks, silent_filters(model), strict=True))
    again.epoch(2)
    other.epoch(2)
    for a, b in zip(model.get_weights(), straight.get_weights(), strict=True):
        assert np.array_equal(a, b)


def test_fits_of_one_epoch_are_one_fit_of_them_all():
    def fitted(*epochs):
        model = network()
        model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse")
        run = GraftingFit([model], mixer=RePr(full_epochs=1, pruned_epochs=2, cycles=1))
        counts = []
        for count_ in epochs:
            run.fit(x, y, epochs=count_, batch_size=8, verbose=0)
            counts.append(count(silent_filters(model)))
        assert not any(counts)
        return model.get_weights()

    x = np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype("float32")
    y = np.zeros((16, *network().output_shape[1:]), "float32")
    whole, parts = fitted(5), fitted(1, 1, 1, 1, 1)
    assert all(np.array_equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_a_training_on_new_weights_forgets_what_was_dropped():
    model, run = dropped()
    model.set_weights(network(1).get_weights())
    before = model.get_weights()
    again = Driven(run.mixer, [model], run.state)
    again.step(0)
    again.epoch(2)
    again.finish()
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_one_that_goes_on_in_another_process_holds_and_brings_back_what_is_silent(caplog):
    model, run = dropped()
    masks = silent_filters(model)
    with caplog.at_level("WARNING", "kgraft"):
        again = Driven(run.mixer, [model])
    assert f"{count(masks)} filters of" in caplog.text
    model.set_weights([w + np.float32(0.1) for w in model.get_weights()])
    again.step(0)
    assert all(np.array_equal(a, b) for a, b in zip(masks, silent_filters(model), strict=True))
    again.epoch(1)
    assert count(silent_filters(model)) == count(masks)
    again.epoch(2)
    assert count(silent_filters(model)) == 0


def test_within_a_process_it_goes_on_with_what_it_knows():
    model, run = dropped()
    straight, other = dropped()
    Driven(run.mixer, [model], run.state).epoch(2)
    other.epoch(2)
    for a, b in zip(model.get_weights(), straight.get_weights(), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("schedule", [{"every": 2}, {"epochs": 5}])
def test_another_schedule_than_its_own_is_refused(schedule):
    name = next(iter(schedule))
    with pytest.raises(kgraft.UserError, match=f"RePr has a schedule of its own: {name}="):
        RePr(1, 1, 1).scheduled(**schedule)
    assert RePr(1, 1, 1).scheduled(evaluate="before").evaluate == "before"
    assert kgraft.Graft().scheduled(every=7, epochs=1, evaluate="before").every == 7
