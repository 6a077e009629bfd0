"""RingLink over jax.distributed, in two processes; and the private names that its store needs."""

import json
import os
import subprocess
import sys

import keras
import pytest

from kgraft.engines.backends import BACKEND
from tests.faults.ranks import free_port
from tests.training import ring_callback_cases as cases
from tests.training.callback_cases import assert_same, everything
from tests.training.test_ring_callback import Found, alone, ran, two

if keras.config.backend() != "jax":
    pytest.skip("jax.distributed", allow_module_level=True)

import jax

from kgraft.grafting import Graft
from kgraft.links.jax_store import JaxStore

pytestmark = [pytest.mark.core, pytest.mark.multiprocess]

STORE = """
import json, os, sys
import jax

rank = int(sys.argv[1])
jax.distributed.initialize(sys.argv[2], 2, rank)
from kgraft.links.jax_store import JaxStore
from kgraft.links.store import PART, drop, put, taken

def wait(store, *keys):
    while not store.has(keys):
        pass

store = JaxStore()
said = {"there": JaxStore.is_there(), "rank": JaxStore.rank(), "ranks": JaxStore.ranks()}
said["none"] = store.get("a/none")
store.delete("a/none")
said["first"] = store.first("a/first", f"of {rank}")
store.set(f"a/{rank}", b"before")
store.set(f"a/{rank}", bytes([0, rank, 255]))
store.set(f"a/{rank}/below", b"kept")
put(store, f"large/{rank}", bytes([rank]) * (2 * PART))
wait(store, "large/0", "large/1")
said["all"] = [list(value) for value in store.get_all(["a/0", "a/1"])]
large = taken(store, ["large/0", "large/1"])
said["large"] = [value == bytes([k]) * (2 * PART) for k, value in enumerate(large)]
store.set(f"read/{rank}", b"")
wait(store, "read/0", "read/1")
said["empty"] = store.get("read/0") == b""
drop(store, f"large/{rank}")
store.delete(f"a/{rank}")
said["deleted"] = [store.get(f"a/{rank}"), store.get(f"large/{rank}"), store.get(f"large/{rank}/1")]
said["below"] = store.get(f"a/{rank}/below").decode()
said["devices"] = len(jax.numpy.ones(2).devices() & set(jax.local_devices()))
print(json.dumps(said))
"""


def test_its_store_keeps_what_a_store_promises():
    where = f"127.0.0.1:{free_port()}"
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", STORE, str(rank), where],
            stdout=subprocess.PIPE,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            text=True,
        )
        for rank in (0, 1)
    ]
    told = [json.loads(own.communicate(timeout=120)[0].splitlines()[-1]) for own in ranks]
    assert [own.returncode for own in ranks] == [0, 0]
    assert told[0]["first"] == told[1]["first"]
    assert told[0]["first"] in ("of 0", "of 1")
    for rank, said in enumerate(told):
        assert (said["there"], said["rank"], said["ranks"]) == (True, rank, 2)
        assert said["none"] is None
        assert said["all"] == [[0, 0, 255], [0, 1, 255]]
        assert said["large"] == [True, True]
        assert said["empty"]
        assert said["deleted"] == [None] * 3
        assert said["below"] == "kept"
        assert said["devices"] == 1  # what is computed here stays here


def test_fits_under_jax_distributed_train_what_one_process_trains_bit_for_bit(tmp_path):
    where = {"COORDINATOR": f"127.0.0.1:{free_port()}", "WORLD_SIZE": "2"}
    codes, said = ran(tmp_path, ["plain", "grafting_fit"], [], **where)
    assert codes == [0, 0], said
    found = Found(tmp_path)
    assert found.said("plain")[1]["store"] == "coordinator of jax.distributed"
    BACKEND.use_cores(1)
    expected = alone(*two(), cases.EPOCHS, lambda peers, _: Graft().mix(peers))
    for own, other in zip(found.models("plain"), expected, strict=True):
        assert_same(own, other)
    peers = two()[0]
    cases.fit_together(peers)
    for own, peer in zip(found.models("grafting_fit"), peers, strict=True):
        assert_same(own, everything(peer))


def test_jax_still_has_the_private_names_of_the_store():
    """Where this fails, `kgraft.links.jax_store` is what has to follow jax."""
    state = jax._src.distributed.global_state
    assert state.client is None
    client = jax._src.distributed._jax.DistributedRuntimeClient
    for name in ("key_value_set_bytes", "key_value_try_get_bytes", "key_value_delete"):
        assert callable(vars(client)[name])
    assert not JaxStore.is_there()
