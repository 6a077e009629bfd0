import numpy as np
import pytest

from kgraft.errors import UserError
from kgraft.retrieval import load_identities
from kgraft.retrieval.folders import DUKE, MARKET, OTHER, has_identities, read_identities
from tests.reference import people


def touch(root, *paths):
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(people.jpeg(1, 1, 1))
    return root


def market(root):
    return touch(
        root,
        "bounding_box_train/0002_c1s1_000451_03.jpg",
        "bounding_box_train/0002_c3s1_000551_00.jpg",
        "bounding_box_train/0007_c2s3_070952_01.jpg",
        "bounding_box_train/-1_c2s3_070952_02.jpg",
        "bounding_box_train/Thumbs.db",
        "query/0001_c1s1_001051_00.jpg",
        "bounding_box_test/0001_c2s1_001976_01.jpg",
        "bounding_box_test/0000_c6s4_002202_02.jpg",
        "bounding_box_test/-1_c4s6_021210_03.jpg",
    )


def by_path(part):
    cameras = [None] * len(part) if part.cameras is None else part.cameras.tolist()
    return dict(zip(part.paths, zip(part.identities.tolist(), cameras, strict=True), strict=True))


def test_names_of_market_say_identity_and_camera(tmp_path):
    found = read_identities(market(tmp_path))
    assert found.layout == MARKET and has_identities(tmp_path)
    assert found.names == ("0002", "0007") and found.others == 1
    assert by_path(found.train) == {
        "bounding_box_train/0002_c1s1_000451_03.jpg": (0, 1),
        "bounding_box_train/0002_c3s1_000551_00.jpg": (0, 3),
        "bounding_box_train/0007_c2s3_070952_01.jpg": (1, 2),
    }
    assert by_path(found.query) == {"query/0001_c1s1_001051_00.jpg": (1, 1)}
    assert by_path(found.gallery) == {
        "bounding_box_test/0001_c2s1_001976_01.jpg": (1, 2),
        "bounding_box_test/0000_c6s4_002202_02.jpg": (0, 6),
        "bounding_box_test/-1_c4s6_021210_03.jpg": (-1, 4),
    }
    assert len(found.differences()) == 6
    assert found.differences()[0] == "bounding_box_train: 3 images, Market-1501 has 12,936"


@pytest.mark.parametrize("name", ["market1501", "duke"])
def test_trees_like_the_published_ones_are_read(tmp_path, name):
    plan = people.small(name)
    people.write(tmp_path, plan, name)
    found = read_identities(tmp_path)
    count, sought, cameras, images, junk, nobody = plan
    assert found.layout == (MARKET if name == "market1501" else DUKE)
    assert tuple(map(len, found.parts)) == images and found.others == 1
    assert len(found.names) == count and len(found.query.people) == sought
    assert (found.gallery.identities == -1).sum() == junk
    assert (found.gallery.identities == 0).sum() == nobody
    assert np.unique(found.gallery.cameras).tolist() == list(range(1, cameras + 1))
    assert not set(found.names) & {f"{own:04d}" for own in found.query.people}


def test_any_other_folder_has_a_folder_an_identity(tmp_path):
    root = touch(
        tmp_path,
        "train/ann/cam1-a.jpg",
        "train/bob/cam2-a.png",
        "train/bob/notes.txt",
        "query/eve/cam1-a.jpg",
        "gallery/eve/cam2-b.jpg",
        "gallery/-1/cam2-x.jpg",
        "gallery/kim/cam2-b.jpg",
    )
    found = read_identities(root, camera="cam([0-9]+)")
    assert found.layout == OTHER and found.names == ("ann", "bob") and found.others == 1
    assert found.differences() == []
    gallery = by_path(found.gallery)
    ((eve, one),) = by_path(found.query).values()
    assert gallery["gallery/eve/cam2-b.jpg"] == (eve, 1 - one)
    assert gallery["gallery/-1/cam2-x.jpg"][0] == -1
    assert gallery["gallery/kim/cam2-b.jpg"][0] not in (-1, eve)
    assert read_identities(root).query.cameras is None


