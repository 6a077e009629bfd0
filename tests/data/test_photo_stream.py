import collections
import gc
import threading
import time
import tracemalloc

import keras
import numpy as np
import pytest
from PIL import Image

from kgraft.data import Augment
from kgraft.data.crops import CentreCrop, RandomResizedCrop
from kgraft.data.photo_stream import OrderedPhotos, PhotoStream
from kgraft.data.photos import Files, Photos
from kgraft.data.windows import window_of
from kgraft.errors import UserError
from tests.data.test_decode import photograph

COUNT, SIDE = 50, 16
pytestmark = pytest.mark.core


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for k in range(COUNT):
        size = (20 + 3 * (k % 7), 20 + 5 * (k % 4))
        Image.fromarray(photograph(*size, seed=k)).save(root / f"{k}.jpg", quality=90)
    return Files(root, [f"{k}.jpg" for k in range(COUNT)])


class Counted:
    """A source that counts how often each photograph is asked for."""

    def __init__(self, files):
        self.files, self.opened_times = files, collections.Counter()

    def __len__(self):
        return len(self.files)

    def name(self, number):
        return self.files.name(number)

    def opened(self, number):
        self.opened_times[number] += 1
        return self.files.opened(number)


LABELS = np.arange(COUNT)


def stream_of(source, **options):
    given = {"batch_size": 8, "seed": 3, "peer": 0, "peers": 3, "memory": 1, **options}
    return PhotoStream(Photos.of(source, SIDE), LABELS, **given)


def arrays(batches):
    return [tuple(keras.ops.convert_to_numpy(part) for part in batch) for batch in batches]


def beside(feeds, epoch=0):
    """All batches of some feeds, read in turns."""
    readers = [feed.epoch(epoch) for feed in feeds]
    found = [[] for _ in readers]
    while True:
        drawn = [next(reader, None) for reader in readers]
        if drawn[0] is None:
            return [arrays(own) for own in found]
        for own, batch in zip(found, drawn, strict=True):
            own.append(batch)


def assert_same(these, those):
    assert len(these) == len(those)
    for (x, y), (u, v) in zip(these, those, strict=True):
        np.testing.assert_array_equal(x, u)
        np.testing.assert_array_equal(y, v)


@pytest.mark.parametrize("memory", [1, 2 * 3 * SIDE**2 * 3 * 32, 10**9])
def test_peers_share_the_decodings_and_have_orders_and_crops_of_their_own(files, memory):
    source = Counted(files)
    stream = stream_of(source, memory=memory)
    peers = beside([stream.for_peer(k) for k in range(3)])
    assert source.opened_times == dict.fromkeys(range(COUNT), 1)
    orders = [np.concatenate([y for _, y in own]) for own in peers]
    for own in orders:
        assert sorted(own) == list(range(COUNT))
    assert not np.array_equal(orders[0], orders[1])
    window = stream.windows.size
    for start in range(0, COUNT, window):  # the same photographs, each in its order
        part = slice(start, start + window)
        assert len({frozenset(own[part]) for own in orders}) == 1
    crops = [dict(zip(order, np.concatenate([x for x, _ in own]), strict=True))
             for order, own in zip(orders, peers, strict=True)]  # fmt: skip
    assert sum(np.array_equal(crops[0][k], crops[1][k]) for k in range(COUNT)) < 3


def test_a_peers_batches_follow_from_its_number_and_the_epoch_alone(files):
    stream = stream_of(files)
    _, together, _ = beside([stream.for_peer(k) for k in range(3)], epoch=2)
    assert_same(together, arrays(stream_of(files, workers=1).for_peer(1).epoch(2)))
    assert_same(together, arrays(stream.for_peer(1).epoch(2)))
    other = np.concatenate([y for _, y in arrays(stream.for_peer(1).epoch(1))])
    assert not np.array_equal(other, np.concatenate([y for _, y in together]))
    other = arrays(stream_of(files, seed=4).for_peer(1).epoch(2))
    assert not np.array_equal(other[0][0], together[0][0])


