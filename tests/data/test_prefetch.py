"""A thread reads ahead: same batches, same order, no more than asked, errors in their place."""

import threading
import time

import keras
import numpy as np
import pytest

from kgraft.data import Augment, BatchStream
from kgraft.data.prefetch import prefetched

pytestmark = pytest.mark.core


def threads():
    return [t for t in threading.enumerate() if t.name == "kgraft-prefetch"]


def test_order_is_kept_and_the_thread_ends():
    assert list(prefetched(range(50), lambda n: n * n)) == [n * n for n in range(50)]
    assert not threads()


def test_no_more_than_depth_batches_are_ahead():
    made = []
    reader = prefetched(range(100), made.append, depth=3)
    next(reader)
    time.sleep(0.3)
    assert len(made) <= 1 + 3 + 1  # read, waiting, and one in the thread's hand
    reader.close()
    assert not threads()


def test_an_error_comes_after_the_batches_before_it():
    def batches():
        yield 1
        raise OSError("disk gone")

    reader = prefetched(batches(), lambda n: n)
    assert next(reader) == 1
    with pytest.raises(OSError, match="disk gone"):
        next(reader)
    assert not threads()


def test_a_stream_that_is_not_resident_yields_the_same_batches():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    labels = rng.integers(0, 5, 20)
    options = {"batch_size": 6, "seed": 1, "peer": 0, "augment": Augment(2)}
    resident = BatchStream(images, labels, **options)
    hosted = BatchStream(images, labels, resident=False, **options)
    for own, other in zip(hosted.for_peer(3).epoch(2), resident.for_peer(3).epoch(2), strict=True):
        for part, expected in zip(own, other, strict=True):
            np.testing.assert_array_equal(
                keras.ops.convert_to_numpy(part), keras.ops.convert_to_numpy(expected)
            )
    assert isinstance(hosted._images, np.ndarray)
    assert not threads()
