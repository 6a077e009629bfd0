"""GraftCallback(RingLink()): fits of several processes in one ring, against one process."""

import json
import os
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest

import kgraft
from kgraft.engines.backends import BACKEND
from kgraft.errors import UserError
from kgraft.grafting import Graft, GraftPlan
from kgraft.links.link import Here
from kgraft.training.callback import GraftCallback
from kgraft.training.feeds import feed_of
from tests.faults.ranks import free_port
from tests.reference import grafting as reference
from tests.training import ring_callback_cases as cases
from tests.training.callback_cases import BATCH, Listed, arrays, assert_same, compiled, everything

NAME = keras.config.backend()
EVERYWHERE = ["plain", "put_off", "early", "other_epochs"]
ON_TORCH = ["with_peers", "other_mixer", "other_network", "one_backup", "resumed", "behind"]
ON_TORCH += ["broken_off", "registered", "skipped"]

KEPT = {}  # jax: what a process has compiled, the next one need not
if NAME == "jax":
    import jax

    KEPT["JAX_COMPILATION_CACHE_DIR"] = jax.config.jax_compilation_cache_dir
    KEPT["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    KEPT["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

pytestmark = pytest.mark.multiprocess
torch_only = pytest.mark.skipif(NAME != "torch", reason="the same on every backend")


class Found:
    """What the ranks have written."""

    def __init__(self, folder):
        self.folder = folder

    def said(self, name):
        return [json.loads((self.folder / f"{name}-{r}.json").read_text()) for r in (0, 1)]

    def models(self, name, count=1):
        """Everything of each rank's models, in ring order."""
        files = [self.folder / f"{name}-{r}-{k}.npz" for r in (0, 1) for k in range(count)]
        return [[*np.load(file).values()] for file in files]


def ran(folder, names, command, **environment):
    """The exit codes of some processes, and what they said."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **KEPT, **environment}
    processes = [
        subprocess.Popen(
            [sys.executable, *command, "-m", cases.__name__, str(folder), *names],
            env={**environment, **own},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for own in ([{}] if command else [{"RANK": "0"}, {"RANK": "1"}])
    ]
    try:
        said = [own.communicate(timeout=240)[0] for own in processes]
    finally:
        for own in processes:
            own.kill()
    return [own.returncode for own in processes], said


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("ring")
    names = EVERYWHERE + (ON_TORCH if NAME == "torch" else [])
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
    torchrun += ["--master-port", str(free_port())]
    codes, said = ran(folder, names, torchrun)
    assert codes == [0], said[0]
    return Found(folder)


@pytest.fixture
def one_thread():
    before = BACKEND.cores()
    BACKEND.use_cores(1)
    yield
    BACKEND.use_cores(before)


def alone(peers, feeds, epochs, graft):
    """Everything of peers whose `fit`s are called one after the other, epoch by epoch."""
    for epoch in range(epochs):
        for peer, feed in zip(peers, feeds, strict=True):
            peer.fit(feed, epochs=1, shuffle=False, verbose=0)
        graft(peers, epoch)
    return [everything(peer) for peer in peers]


def two():
    return [cases.peer(k) for k in (0, 1)], [cases.data_of(k) for k in (0, 1)]


def by_reference(peers, epoch):
    groups = [(group.kernel, group.members) for group in GraftPlan.of(peers[0]).groups]
    blended, _ = reference.graft([peer.get_weights() for peer in peers], groups)
    for peer, weights in zip(peers, blended, strict=True):
        peer.set_weights(weights)


@pytest.mark.core
def test_scripts_under_torchrun_train_what_one_process_trains_bit_for_bit(found, one_thread):
    records = []
    expected = alone(*two(), cases.EPOCHS, lambda peers, _: records.append(Graft().mix(peers)))
    for own, other in zip(found.models("plain"), expected, strict=True):
        assert_same(own, other)
    for rank, said in enumerate(found.said("plain")):
        assert said["alpha"] == [record.mean_coefficients[rank] for record in records]
        assert said["donors"] == [[1, 0]] * 3
        assert said["epochs"] == [0, 1, 2]
        assert said["config"]["link"] == {"rank": rank, "ranks": 2}
        assert said["store"].startswith("store of torchrun")


@torch_only
def test_the_ranks_blend_is_that_of_the_reference(found, one_thread):
    expected = alone(*two(), cases.EPOCHS, by_reference)
    for own, other in zip(found.models("plain"), expected, strict=True):
        for weight, value in zip(own, other, strict=True):
            np.testing.assert_allclose(weight, value, atol=1e-5)


@torch_only
def test_ranks_with_peers_beside_their_models_form_one_ring(found, one_thread):
    peers = [cases.peer(k) for k in range(4)]
    own = feed_of(*arrays(cases.COUNTS[0], seed=9), batch_size=BATCH)
    for epoch in range(cases.EPOCHS):
        for k, peer in enumerate(peers):  # every second one has an order of its own of that data
            order = Listed([*own.for_peer(k).epoch(epoch)])
            taken = order if k % 2 else cases.data_of(3 * k // 2)
            peer.fit(taken, epochs=1, shuffle=False, verbose=0)
        Graft().mix(peers)
    for one, peer in zip(found.models("with_peers", 2), peers, strict=True):
        assert_same(one, everything(peer))
    for said, number in zip(found.said("with_peers"), (2, 4), strict=True):
        assert {f"peer{number}_loss", "alpha", "loss"} < set(said["logs"])
        assert not {"peer1_loss", "peer3_loss"} & set(said["logs"])


@pytest.mark.core
def test_fits_with_one_callback_go_on_in_the_ring_and_may_begin_to_count_anew(found, one_thread):
    peers, feeds = two()
    for grafts in (True, True, True, False):  # fits of one, two and one epoch, grafted between
        for peer, feed in zip(peers, feeds, strict=True):
            peer.fit(feed, epochs=1, shuffle=False, verbose=0)
        if grafts:
            Graft().mix(peers)
    for own, peer in zip(found.models("put_off"), peers, strict=True):
        assert_same(own, everything(peer))
    assert [said["epochs"] for said in found.said("put_off")] == [[0, 1, 2]] * 2


@pytest.mark.core
def test_a_rank_that_stops_early_ends_all_fits_with_that_epoch(found, one_thread):
    expected = alone(*two(), 2, lambda peers, _: Graft().mix(peers))
    for own, other in zip(found.models("early"), expected, strict=True):
        assert_same(own, other)
    assert [said["count"] for said in found.said("early")] == [2, 2]


@pytest.mark.core
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("other_epochs", "epochs= of fit is 2 on rank 0 and 3 on rank 1"),
        ("other_mixer", "peer 1 and peer 2, which is in another process, have different mixer"),
        ("other_network", "peer 1 and peer 2, which is in another process, have different weights"),
        ("one_backup", "ranks 0 and 1 have BackupAndRestore("),
        ("behind", "the first epoch of fit is 3 on rank 0 and 1 on rank 1"),
        ("registered", "leave out init_process_group"),
    ],
)
def test_ranks_that_differ_get_one_line_each_at_once(found, name, message):
    if NAME != "torch" and name not in EVERYWHERE:
        pytest.skip("the same on every backend")
    for said in found.said(name):
        assert said["error"].startswith("UserError: ")
        assert message in said["error"]
        assert "\n" not in said["error"]
        assert said["seconds"] < 15  # the link's limit is 20


@torch_only
def test_ranks_that_are_killed_go_on_from_their_backups(found):
    for own, other in zip(found.models("resumed"), found.models("plain"), strict=True):
        assert_same(own, other)
    for said in found.said("resumed"):
        assert said["epochs"] == [0, 1, 2]
        assert said["count"] == 1  # of three epochs only the last was left
        assert said["names"] == ["rank-0-of-2", "rank-1-of-2"]


@torch_only
def test_after_an_interrupt_in_one_process_all_may_fit_again(found):
    words = [said["words"] for said in found.said("broken_off")]
    assert words[1] == "KeyboardInterrupt: "
    assert words[0].startswith("LostPeerError: ")
    assert [said["epochs"] for said in found.said("broken_off")] == [[0, 1]] * 2


@torch_only
def test_a_rank_that_is_left_out_trains_on_and_is_let_in_with_the_rings_epoch(found):
    stayed, late = found.said("skipped")
    assert stayed["count"] == 60
    assert 1 in stayed["lost"]  # in which it slept
    assert late["count"] < 60
    assert late["epochs"][0] == 0
    assert late["epochs"][-1] == 59  # counted as the ring does, and ended with it
    assert set(late["epochs"]) & set(stayed["lost"]) == set()
    assert late["alpha"][1] == 1.0
    assert late["iterations"] == 60 * 4  # its schedules are where the others' are
    assert stayed["iterations"] == 60 * 6


@pytest.mark.core
def test_over_a_directory_too_and_ctrl_c_of_one_rank_is_told_to_the_other(tmp_path, one_thread):
    meet = {"MEET": str(tmp_path / "meet"), "WORLD_SIZE": "2"}
    codes, said = ran(tmp_path, ["grafting_fit", "plain", "ctrl_c"], [], **meet)
    assert codes == [0, -signal.SIGINT], said
    expected = alone(*two(), cases.EPOCHS, lambda peers, _: Graft().mix(peers))
    for own, other in zip(Found(tmp_path).models("plain"), expected, strict=True):
        assert_same(own, other)
    peers = two()[0]
    cases.fit_together(peers)
    for own, peer in zip(Found(tmp_path).models("grafting_fit"), peers, strict=True):
        assert_same(own, everything(peer))
    told = json.loads((tmp_path / "ctrl_c-0.json").read_text())
    assert told["store"].startswith("directory ")
    assert "rank 1 on " in told["error"]
    assert "in epoch 2: it has ended (KeyboardInterrupt)" in told["error"]
    assert told["seconds"] < 15


def link(tmp_path, **options):
    return kgraft.RingLink(tmp_path, rank=0, ranks=options.pop("ranks", 2), **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda ring: ((), {"link": "ring"}), "link is 'ring': expected kgraft.RingLink"),
        (lambda ring: ((Here(),), {}), "link is a Here: expected kgraft.RingLink"),
        (lambda ring: ((ring(),), {"link": ring()}), "in the place of peers and link="),
        (lambda ring: ((ring(on_lost_peer="wait"),), {}), r"GraftingFit\(link=\).*checkpoint="),
        (lambda ring: ((ring(ranks_per_peer=2),), {}), "ranks_per_peer=2 averages gradients"),
    ],
)
def test_what_is_no_link_for_fit_gets_one_line(tmp_path, arguments, message):
    positional, named = arguments(lambda **options: link(tmp_path, **options))
    with pytest.raises(UserError, match=message) as error:
        GraftCallback(*positional, **named)
    assert "\n" not in str(error.value)


def test_a_ring_of_one_model_alone_gets_one_line(tmp_path):
    own = link(tmp_path, ranks=1)
    with pytest.raises(UserError, match="the ring holds only fit's model"):
        cases.fit(compiled(1), 0, [GraftCallback(own)])
    own.end()


def test_a_link_is_of_one_number_of_models(tmp_path):
    own = link(tmp_path, ranks=1)
    grafting = GraftCallback([compiled(2)], link=own)
    cases.fit(compiled(1), 0, [grafting])
    with pytest.raises(UserError, match="joined the ring with 2 models, and now there are 3"):
        cases.fit(compiled(1), 0, [GraftCallback([compiled(2), compiled(3)], link=own)])
    own.end()
