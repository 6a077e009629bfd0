"""Runs on a folder of photographs: what they see, what they refuse, how they go on."""

import json
import tomllib

import keras
import numpy as np
import pytest
from PIL import Image

import kgraft
from kgraft.data import CentreCrop, load_folder
from kgraft.errors import UserError
from kgraft.runs.assembly import assemble, in_order
from kgraft.runs.evaluation import evaluate_run
from kgraft.runs.execution import execute
from kgraft.runs.scoring import accuracy, predict
from kgraft.runs.selection import select
from kgraft.runs.unfinished import read_unfinished
from tests.data.test_decode import photograph
from tests.runs.test_resume import Breaks, Broken, assert_one

SIDE = 16


def folder(root, classes=3, train=24, test=8):
    """Photographs that can be told apart: each class has a colour of its own."""
    colours = np.random.default_rng(0).integers(60, 196, (classes, 3))
    for part, count in (("train", train), ("test", test)):
        for label, colour in enumerate(colours):
            place = root / part / f"class{label:02d}" if test else root / f"class{label:02d}"
            if not count:
                continue
            place.mkdir(parents=True, exist_ok=True)
            for k in range(count):
                size = (20 + k % 9, 30 - k % 7)
                pixels = photograph(*size, seed=1000 * label + k + (500 if part == "test" else 0))
                mixed = (pixels * 0.3 + colour * 0.7).astype(np.uint8)
                Image.fromarray(mixed).save(place / f"{part}-{k}.jpg", quality=92)
    return root


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return folder(tmp_path_factory.mktemp("photos"))


@pytest.fixture
def of_folder(tiny, tmp_path, photos):
    def config(root=photos, **changes):
        usual = {
            "data__name": str(root),
            "data__size": SIDE,
            "data__directory": str(tmp_path / "indexes"),
            "data__limit_train": None,
            "data__limit_test": None,
            "data__validation": 0.125,
            "teachers__count": 0,
            "run__batch_size": 16,
        }
        return tiny(**{**usual, **changes})

    return config


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.core
def test_peers_learn_from_a_folder_of_photographs(of_folder, tmp_path):
    config = of_folder(run__epochs=6, optimizer__lr=0.02, photos__area=(0.5, 1.0))
    summary = execute(assemble(config), tmp_path / "run")
    assert summary["ensemble"]["test_accuracy"] > 0.6 and 0 < summary["waiting"] <= 1
    assert evaluate_run(tmp_path / "run")["peer 2"] == summary["peers"][1]["test_accuracy"]
    assert select(tmp_path / "run")["best peer"]["test_accuracy"] > 0.6
    resolved = (tmp_path / "run" / "run.toml").read_text()
    assert "[photos]" in resolved and "area = [0.5, 1.0]" in resolved
    assert "pad = 0" in resolved and "flip = true" in resolved and "size = 16" in resolved


def test_the_images_that_are_tested_on_are_the_middles(of_folder):
    config = of_folder(photos__resize=20)
    assembly = assemble(config)
    split, photos = assembly.dataset.test, assembly.dataset.test.images
    x, y = next(iter(assembly.test.epoch(0)))
    pixels = np.asarray(Image.open(photos.source.name(0)))
    seen = CentreCrop(SIDE, resize=20)(pixels) / 255
    expected = (seen - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(x)[0], expected, atol=1e-5)
    assert keras.ops.convert_to_numpy(y).tolist() == split.labels.tolist()


@pytest.mark.core
@pytest.mark.parametrize("order", ["windowed", "independent"])
def test_a_run_that_was_broken_off_sees_what_it_would_have_seen(of_folder, tmp_path, order):
    config = of_folder(run__epochs=3, photos__order=order, photos__jitter=0.2)
    execute(assemble(config), tmp_path / "whole")
    with pytest.raises(Broken):
        execute(assemble(config), tmp_path / "out", Breaks("peers", 2))
    config = read_unfinished(tmp_path / "out")
    execute(assemble(config), tmp_path / "out", resume=True)
    assert_one(tmp_path / "whole", tmp_path / "out")


def test_a_part_that_is_held_out_is_the_same_whatever_the_seed(tmp_path, photos):
    root = folder(tmp_path / "flat", test=0)
    indexes = tmp_path / "indexes"
    first, second = (
        load_folder(root, indexes, size=SIDE, test=0.25, validation=6, seed=seed) for seed in (0, 1)
    )
    assert len(first.train) == 48 and len(first.validation) == 6 and len(first.test) == 18
    assert np.bincount(first.test.labels).tolist() == [6, 6, 6]
    assert first.test.images.numbers.tolist() == second.test.images.numbers.tolist()
    assert first.validation.images.numbers.tolist() != second.validation.images.numbers.tolist()
    parts = [set(own.images.numbers) for own in (first.train, first.validation, first.test)]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]


