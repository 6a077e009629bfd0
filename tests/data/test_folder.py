import numpy as np
import pytest
from PIL import Image

from kgraft.data.examine import examined
from kgraft.data.folder import read_folder
from kgraft.data.photos import Files
from kgraft.errors import UserError
from tests.data.test_decode import photograph


def tree(root, **counts):
    """Folders of photographs: `tree(root, train__cat=3)` makes root/train/cat with three."""
    for place, count in counts.items():
        folder = root.joinpath(*place.split("__"))
        folder.mkdir(parents=True, exist_ok=True)
        for k in range(count):
            Image.fromarray(photograph(20 + k, 30, seed=k)).save(folder / f"{k}.jpg")
    return root


def test_the_parts_are_found_and_the_classes_numbered_by_name(tmp_path):
    root = tree(
        tmp_path, train__cat=3, train__ant=2, val__cat=1, test__ant=2, test__cat=1, train__bee=1
    )
    folder = read_folder(root)
    assert folder.class_names == ("ant", "bee", "cat")
    assert [part.name for part in folder.parts] == ["train", "val", "test"]
    assert np.bincount(folder.train.labels).tolist() == [2, 1, 3]
    assert np.bincount(folder.test.labels).tolist() == [2, 0, 1]
    named = dict(zip(folder.train.paths, folder.train.labels, strict=True))
    assert named["train/cat/2.jpg"] == 2 and named["train/ant/0.jpg"] == 0


def test_what_is_held_out_alone_is_the_test_part(tmp_path):
    folder = read_folder(tree(tmp_path, train__a=2, train__b=2, validation__a=1))
    assert folder.validation is None and folder.test.name == "validation"


def test_classes_in_the_root_have_no_test_part(tmp_path):
    folder = read_folder(tree(tmp_path, cat=4, dog=3))
    assert folder.test is None and folder.class_names == ("cat", "dog")
    assert sorted(folder.train.paths)[0] == "cat/0.jpg"


def test_the_order_is_shuffled_once_for_all(tmp_path):
    folder = read_folder(tree(tmp_path, a=20, b=20))
    assert 0 < folder.train.labels[:10].sum() < 10
    assert folder.train.paths == read_folder(tmp_path).train.paths


def test_deeper_folders_links_and_capital_letters_are_read_hidden_names_are_not(tmp_path):
    root = tree(tmp_path / "set", a__deep__deeper=1, b=1)
    tree(tmp_path, elsewhere=2)
    (root / "c").symlink_to(tmp_path / "elsewhere")
    (root / "b" / "0.jpg").rename(root / "b" / "0.JPEG")
    for hidden in (".hidden.jpg", "notes.txt"):
        (root / "b" / hidden).write_text("x")
    (root / ".git").mkdir()
    folder = read_folder(root)
    assert sorted(folder.train.paths) == ["a/deep/deeper/0.jpg", "b/0.JPEG", "c/0.jpg", "c/1.jpg"]
    assert folder.others == 1


@pytest.mark.parametrize(
    ("places", "said"),
    [
        ({"a": 1}, "holds 1 folder: expected a folder a class"),
        ({"test__a": 1, "test__b": 1}, "holds test and no train"),
        ({"train__a": 1, "train__b": 1}, "holds train alone"),
        ({"train__a": 1, "train__b": 0, "test__a": 1}, "holds no image"),
        (
            {"train__cat": 1, "train__dog": 1, "test__cats": 1},
            r"no class of train\. Did you mean 'cat'",
        ),
        ({"train__a": 1, "train__b": 1, "val__a": 1, "validation__a": 1}, "expected one of them"),
        ({"train__a": 1, "train__b": 1, "test__a": 0}, "holds no image"),
    ],
)
def test_a_folder_that_is_no_set_is_refused(tmp_path, places, said):
    with pytest.raises(UserError, match=said):
        read_folder(tree(tmp_path, **places))


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="is no folder"):
        read_folder(tmp_path / "nothing")


def test_every_file_is_decoded_once_and_what_was_found_is_kept(tmp_path, monkeypatch):
    root = tree(tmp_path / "set", a=5, b=3)
    folder = read_folder(root)
    (root / "a" / "1.jpg").write_bytes((root / "a" / "1.jpg").read_bytes()[:300])
    (root / "a" / "2.jpg").write_bytes((root / "b" / "0.jpg").read_bytes())
    files, index = Files(root, folder.train.paths), tmp_path / "index" / "set.npz"
    seen = []
    found = examined(files, index, workers=2, progress=lambda *own: seen.append(own))
    assert seen[-1] == (8, 8)
    at = {path: k for k, path in enumerate(files.paths)}
    assert [path for path in files.paths if found.errors[at[path]]] == ["a/1.jpg"]
    assert found.sizes[at["b/2.jpg"]].tolist() == [22, 30]
    assert found.sizes[at["a/1.jpg"]].tolist() == [0, 0]
    same = (found.digests[at["a/2.jpg"]] == found.digests).all(axis=1)
    assert {path for path in files.paths if same[at[path]]} == {"a/2.jpg", "b/0.jpg", "a/0.jpg"}
    pixels = np.concatenate(
        [
            np.asarray(Image.open(root / path)).reshape(-1, 3) / 255
            for path in files.paths
            if path != "a/1.jpg"
        ]
    )
    mean, std = found.statistics(found.readable)
    np.testing.assert_allclose(mean, pixels.mean(0))
    np.testing.assert_allclose(std, pixels.std(0))

    again = examined(files, index, workers=2, progress=lambda *own: pytest.fail("read again"))
    assert again.errors == found.errors
    for name in ("sizes", "sums", "digests"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))

    (root / "a" / "1.jpg").write_bytes((root / "a" / "3.jpg").read_bytes())
    seen.clear()
    mended = examined(files, index, workers=2, progress=lambda *own: seen.append(own))
    assert seen == [(1, 1)] and not any(mended.errors)


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_findings_that_are_damaged_are_made_anew(tmp_path, content):
    root = tree(tmp_path / "set", a=2, b=2)
    files, index = Files(root, read_folder(root).train.paths), tmp_path / "set.npz"
    found = examined(files, index, workers=1)
    if content is None:
        content = index.read_bytes()[:-40]
    index.write_bytes(content)
    assert examined(files, index, workers=1).sizes.tolist() == found.sizes.tolist()


def test_findings_that_cannot_be_kept_are_found_all_the_same(tmp_path):
    root = tree(tmp_path / "set", a=2, b=2)
    files = Files(root, read_folder(root).train.paths)
    (tmp_path / "file").write_text("x")
    assert not any(examined(files, tmp_path / "file" / "set.npz", workers=1).errors)


def test_a_file_that_has_vanished_is_among_the_unreadable(tmp_path):
    root = tree(tmp_path, a=2, b=2)
    files = Files(root, read_folder(root).train.paths)
    (root / "a" / "0.jpg").unlink()
    found = examined(files, workers=1)
    assert found.errors[files.paths.index("a/0.jpg")] == "No such file or directory"
