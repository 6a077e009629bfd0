"""P x I batches: who comes, how often, and beside whom."""

import collections

import numpy as np
import pytest
from PIL import Image

from kgraft.data.identity_batches import IdentityBatches
from kgraft.data.photo_stream import PhotoStream
from kgraft.data.photos import Files, Photos
from kgraft.errors import UserError

pytestmark = pytest.mark.core
SIZES = (1, 2, 3, 4, 5, 7, 8, 9, 12, 17)
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(len(SIZES)), SIZES))


def dealt(own, **place):
    return own.dealt(**{"seed": 0, "group": 0, "epoch": 0, **place})


def test_every_image_is_seen_and_no_more_of_an_identity_than_its_groups_need():
    own = IdentityBatches(LABELS, batch_size=8, instances=4)
    images = dealt(own)
    assert len(images) == own.count == 4 * sum(-(-size // 4) for size in SIZES)
    times = collections.Counter(images.tolist())
    assert set(times) == set(range(len(LABELS)))
    for identity, size in enumerate(SIZES):
        often = [times[k] for k in np.flatnonzero(LABELS == identity).tolist()]
        assert sum(often) == -(-size // 4) * 4
        assert max(often) <= max(2, -(-4 // size))


def test_a_group_is_of_one_identity_and_holds_no_image_twice_where_there_are_enough():
    own = IdentityBatches(LABELS, batch_size=8, instances=4)
    for epoch in range(20):
        for group in dealt(own, epoch=epoch).reshape(-1, 4):
            (identity,) = set(LABELS[group].tolist())
            assert len(set(group.tolist())) == min(SIZES[identity], 4)


def test_identities_of_a_batch_differ_until_nothing_else_is_left():
    own = IdentityBatches(LABELS, batch_size=12, instances=4)
    images = dealt(own)
    for seed in range(30):
        order = own.order(images, np.random.default_rng(seed))
        assert sorted(order.tolist()) == list(range(len(images)))
        batches = np.split(LABELS[images[order]], range(12, len(images), 12))
        assert all(len(set(batch.tolist())) == 3 for batch in batches[:4])
    alone = own.order(np.flatnonzero(LABELS == 9)[:12], np.random.default_rng(1))
    assert sorted(alone.tolist()) == list(range(12))  # of one identity there is no other


def test_epochs_groups_and_seeds_are_dealt_anew():
    own = IdentityBatches(LABELS, batch_size=8, instances=2)
    first = dealt(own)
    np.testing.assert_array_equal(first, dealt(own))
    for place in ({"epoch": 1}, {"group": 1}, {"seed": 1}):
        assert (first != dealt(own, **place)).any()


@pytest.mark.parametrize(("batch_size", "instances"), [(10, 4), (4, 4), (8, 1), (8, 0)])
def test_batches_that_cannot_be_are_refused(batch_size, instances):
    with pytest.raises(UserError, match=r"instances|images of an identity"):
        IdentityBatches(LABELS, batch_size=batch_size, instances=instances)


@pytest.mark.parametrize("order", ["windowed", "independent"])
@pytest.mark.parametrize("memory", [1, 1 << 30])
def test_peers_see_all_photographs_in_batches_of_their_own(tmp_path, order, memory):
    for k, label in enumerate(LABELS):
        Image.new("RGB", (8, 8), (int(label), k, 0)).save(tmp_path / f"{k}.png")
    photos = Photos.of(Files(tmp_path, [f"{k}.png" for k in range(len(LABELS))]), 8)
    stream = PhotoStream(
        photos,
        LABELS,
        batch_size=8,
        seed=0,
        peer=0,
        peers=2,
        order=order,
        memory=memory,
        instances=4,
    )
    assert stream.steps == -(-stream.count // 8)
    seen = []
    for peer in range(2):
        batches = [np.asarray(y) for _, y in stream.for_peer(peer).epoch(0)]
        assert len(batches) == stream.steps and [*map(len, batches[:-1])] == [8] * (
            len(batches) - 1
        )
        for labels in batches:
            groups = labels.reshape(-1, 4)
            assert (groups == groups[:, :1]).all()
        seen.append(np.concatenate(batches))
    assert (seen[0] != seen[1]).any()
    np.testing.assert_array_equal(np.sort(seen[0]), np.sort(seen[1]))