@pytest.mark.parametrize(
    ("paths", "camera", "message"),
    [
        (["train/a/1.jpg", "query/a/1.jpg"], None, r"has no gallery: expected train, query, gal"),
        (["bounding_box_train/1_c1.jpg"], None, r"has no query and no bounding_box_test"),
        (["train/a/1.jpg", "query/a/1.jpg", "gallery/b/1.jpg"], None, "shows 1 identities"),
        (["train/a/1.jpg", "query/a/1.txt", "gallery/b/1.jpg"], None, "query holds no image"),
        (["train/a/1.jpg", "query/a/1.jpg", "gallery/b/1.jpg"], "c([0-9])", "nothing like 'c"),
        (["train/a/1.jpg", "query/a/1.jpg", "gallery/b/1.jpg"], "c[0-9]", "has 0 groups"),
        (["train/a/1.jpg", "query/a/1.jpg", "gallery/b/1.jpg"], "c([0-9]", "no regular expression"),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path, paths, camera, message):
    with pytest.raises(UserError, match=message):
        read_identities(touch(tmp_path, *paths), camera=camera)


def test_other_mistakes_are_told(tmp_path):
    with pytest.raises(UserError, match="is no folder"):
        read_identities(tmp_path / "nothing")
    with pytest.raises(UserError, match="say the cameras"):
        read_identities(market(tmp_path), camera="c([0-9])")
    touch(tmp_path, "query/somebody.jpg")
    with pytest.raises(UserError, match=r"query/somebody.jpg: the name says no identity"):
        read_identities(tmp_path)


def test_queries_without_anything_to_be_found_are_named(tmp_path):
    root = touch(
        market(tmp_path),
        "query/0009_c1s1_001051_00.jpg",
        "query/0008_c1s1_001051_00.jpg",
        "bounding_box_test/0008_c1s1_001976_01.jpg",
    )
    expected = ["query/0008_c1s1_001051_00.jpg", "query/0009_c1s1_001051_00.jpg"]
    assert sorted(read_identities(root).unmatched()) == expected
    plain = touch(tmp_path / "plain", "train/a/1.jpg", "train/b/1.jpg", "query/c/1.jpg")
    touch(plain, "query/d/1.jpg", "gallery/c/2.jpg")
    assert read_identities(plain).unmatched() == ["query/d/1.jpg"]


@pytest.mark.parametrize(
    ("gone", "kept", "said"),
    [
        ("bounding_box_test", None, "has no bounding_box_test: expected bounding_box_train, query"),
        ("query", None, "has no query: expected"),
        ("bounding_box_test", "Bounding_Box_Test", r"\(but Bounding_Box_Test: rename\)"),
    ],
)
def test_a_folder_of_identities_without_a_part_is_still_one(tmp_path, gone, kept, said):
    market(tmp_path)
    (tmp_path / gone).rename(tmp_path / (kept or ".hidden"))
    assert has_identities(tmp_path)
    with pytest.raises(UserError, match=said):
        read_identities(str(tmp_path))


def test_folders_of_classes_are_none_of_identities(tmp_path):
    touch(tmp_path, "train/a/1.jpg", "train/query/1.jpg", "test/a/1.jpg")
    assert not has_identities(tmp_path) and not has_identities(tmp_path / "nowhere")
    touch(tmp_path, "other/query/1.jpg", "other/gallery/1.jpg")
    assert not has_identities(tmp_path / "other")


def test_a_gallery_in_which_nothing_is_to_be_found_is_refused(tmp_path):
    root = market(tmp_path / "market")
    (root / "bounding_box_test/0001_c2s1_001976_01.jpg").unlink()
    with pytest.raises(UserError, match="no image of its identity by another camera"):
        load_identities(root, tmp_path)


@pytest.mark.parametrize("size", [(0, 16), (32,), (32, 16, 3), 32])
def test_a_size_that_is_none_is_refused(tmp_path, size):
    with pytest.raises(UserError, match="expected rows and columns"):
        load_identities(market(tmp_path / "market"), tmp_path, size=size)