def test_pixels_that_are_kept_are_those_of_the_files(of_folder, caplog, tmp_path):
    with caplog.at_level("INFO", "kgraft"):
        kept = assemble(of_folder(photos__cache=True))
    assert "72 photographs take 1 MiB as pixels: they are decoded once" in caplog.text
    plain = assemble(of_folder())
    for own, other in ((kept.test, plain.test), (kept.validation, plain.validation)):
        for (x, y), (u, v) in zip(own.epoch(0), other.epoch(0), strict=True):
            np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (x, u)))
            np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (y, v)))
    caplog.clear()
    with caplog.at_level("INFO", "kgraft"):
        assemble(of_folder(photos__cache=True))
    assert "decoded once" not in caplog.text
    (x, _), *_ = kept.train.epoch(0)
    assert tuple(x.shape) == (16, SIDE, SIDE, 3)


def test_a_cache_for_which_there_is_no_room_is_refused(of_folder, monkeypatch):
    from kgraft.data import pixel_cache

    class Full:
        free = 1000

    monkeypatch.setattr(pixel_cache.shutil, "disk_usage", lambda path: Full)
    with pytest.raises(UserError, match=r"photographs take 1 MiB as pixels, and"):
        assemble(of_folder(photos__cache=True))


def test_files_that_cannot_be_read_are_named_before_anything_is_trained(
    of_folder, tmp_path, caplog
):
    root = folder(tmp_path / "set")
    for k in range(4):
        (root / "train" / "class01" / f"bad{k}.png").write_bytes(b"hello")
    with pytest.raises(UserError) as refused:
        assemble(of_folder(root))
    assert "4 files cannot be read: train/class01/bad" in str(refused.value)
    assert str(refused.value).count("no image that Pillow knows") == 3
    assert "photos.unreadable = 'skip'" in str(refused.value)
    assembly = assemble(of_folder(root, photos__unreadable="skip"))
    assert len(assembly.dataset.train) + len(assembly.dataset.validation) == 72
    assert "4 files cannot be read and are left out" in caplog.text
    names = map(assembly.dataset.train.images.source.name, assembly.dataset.train.images.numbers)
    assert not [name for name in names if "bad" in name]


def test_the_first_photographs_are_of_all_classes(of_folder):
    dataset = assemble(of_folder(data__limit_train=24, data__limit_test=9)).dataset
    assert len(dataset.train) + len(dataset.validation) == 24 and len(dataset.test) == 9
    assert (np.bincount(dataset.train.labels, minlength=3) > 2).all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data__pad": 4}, "data.pad is 4: photographs are not padded"),
        (
            {"data__name": "digits", "photos__area": (0.5, 1.0)},
            r"photos\.area: digits is no set of photographs",
        ),
        ({"photos__resize": 8}, "resize 8: expected 16 or more"),
        ({"photos__ratio": (2.0, 1.0)}, "ratio"),
        ({"data__name": "photo-set"}, "is not known"),
        ({"data__name": "./photo-set"}, "photo-set is no folder"),
    ],
)
def test_settings_that_have_no_part_in_it_are_refused(of_folder, changes, said):
    with pytest.raises(UserError, match=said):
        assemble(of_folder(**changes))


def test_a_run_file_says_what_was_seen_of_photographs_also_where_nobody_asked(of_folder, tmp_path):
    execute(assemble(of_folder(run__epochs=1)), tmp_path / "run")
    said = tomllib.loads((tmp_path / "run" / "run.toml").read_text())["photos"]
    assert said["area"] == [0.08, 1.0] and said["resize"] == 18  # 16 * 8 / 7
    assert said["order"] == "windowed" and said["memory"] == 512  # which give the order


def test_a_teacher_and_its_students_read_the_same_folder(of_folder, tmp_path):
    config = of_folder(teachers__count=1, run__epochs=1, data__shared=True)
    summary = execute(assemble(config), tmp_path / "run")
    assert len(summary["teachers"]) == 1 and len(summary["peers"]) == 2


@pytest.mark.parametrize("method", ["online", "mutual", "lawa", "papa"])
def test_other_methods_read_a_folder_too(of_folder, tmp_path, method):
    count = 1 if method == "lawa" else 2
    config = of_folder(run__method=method, run__epochs=1, peers__count=count)
    execute(assemble(config), tmp_path / "run")
    assert (tmp_path / "run" / "summary.json").is_file()


def test_five_guesses_count_where_there_are_many_classes(of_folder, tmp_path):
    root = folder(tmp_path / "many", classes=20, train=4, test=2)
    config = of_folder(root, run__epochs=1, run__label_smoothing=0.1)
    assembly = assemble(config)
    summary = execute(assembly, tmp_path / "run")
    logits = predict(assembly.peers[0], in_order(config, assembly.dataset, assembly.dataset.test))
    labels = assembly.dataset.test.labels
    best = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    assert summary["peers"][0]["test_top5"] == np.mean((best == labels[:, None]).any(axis=1))
    assert summary["peers"][0]["test_accuracy"] == accuracy(logits, labels)
    assert {"top5", "val_top5"} < set(lines(tmp_path / "run" / "metrics.jsonl")[0])
    assert "peer 1, top 5" in evaluate_run(tmp_path / "run")


