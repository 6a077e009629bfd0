import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kgraft import data
from kgraft.data.order import order_within_batches, steps_of
from kgraft.errors import UserError

pytestmark = pytest.mark.core

numbers = st.integers(0, 2**31)


@settings(max_examples=30, deadline=None)
@given(count=st.integers(0, 200), seed=numbers, peer=numbers, epoch=numbers)
def test_an_order_is_a_permutation_and_always_the_same(count, seed, peer, epoch):
    order = data.epoch_order(count, seed=seed, peer=peer, epoch=epoch)
    assert sorted(order) == list(range(count))
    again = data.epoch_order(count, seed=seed, peer=peer, epoch=epoch)
    np.testing.assert_array_equal(order, again)


def test_orders_are_those_of_numpy_for_good():
    # a resumed run has to see the batches of an earlier version of kgraft
    assert data.epoch_order(8, seed=1, peer=2, epoch=3).tolist() == [7, 3, 6, 0, 4, 2, 1, 5]
    assert data.augmentation_rng(seed=1, peer=2, epoch=3).integers(0, 99, 4).tolist() == [
        27,
        65,
        70,
        37,
    ]


def test_seed_peer_and_epoch_each_change_the_order():
    first = data.epoch_order(100, seed=0, peer=0, epoch=0)
    for other in ({"seed": 1}, {"peer": 1}, {"epoch": 1}):
        order = data.epoch_order(100, **({"seed": 0, "peer": 0, "epoch": 0} | other))
        assert (order != first).any()


def test_swapping_peer_and_epoch_changes_the_order():
    one = data.epoch_order(100, seed=0, peer=1, epoch=2)
    assert (one != data.epoch_order(100, seed=0, peer=2, epoch=1)).any()


def test_without_shuffling_images_come_as_they_lie():
    order = data.epoch_order(5, seed=3, peer=1, epoch=9, shuffle=False)
    assert order.tolist() == [0, 1, 2, 3, 4]


def test_augmentation_draws_do_not_repeat_the_order():
    rng = data.augmentation_rng(seed=0, peer=0, epoch=0)
    assert (rng.permutation(100) != data.epoch_order(100, seed=0, peer=0, epoch=0)).any()


def labelled(labels):
    labels = np.asarray(labels)
    images = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)
    return data.Split(images, labels)


def test_validation_takes_the_same_share_of_every_class():
    train = labelled([0] * 50 + [1] * 30 + [2] * 20)
    rest, validation = data.split_validation(train, 0.1, classes=3, seed=0)
    assert np.bincount(validation.labels).tolist() == [5, 3, 2]
    assert np.bincount(rest.labels).tolist() == [45, 27, 18]


def test_a_count_of_validation_images_is_met_exactly():
    train = labelled([0] * 5 + [1] * 5 + [2] * 5)
    # 7/15 of 5 is 2.33: two of each class, and one more of the first
    _, validation = data.split_validation(train, 7, classes=3, seed=0)
    assert np.bincount(validation.labels).tolist() == [3, 2, 2]


@settings(max_examples=50, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=2, max_size=60),
    share=st.floats(0.001, 0.999),
    seed=numbers,
)
def test_every_image_is_in_one_part_in_its_order(labels, share, seed):
    train = labelled(labels)
    rest, validation = data.split_validation(train, share, classes=5, seed=seed)
    of_rest, of_validation = rest.images.ravel(), validation.images.ravel()
    assert sorted([*of_rest, *of_validation]) == list(range(len(labels)))
    assert sorted(of_rest) == of_rest.tolist()
    assert sorted(of_validation) == of_validation.tolist()
    np.testing.assert_array_equal(np.array(labels)[of_validation], validation.labels)
    assert len(rest) >= 1
    assert len(validation) >= 1


def test_the_seed_chooses_the_validation_images():
    train = labelled([0, 1] * 50)
    parts = [data.split_validation(train, 0.2, classes=2, seed=seed)[1] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(parts[0].images, parts[1].images)
    assert (parts[0].images != parts[2].images).any()


def test_no_validation_leaves_train_whole():
    train = labelled([0, 1, 2])
    assert data.split_validation(train, 0, classes=3, seed=0) == (train, None)


@pytest.mark.parametrize("share", [-0.1, -3, 1.0, 1.5, 10, 11, float("nan"), float("inf")])
def test_a_share_that_leaves_nothing_or_is_none_is_refused(share):
    with pytest.raises(UserError, match="a whole number below the 10 training images"):
        data.split_validation(labelled([0] * 10), share, classes=1, seed=0)


@pytest.mark.parametrize("batch_size", [0, -1, 11])
def test_a_batch_that_the_data_cannot_fill_is_refused(batch_size):
    with pytest.raises(UserError, match=rf"batch size {batch_size}: expected 1..10"):
        data.check_batch_size(batch_size, 10)


def test_a_batch_of_all_images_is_fine():
    data.check_batch_size(10, 10)


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 50), size=st.integers(1, 60), seed=numbers, epoch=numbers)
def test_an_order_within_batches_moves_no_image_to_another_batch(count, size, seed, epoch):
    order = order_within_batches(count, size, seed=seed, peer=0, epoch=epoch)
    np.testing.assert_array_equal(order // size, np.arange(count) // size)
    assert sorted(order) == list(range(count))


def test_short_epochs_without_shuffling_follow_one_another_to_the_datas_end():
    assert [steps_of(e, 5, 3, shuffle=False).tolist() for e in range(3)] == [
        [0, 1, 2],
        [3, 4],
        [0, 1, 2],
    ]
    assert steps_of(4, 5, 3, shuffle=True).tolist() == [0, 1, 2]
    for shuffle in (True, False):
        assert steps_of(4, 5, None, shuffle=shuffle).tolist() == [0, 1, 2, 3, 4]
        assert steps_of(4, 5, 9, shuffle=shuffle).tolist() == [0, 1, 2, 3, 4]
