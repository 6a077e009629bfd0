import numpy as np
import pytest
from keras import ops

from kgraft import data
from kgraft.errors import UserError

pytestmark = pytest.mark.core

COUNT = 11
# image i holds the value 10 i + 5 in every pixel
IMAGES = np.broadcast_to(10 * np.arange(COUNT) + 5, (4, 4, 2, COUNT)).T.astype(np.uint8)
LABELS = np.arange(COUNT)
PIXELS = data.Augment(pad=0, flip=False)


def stream(**options):
    given = {"batch_size": 4, "seed": 3, "peer": 0, "augment": PIXELS} | options
    return data.BatchStream(IMAGES, LABELS, **given)


def epoch(batches, number=0):
    return [tuple(map(ops.convert_to_numpy, batch)) for batch in batches.epoch(number)]


def labels_of(batches, number=0):
    return np.concatenate([y for _, y in epoch(batches, number)]).tolist()


def test_batches_follow_the_order_of_the_epoch_and_keep_the_last_partial_one():
    batches = epoch(stream(), 2)
    assert [len(y) for _, y in batches] == [4, 4, 3]
    order = data.epoch_order(COUNT, seed=3, peer=0, epoch=2)
    assert np.concatenate([y for _, y in batches]).tolist() == order.tolist()


def test_images_stay_with_their_labels():
    for x, y in epoch(stream()):
        np.testing.assert_array_equal(np.round(255 * x), IMAGES[y])


def test_the_length_is_the_number_of_batches():
    for batch_size in (1, 4, 5, 10, 11):
        batches = stream(batch_size=batch_size)
        assert len(batches) == len(epoch(batches))


def test_an_epoch_can_be_asked_for_again():
    augmented = stream(augment=data.Augment(pad=2))
    epoch(augmented, 0)
    first, again = epoch(augmented, 1), epoch(stream(augment=data.Augment(pad=2)), 1)
    for (x, y), (x_again, y_again) in zip(first, again, strict=True):
        np.testing.assert_array_equal(x, x_again)
        np.testing.assert_array_equal(y, y_again)


def test_crops_are_those_of_the_peers_generator():
    augment = data.Augment(pad=2)
    rng = data.augmentation_rng(seed=3, peer=0, epoch=1)
    for x, y in epoch(stream(augment=augment), 1):
        expected = augment(ops.convert_to_tensor(IMAGES[y]), augment.draw(rng, len(y)))
        np.testing.assert_array_equal(x, ops.convert_to_numpy(expected))


def test_peers_share_the_images_on_the_device_and_have_orders_of_their_own():
    first = stream()
    second = first.for_peer(1)
    assert second._images is first._images
    assert second._labels is first._labels
    assert labels_of(second) == data.epoch_order(COUNT, seed=3, peer=1, epoch=0).tolist()
    assert labels_of(first) == data.epoch_order(COUNT, seed=3, peer=0, epoch=0).tolist()


def test_the_same_peer_number_gives_the_same_order():
    assert labels_of(stream(peer=5)) == labels_of(stream().for_peer(5))


def test_peers_can_be_read_in_lock_step():
    streams = [stream(), stream().for_peer(1)]
    together = list(zip(*(s.epoch(0) for s in streams), strict=True))
    for k, alone in enumerate(streams):
        labels = [ops.convert_to_numpy(batches[k][1]) for batches in together]
        assert np.concatenate(labels).tolist() == labels_of(alone)


def test_without_shuffling_images_come_as_they_lie():
    assert labels_of(stream(shuffle=False), 7) == list(range(COUNT))


def test_without_augmentation_pixels_are_scaled_to_one():
    x, y = epoch(stream(augment=None))[0]
    np.testing.assert_allclose(x, IMAGES[y] / 255, rtol=1e-6)


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (IMAGES.astype(np.float32), LABELS, "images: float32"),
        (IMAGES[..., 0], LABELS, r"images: uint8 of shape \(11, 2, 4\)"),
        (
            IMAGES,
            LABELS[:-1],
            r"labels: int64 of shape \(10,\); expected integers of shape \(11,\)",
        ),
        (IMAGES, LABELS / 1, "labels: float64"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(images, labels, said):
    with pytest.raises(UserError, match=said):
        data.BatchStream(images, labels, batch_size=2, seed=0, peer=0)


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(UserError, match=r"batch size 12: expected 1..11"):
        stream(batch_size=12)