def test_a_fit_of_ones_own_takes_the_stream_and_knows_it_again(of_folder, tmp_path, caplog):
    assembly = assemble(of_folder(run__epochs=2))

    def fit(stream, **options):
        again = assemble(of_folder(run__epochs=2))
        run = kgraft.GraftingFit(again.peers, seed=0)
        run.fit(stream, verbose=0, checkpoint=tmp_path / "saved", **options)
        return again.peers

    fit(assembly.train, epochs=1)
    gone_on = fit(assembly.train, epochs=2)
    whole = assemble(of_folder(run__epochs=2))
    kgraft.GraftingFit(whole.peers, seed=0).fit(whole.train, epochs=2, verbose=0)
    for own, other in zip(gone_on, whole.peers, strict=True):
        for a, b in zip(own.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
    other = assemble(of_folder(run__epochs=2, photos__area=(0.5, 1.0))).train
    caplog.clear()
    fit(other, epochs=3)
    assert "crop" in caplog.text and "area=(0.5, 1.0)" in caplog.text  # another training, named


@pytest.fixture
def own_photos(tmp_path):
    return folder(tmp_path / "own")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda root: [
                (root / part / "class00").rename(root / part / "zero") for part in ("train", "test")
            ],
            "classes in .* then, 3: class01, class02, zero now",
        ),
        (lambda root: (root / "test/class01/test-3.jpg").unlink(), "test images in .* 24 .* 23 "),
    ],
)
def test_other_images_than_a_run_was_tested_on_are_refused(
    change, said, of_folder, own_photos, tmp_path
):
    execute(assemble(of_folder(own_photos, run__epochs=1)), tmp_path / "run")
    assert evaluate_run(tmp_path / "run")
    (own_photos / "train/class00/another.jpg").write_bytes(
        (own_photos / "train/class00/train-0.jpg").read_bytes()
    )
    assert evaluate_run(tmp_path / "run")  # learnt from, not tested on
    change(own_photos)
    with pytest.raises(UserError, match=said):
        evaluate_run(tmp_path / "run")
    with pytest.raises(UserError, match=r"are others than when the run began"):
        select(tmp_path / "run")


def test_a_run_does_not_go_on_with_other_images(of_folder, own_photos, tmp_path):
    config = of_folder(own_photos)
    with pytest.raises(Broken):
        execute(assemble(config), tmp_path / "run", Breaks("peers", 2))
    (own_photos / "train/class01/train-3.jpg").rename(own_photos / "train/class01/moved.jpg")
    with pytest.raises(UserError, match=r"train images in .* are others than when the run began"):
        execute(assemble(read_unfinished(tmp_path / "run")), tmp_path / "run", resume=True)


def test_a_run_of_an_earlier_kgraft_is_evaluated_without_a_word(of_folder, own_photos, tmp_path):
    execute(assemble(of_folder(own_photos, run__epochs=1)), tmp_path / "run")
    file = tmp_path / "run" / "environment.json"
    told = json.loads(file.read_text())
    assert told.pop("images")["classes"] == "3: class00, class01, class02"
    file.write_text(json.dumps(told))
    (own_photos / "test/class01/test-3.jpg").unlink()
    assert evaluate_run(tmp_path / "run")


def test_a_share_to_test_on_is_refused_where_the_folder_has_a_test_part(of_folder):
    with pytest.raises(UserError, match=r"photos\.test is 0\.3, and .* has a test part: take that"):
        assemble(of_folder(photos__test=0.3))
    assert len(assemble(of_folder(photos__jitter=0.1)).dataset.test) > 0


def test_what_is_tested_on_stays_where_files_come(tmp_path):
    root = folder(tmp_path / "flat", train=40, test=0)
    options = {"size": SIDE, "test": 0.25}

    def tested():
        part = load_folder(str(root), str(tmp_path / "indexes"), **options).test.images
        return {part.source.name(number) for number in part.numbers.tolist()}

    before = tested()
    for k in range(2):
        source, copy = root / f"class0{k}/train-{k}.jpg", root / f"class0{k}/new-{k}.jpg"
        copy.write_bytes(source.read_bytes())
    after = tested()
    assert len(before) == 30 and len(before & after) >= 28


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": 0}, "size"),
        ({"unreadable": "x"}, "unreadable"),
        ({"cache": 8}, "cache"),
        ({"test": 1.5}, "test 1.5: expected a share"),
        ({"limit_train": 0}, "limit_train"),
        ({"workers": 0}, "workers"),
    ],
)
def test_arguments_of_a_folder_are_checked(options, said, photos, tmp_path):
    flat = folder(tmp_path / "flat", train=4, test=0)
    with pytest.raises(UserError, match=said):
        load_folder(flat, tmp_path / "indexes", **{"size": SIDE, **options})
