"""Stores: one contract for all, values in parts, and what is said when one is gone."""

import threading
from datetime import timedelta

import pytest

from kgraft.errors import LostPeerError, StorageError, UserError
from kgraft.links.store import PART, DirectoryStore, drop, put, taken
from tests.links.memory_store import MemoryStore


def torch_store(name="test", **options):
    distributed = pytest.importorskip("torch.distributed")
    from kgraft.links.torch_store import TorchStore

    own = distributed.TCPStore(
        "127.0.0.1", 0, None, True, timedelta(seconds=5), wait_for_workers=False
    )
    return TorchStore(distributed.PrefixStore(name, own), "store of the test", **options)


@pytest.fixture(params=["memory", "directory", "torch"])
def store(request, tmp_path):
    if request.param == "memory":
        return MemoryStore()
    return torch_store() if request.param == "torch" else DirectoryStore(tmp_path / "link")


def test_a_value_is_what_was_given_last(store):
    assert store.get("a/b") is None
    assert not store.has(["a/b"])
    store.set("a/b", b"\x00one")
    store.set("a/b", b"\xfftwo\x00")
    assert store.get("a/b") == b"\xfftwo\x00"
    assert store.has(["a/b"])


def test_all_of_several_are_there_or_not(store):
    store.set("x", b"1")
    assert not store.has(["x", "y"])
    store.set("y", b"")
    assert store.has(["x", "y"])
    assert store.get_all(["y", "x"]) == [b"", b"1"]


def test_what_is_forgotten_is_not_there(store):
    store.set("x", b"1")
    store.set("x/1", b"2")
    store.delete("x")
    store.delete("never")
    assert store.get("x") is None
    assert store.get("x/1") == b"2"


def test_the_first_word_is_everybodys(store):
    assert store.first("k", "mine") == "mine"
    assert store.first("k", "theirs") == "mine"
    assert store.get("k") == b"mine"


def test_of_many_at_once_one_is_the_first(store):
    for turn in range(5):
        ready, found = threading.Barrier(4), []

        def race(own, turn=turn, ready=ready, found=found):
            ready.wait()
            found.append((own, store.first(f"race/{turn}", own)))

        threads = [threading.Thread(target=race, args=(str(own),)) for own in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 4
        winners = {said for _, said in found}
        assert len(winners) == 1
        assert winners < {"0", "1", "2", "3"}


@pytest.mark.parametrize("size", [0, 1, PART - 2, PART - 1, PART, PART + 1, 9 * PART + 5])
def test_values_of_any_size_come_back(store, size):
    content = (b"kgraft" * (size // 6 + 1))[:size]
    put(store, "large", content)
    put(store, "small", b"7")
    assert taken(store, ["small", "large"]) == [b"7", content]
    drop(store, "large")
    assert not any(store.has([f"large/{n}"]) for n in range(11))
    assert not store.has(["large"])
    assert taken(store, ["small"]) == [b"7"]


def test_who_leaves_waits_for_nobody(store):
    store.leave(lambda: pytest.fail("asked whether all have ended"))


def test_who_holds_the_store_leaves_when_all_have_ended(monkeypatch):
    asked = iter([False, False, True])
    torch_store(is_held=True).leave(lambda: next(asked))
    assert next(asked, None) is None
    monkeypatch.setattr("kgraft.links.torch_store._LINGER", 0.1)
    torch_store(is_held=True).leave(lambda: False)  # and does not wait for ever


def test_no_part_is_too_large_for_a_store():
    store = MemoryStore()
    for size in (PART - 1, PART, 3 * PART):
        put(store, "x", bytes(size))
    assert max(map(len, store.values.values())) <= PART


def test_whoever_finds_the_key_finds_all_parts(monkeypatch):
    store, order = MemoryStore(), []
    write = store.set
    monkeypatch.setattr(store, "set", lambda key, value: (order.append(key), write(key, value)))
    put(store, "x", bytes(2 * PART))
    assert order[-1] == "x"
    assert len(order) == 4


def test_what_was_never_put_may_be_dropped(store):
    drop(store, "never")


def test_a_file_is_no_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is a file: expected a directory"):
        DirectoryStore(tmp_path / "file")
    with pytest.raises(StorageError, match="cannot be made"):
        DirectoryStore(tmp_path / "file" / "below")


def test_a_directory_that_is_gone_is_told(tmp_path):
    store = DirectoryStore(tmp_path / "link")
    (tmp_path / "link").rmdir()
    for act in (lambda: store.set("x", b"1"), lambda: store.first("x", "1")):
        with pytest.raises(StorageError, match=r"link cannot be written: No such file") as told:
            act()
        assert "\n" not in str(told.value)


def test_a_directory_holds_nothing_half_written(tmp_path):
    store = DirectoryStore(tmp_path)
    store.set("a/b", b"1")
    store.first("c", "2")
    store.first("c", "3")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a+b", "c"]


def test_a_store_without_its_host_is_told_in_one_line():
    distributed = pytest.importorskip("torch.distributed")
    from kgraft.links.torch_store import TorchStore

    limit = timedelta(seconds=5)
    host = distributed.TCPStore("127.0.0.1", 0, None, True, limit, wait_for_workers=False)
    client = distributed.TCPStore(
        "127.0.0.1", host.port, None, False, limit, wait_for_workers=False
    )
    store = TorchStore(client, "store of rank 0, here:1")
    store.set("x", b"1")
    del host
    for act in (
        lambda: store.get("x"),
        lambda: store.set("x", b"2"),
        lambda: store.first("y", "1"),
        lambda: store.has(["x"]),
        lambda: store.get_all(["x"]),
        lambda: store.delete("x"),
    ):
        with pytest.raises(LostPeerError, match="store of rank 0, here:1, does not answer") as told:
            act()
        assert "\n" not in str(told.value)


def test_without_torchruns_variables_it_says_which_are_missing(monkeypatch):
    pytest.importorskip("torch.distributed")
    from kgraft.links.torch_store import TorchStore

    for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(UserError, match="RANK, WORLD_SIZE, MASTER_PORT is not set: start with"):
        TorchStore.of_environment(1.0, "0")


def test_where_nobody_answers_it_says_so(monkeypatch):
    pytest.importorskip("torch.distributed")
    from kgraft.links.torch_store import TorchStore
    from tests.faults.ranks import free_port

    port = free_port()
    environment = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**environment, "MASTER_PORT": str(port)}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"no store answers at 127.0.0.1:{port}") as told:
        TorchStore.of_environment(0.5, "0")
    assert "\n" not in str(told.value)


def test_starts_of_one_environment_are_kept_apart(monkeypatch):
    pytest.importorskip("torch.distributed")
    from kgraft.links.torch_store import TorchStore
    from tests.faults.ranks import free_port

    environment = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**environment, "MASTER_PORT": str(free_port())}.items():
        monkeypatch.setenv(name, value)
    first = TorchStore.of_environment(5.0, "0")
    monkeypatch.setenv("RANK", "1")
    same, later = (TorchStore.of_environment(5.0, attempt) for attempt in "01")
    first.set("x", b"1")
    assert same.get("x") == b"1"
    assert later.get("x") is None
