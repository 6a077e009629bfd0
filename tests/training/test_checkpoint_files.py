"""A checkpoint is whole or not there, and what is damaged is noticed."""

import json

import numpy as np
import pytest

from kgraft.errors import StorageError
from kgraft.nests import flat, nested
from kgraft.training import checkpoint_files
from kgraft.training.checkpoint_files import CheckpointFiles, DamagedError

ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(7, np.uint32)}
STATE = {"words": ["x", None, 1.5, float("inf")], "deep": {"n": 3}}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_is_read(tmp_path):
    files = CheckpointFiles(tmp_path / "new" / "folder")
    with pytest.raises(StorageError, match=r"epoch-000003 cannot be written: No such file"):
        files.write(3, ARRAYS, STATE)
    assert names(tmp_path) == []
    files.make()
    files.write(3, ARRAYS, STATE)
    arrays, state = files.read(3)
    assert state == STATE
    assert arrays.keys() == ARRAYS.keys()
    for name, value in ARRAYS.items():
        assert arrays[name].dtype == value.dtype
        np.testing.assert_array_equal(arrays[name], value)
    assert names(tmp_path / "new" / "folder" / "epoch-000003") == [
        "arrays.safetensors",
        "state.json",
    ]


def test_the_newest_are_kept_and_the_last_whole_one_is_found(tmp_path):
    files = CheckpointFiles(tmp_path, keep=3)
    for epoch in (1, 2, 10, 11):
        files.write(epoch, ARRAYS, {"epoch": epoch})
    assert files.epochs() == [2, 10, 11]
    assert files.newest()[0] == 11
    assert files.newest(after=11) is None
    (tmp_path / "epoch-000012").mkdir()
    assert files.newest()[2] == {"epoch": 11}


def damages(path):
    """Every way in which one byte, or the end, of either file may be lost."""
    for name in ("arrays.safetensors", "state.json"):
        content = (path / name).read_bytes()
        for place in range(0, len(content), 7):
            yield name, content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]
            yield name, content[:place]
        yield name, None


def test_a_damaged_one_is_named_and_the_one_before_is_used(tmp_path, caplog):
    files = CheckpointFiles(tmp_path)
    for epoch in (1, 2):
        files.write(epoch, ARRAYS, {**STATE, "epoch": epoch})
    path = tmp_path / "epoch-000002"
    whole = {name: (path / name).read_bytes() for name in names(path)}
    for name, content in damages(path):
        (path / name).unlink() if content is None else (path / name).write_bytes(content)
        caplog.clear()
        with pytest.raises(DamagedError):
            files.read(2)
        assert files.newest()[0] == 1
        (line,) = caplog.messages
        assert f"{path} is damaged (" in line and "that of epoch 1 is used" in line
        (path / name).write_bytes(whole[name])
    assert files.newest()[0] == 2


def test_an_operating_systems_error_at_any_call_leaves_the_one_before(tmp_path, monkeypatch):
    """The n-th call that reaches the disk fails, for all n."""
    calls = {
        checkpoint_files.os: ("open", "fsync", "close"),
        checkpoint_files.Path: ("mkdir", "replace", "write_text"),
        checkpoint_files.safetensors.numpy: ("save_file",),
    }
    real = {(where, name): getattr(where, name) for where, own in calls.items() for name in own}
    count = fail_at = 0

    def counted(function):
        def call(*arguments, **options):
            nonlocal count
            count += 1
            if count == fail_at:
                raise OSError(28, "No space left on device")
            return function(*arguments, **options)

        return call

    failed = 0
    for fail_at in range(1, 40):
        files = CheckpointFiles(tmp_path / str(fail_at), keep=1)
        files.make()
        files.write(1, ARRAYS, {"epoch": 1})
        count = 0
        for (where, name), function in real.items():
            monkeypatch.setattr(where, name, counted(function))
        try:
            files.write(2, ARRAYS, {"epoch": 2})
        except StorageError as error:
            failed += 1
            assert str(error).endswith("cannot be written: No space left on device.")
        finally:
            monkeypatch.undo()
        epoch, arrays, state = files.newest()
        assert state == {"epoch": epoch}
        np.testing.assert_array_equal(arrays["a"], ARRAYS["a"])
        files.write(3, ARRAYS, {"epoch": 3})
        assert names(tmp_path / str(fail_at)) == ["epoch-000003"]
    assert failed >= 10
    assert count < fail_at  # the last ones had nothing left to fail


def test_a_file_that_may_not_grow_is_told_in_one_line(tmp_path):
    from tests.test_files import files_up_to

    files = CheckpointFiles(tmp_path)
    files.write(1, ARRAYS, STATE)
    with files_up_to(1000), pytest.raises(StorageError, match=r"cannot be written: .*large"):
        files.write(2, {"a": np.zeros(10_000, np.float32)}, STATE)
    assert names(tmp_path) == ["epoch-000001"]


def test_what_a_killed_writer_has_left_is_swept(tmp_path):
    files = CheckpointFiles(tmp_path)
    files.write(1, ARRAYS, STATE)
    for name in (".partial-000002", ".gone-000000", "epoch-000002"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text("{")
    files.write(2, ARRAYS, STATE)
    assert names(tmp_path) == ["epoch-000001", "epoch-000002"]
    assert files.read(2)[1] == STATE
    files.clear()
    assert names(tmp_path) == []


def test_a_link_is_no_checkpoint(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    CheckpointFiles(elsewhere).write(5, ARRAYS, STATE)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "epoch-000005").symlink_to(elsewhere / "epoch-000005")
    files = CheckpointFiles(tmp_path / "own")
    assert files.epochs() == []
    files.clear()
    assert CheckpointFiles(elsewhere).epochs() == [5]


def test_nests_with_arrays_come_back():
    value = {
        "a": [np.arange(3), (1, 2.5)],
        "b": {"c": np.float32(0.1), "d": None, "e": np.bool_(True), "f": np.uint8(7)},
        "g": {1: "one", (2, "x"): {False: 2.5}, None: np.int64(3)},
    }
    arrays = {}
    back = nested(flat(value, arrays), arrays)
    assert back["a"][1] == (1, 2.5)
    np.testing.assert_array_equal(back["a"][0], np.arange(3))
    assert back["b"] == value["b"] and back["g"] == value["g"]
    assert [type(own) for own in back["b"].values()] == [*map(type, value["b"].values())]
    assert json.loads(json.dumps(flat(value, {}))) == flat(value, {})


@pytest.mark.parametrize(
    "value", [{b"x": 2}, {"a": object()}, [b"x"], np.longdouble(1), np.array(["a"]), {1, 2}]
)
def test_what_json_cannot_hold_is_told(value):
    with pytest.raises(TypeError):
        flat(value, {})