def test_pixels_are_crops_of_the_photograph_normalised(files):
    crop = RandomResizedCrop(SIDE, area=(0.5, 1.0), jitter=0.2)
    augment = Augment(0, False, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    stream = stream_of(files, crop=crop, augment=augment)
    (x, y), *_ = arrays(stream.epoch(0))
    members = stream.windows.members(0, 0)[0].tolist()
    rng = np.random.default_rng([3, 0, 0, 0, 6])
    numbers = crop.draw(rng, len(members))
    for image, label in zip(x, y, strict=True):
        pixels = np.asarray(Image.open(files.name(int(label))))
        seen = crop(pixels, crop.crop(numbers[members.index(label)], *pixels.shape[:2]))
        expected = (seen / 255 - augment.mean) / augment.std
        np.testing.assert_allclose(image, expected, atol=1e-5)


def test_the_host_normalises_as_the_device_does():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3), np.uint8)
    kept = pixels.copy()
    augment = Augment(0, False, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    there = keras.ops.convert_to_numpy(augment(keras.ops.convert_to_tensor(pixels)))
    assert augment.normalised(pixels).dtype == np.float32
    # XLA multiplies with reciprocals
    atol = 1e-6 if keras.config.backend() == "jax" else 0.0
    np.testing.assert_allclose(augment.normalised(pixels), there, rtol=0, atol=atol)
    np.testing.assert_array_equal(pixels, kept)
    one = Augment(0, False, (0.5,), (0.25,)).normalised(pixels)
    np.testing.assert_array_equal(one, (np.float32(pixels) / 255 - np.float32(0.5)) * 4)


class Slow(Counted):
    def opened(self, number):
        time.sleep(0.01)
        return super().opened(number)


def test_no_peers_first_batch_waits_for_the_whole_window(files):
    source = Slow(files)
    stream = stream_of(source, memory=2**20, batch_size=6, workers=1, peers=2)
    assert stream.windows.size == COUNT
    readers = [stream.for_peer(k).epoch(0) for k in range(2)]
    for reader in readers:
        next(reader)
    assert len(source.opened_times) <= 6 + 6 + 2 * 8  # two batches, and a piece or two on the way
    for reader in readers:
        reader.close()


def test_the_time_in_which_readers_wait_is_counted(files):
    stream = stream_of(Slow(files), workers=1)
    began = time.perf_counter()
    assert stream.waited == 0.0
    list(stream.for_peer(1).epoch(0))
    seconds = time.perf_counter() - began
    assert 0.01 * COUNT < stream.waited <= seconds


def test_independent_orders_reach_over_the_whole_set_and_are_decoded_one_by_one(files):
    source = Counted(files)
    stream = stream_of(source, order="independent")
    peers = beside([stream.for_peer(k) for k in range(3)])
    assert source.opened_times == dict.fromkeys(range(COUNT), 3)
    first = [set(np.concatenate([y for _, y in own])[:16]) for own in peers]
    assert first[0] != first[1] != first[2]
    assert_same(peers[1], arrays(stream_of(files, order="independent").for_peer(1).epoch(0)))


def test_a_view_shows_the_same_photographs_in_other_crops(files):
    stream = stream_of(files)
    own, other = beside([stream.for_peer(1), stream.for_peer(1).view(2)])
    for (x, y), (u, v) in zip(own, other, strict=True):
        np.testing.assert_array_equal(y, v)
        assert not np.array_equal(x, u)


def test_a_peer_that_comes_late_or_lags_behind_reads_the_same(files):
    source = Counted(files)
    stream = stream_of(source)
    expected = arrays(stream.for_peer(1).epoch(0))
    first = stream.epoch(0)
    for _ in range(5):
        next(first)
    assert_same(arrays(stream.for_peer(1).epoch(0)), expected)  # enters late, and overtakes
    laggard = stream.for_peer(1).epoch(0)
    begun = [next(laggard)]
    list(first)
    assert_same(arrays([*begun, *laggard]), expected)


def test_no_more_than_two_windows_and_one_behind_are_held(files):
    """Read without the threads that read ahead: a slow one's may come at any time."""
    stream = stream_of(files, batch_size=2)
    lags = stream.for_peer(1)
    assert stream.windows.size == 4
    shared, fast = stream.enter(0)
    _, slow = lags.enter(0)
    next(shared.batches(slow, 2))
    held = [len(shared._open) for _ in shared.batches(fast, 2)]
    assert max(held) == 3
    assert held[-1] == 2
    stream.leave(shared, fast)
    lags.leave(shared, slow)
    assert not shared._open


def test_threads_end_with_their_readers(files):
    before = threading.active_count()
    stream = stream_of(files)
    readers = [stream.for_peer(k).epoch(0) for k in range(3)]
    next(readers[0])
    for reader in readers:  # one has begun, two have not
        reader.close()
    assert not stream._hall._epochs
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_a_reader_that_nobody_closes_leaves_when_it_is_gone(files):
    stream = stream_of(files)
    next(stream.epoch(0))
    gc.collect()
    assert not stream._hall._epochs


def test_a_photograph_that_cannot_be_read_is_named(files, tmp_path):
    for k in range(8):
        (tmp_path / f"{k}.jpg").write_bytes((files.root / f"{k}.jpg").read_bytes())
    (tmp_path / "5.jpg").write_bytes(b"hello")
    photos = Photos.of(Files(tmp_path, [f"{k}.jpg" for k in range(8)]), SIDE)
    stream = PhotoStream(photos, np.arange(8), batch_size=4, seed=0, peer=0)
    with pytest.raises(UserError, match=r"5\.jpg cannot be read: it is no image"):
        list(stream.epoch(0))
    (tmp_path / "5.jpg").unlink()
    with pytest.raises(UserError, match=r"5\.jpg cannot be read: No such file"):
        list(OrderedPhotos(photos, np.arange(8), batch_size=4).epoch(0))


def test_a_large_photograph_may_be_decoded_smaller(tmp_path):
    Image.fromarray(photograph(400, 600)).save(tmp_path / "0.jpg", quality=95)
    photos = Photos.of(Files(tmp_path, ["0.jpg"]), SIDE)
    options = {"batch_size": 1, "seed": 0, "peer": 0}
    whole, scaled = (
        arrays(PhotoStream(photos, np.zeros(1, int), scaled=own, **options).epoch(0))
        for own in (False, True)
    )
    difference = np.abs(whole[0][0] - scaled[0][0])
    assert 0 < difference.mean() < 0.02
    ordered = [
        arrays(OrderedPhotos(photos, np.zeros(1, int), batch_size=1, scaled=own).epoch(0))
        for own in (False, True)
    ]
    assert 0 < np.abs(ordered[0][0][0] - ordered[1][0][0]).mean() < 0.02


def test_evaluation_sees_the_middles_in_order(files):
    photos = Photos.of(files, SIDE)[10:35]
    feed = OrderedPhotos(photos, LABELS[10:35], batch_size=8, crop=CentreCrop(SIDE, resize=20))
    batches = arrays(feed.epoch(0))
    assert feed.steps == len(batches) == 4
    np.testing.assert_array_equal(np.concatenate([y for _, y in batches]), LABELS[10:35])
    seen = CentreCrop(SIDE, resize=20)(np.asarray(Image.open(files.name(12))))
    np.testing.assert_allclose(batches[0][0][2], seen / 255, atol=1e-6)


ALL = COUNT * SIDE**2 * 3


@pytest.mark.parametrize(("memory", "times"), [(ALL, 1), (ALL - 1, 2)])
def test_evaluation_decodes_once_what_fits_in_the_memory(files, memory, times):
    source = Counted(files)
    feed = OrderedPhotos(Photos.of(source, SIDE), LABELS, batch_size=8, memory=memory)
    next(feed.epoch(0))  # broken off: nothing is kept
    source.opened_times.clear()
    first, again = arrays(feed.epoch(0)), arrays(feed.epoch(1))
    assert_same(first, again)
    assert source.opened_times == dict.fromkeys(range(COUNT), times)


def test_some_photographs_are_chosen_as_an_arrays_rows_are(files):
    photos = Photos.of(files, SIDE)
    assert photos.shape == (COUNT, SIDE, SIDE, 3) and photos.nbytes == COUNT * SIDE**2 * 3
    assert photos[5:8].numbers.tolist() == [5, 6, 7]
    assert photos[LABELS % 2 == 1][:2].numbers.tolist() == [1, 3]


def test_two_windows_of_all_peers_fit_in_the_memory(files):
    photos = Photos.of(files, SIDE)
    image = SIDE**2 * 3
    assert window_of(2 * 3 * image * 33, 3, photos, 8) == 32
    assert window_of(1, 3, photos, 8) == 16  # two batches at least
    assert window_of(10**12, 3, photos, 8) == COUNT


def test_a_set_ten_times_as_large_as_the_memory_stays_within_it(files):
    memory, side, peers = 4 << 20, 48, 2
    count = 10 * memory // (peers * side**2 * 3)
    many = Photos.of(Files(files.root, [f"{k % COUNT}.jpg" for k in range(count)]), side)
    stream = PhotoStream(
        many, np.arange(count), batch_size=8, seed=0, peer=0, peers=peers, memory=memory
    )
    readers = [stream.for_peer(k).epoch(0) for k in range(peers)]
    next(readers[0]), next(readers[1])  # what libraries take once
    gc.collect()
    tracemalloc.start()
    try:
        seen = 1 + sum(1 for _ in zip(*readers, strict=True))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert seen == stream.steps
    floats = 2 * peers * 4 * 8 * side**2 * 3  # a batch of each peer in use, and the next one
    assert 0.5 * memory < most < memory + floats + 2**20  # what is decoded and on its way besides


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 51}, "batch size 51: expected 1..50"),
        ({"order": "shuffled"}, "order"),
        ({"memory": 0}, "memory"),
        ({"peers": 0}, "peers=0"),
        ({"peer": -1}, "peer=-1"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"workers": 0}, "workers=0"),
        ({"crop": RandomResizedCrop(8)}, "it shows 8x8; expected 16x16"),
    ],
)
def test_a_stream_that_cannot_be_is_refused(files, options, said):
    with pytest.raises(UserError, match=said):
        stream_of(files, **options)
    with pytest.raises(UserError, match="one a photograph"):
        PhotoStream(Photos.of(files, SIDE), LABELS[:3], batch_size=2, seed=0, peer=0)
    with pytest.raises(UserError, match=r"batch size 51: expected 1\.\.50, the images"):
        OrderedPhotos(Photos.of(files, SIDE), LABELS, batch_size=51)


def test_a_training_that_goes_on_sees_the_photographs_that_it_would_have_seen(files):
    stream = stream_of(files)
    whole = [beside([stream.for_peer(k) for k in range(2)], epoch) for epoch in range(3)]
    again = stream_of(files)
    for own, expected in zip(beside([again.for_peer(k) for k in range(2)], 2), whole[2],
                             strict=True):  # fmt: skip
        assert_same(own, expected)
