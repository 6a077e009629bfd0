"""`kgraft fit` under torchrun, and under whoever else starts its ranks, is one run."""

import json
import random
import re
import signal

import keras
import pytest

from tests.faults.ranks import Row, run_ranks, trial
from tests.faults.victims import differences
from tests.processes import ended, process, started

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.skipif(keras.config.backend() != "torch", reason="spawns processes of torch"),
]
RUN = (
    *("fit", "--peers", "4", "--teachers", "1", "--teacher-model", "resnet8", "--epochs", "3"),
    *("--limit-train", "128", "--limit-test", "40", "--batch-size", "32", "--csv"),
)
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run in one process."""
    out = tmp_path_factory.mktemp("ranks") / "whole"
    ended([process(["-m", "kgraft_cli", *RUN, "--out", out])])
    return out


def test_two_ranks_with_two_peers_each_under_torchrun(whole):
    out = whole.with_name("two")
    (said,) = ended([process([*TORCHRUN, "2", "-m", "kgraft_cli", *RUN, "--out", out])])
    assert differences(whole, out) == []
    assert said.count("accuracy on the test images") == 1  # one rank shows the run
    assert not (out / "checkpoints").exists()


def test_four_ranks_with_a_peer_each(whole):
    out = whole.with_name("four")
    said = ended(started(["-m", "kgraft_cli", *RUN, "--out", out], 4))
    assert differences(whole, out) == []
    assert said[0] and not any("epoch" in own for own in said[1:])
    rows = (out / "metrics.csv").read_text().splitlines()
    assert rows == (whole / "metrics.csv").read_text().splitlines()


def test_a_run_goes_on_under_as_many_ranks(whole):
    out = whole.with_name("goes-on")
    ranks = started(["-m", "kgraft_cli", *RUN, "--out", out], 2)
    while not (out / "metrics.jsonl").exists() or '"peers"' not in (
        out / "metrics.jsonl"
    ).read_text("utf-8"):
        assert ranks[0].poll() is None, ranks[0].communicate()[0]
    for rank in ranks:
        rank.send_signal(signal.SIGTERM)
    codes = [(rank.communicate(timeout=60), rank.returncode)[1] for rank in ranks]
    if (out / "summary.json").exists():
        pytest.skip("it was over by then")
    assert set(codes) <= {143, 1} and 143 in codes
    alone = process(["-m", "kgraft_cli", "fit", "--resume", out])
    said = alone.communicate(timeout=60)[0]
    assert alone.returncode == 2
    assert (
        "checkpoints/peers is of 2 processes: start as many (torchrun --nproc-per-node 2)" in said
    )
    ended(started(["-m", "kgraft_cli", "fit", "--resume", out], 2))
    assert differences(whole, out) == []


def test_two_ranks_a_peer_train_as_one_does_but_for_batch_statistics(tmp_path):
    out = tmp_path / "replicas"
    more = ["--peers", "2", "--ranks-per-peer", "2", "--out", out]
    said = ended(started(["-m", "kgraft_cli", *RUN, *more], 4))
    assert not any("Traceback" in own for own in said)
    summary = json.loads((out / "summary.json").read_text())
    assert [row["peer"] for row in summary["peers"]] == [1, 2]
    grafts = [json.loads(line) for line in (out / "grafts.jsonl").read_text().splitlines()]
    assert {row["donor"] for row in grafts if row["peer"] == 1} == {2}


@pytest.mark.parametrize(
    ("ranks", "more", "said"),
    [
        (3, ["--peers", "2"], "3 ranks for 2 peers with 1 rank a peer: expected 2 at most"),
        (2, ["--ranks-per-peer", "3"], "and a multiple of 3"),
        (2, ["--on-lost-peer", "pray"], "Known: skip, stop, wait."),
        (2, ["--method", "mutual"], "needs all peers in one process"),
    ],
)
def test_what_cannot_be_shared_out_is_refused_in_one_line(tmp_path, ranks, more, said):
    arguments = ["-m", "kgraft_cli", "fit", *more, "--teachers", "0", "--out", tmp_path / "run"]
    processes = started(arguments, ranks)
    told = [own.communicate(timeout=60)[0] for own in processes]
    assert [own.returncode for own in processes] == [2] * ranks
    assert said in told[0] and "Traceback" not in "".join(told)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--peers", 6, r"peers\.count is [46] here, and [46] on the rank that came first"),
        ("--lr", 0.05, r"optimizer\.lr is 0\.[01]5? here, and 0\.[01]5? on the rank that came"),
    ],
)
def test_ranks_with_other_settings_train_no_run(tmp_path, option, value, said):
    arguments = ["-m", "kgraft_cli", *RUN, "--out", tmp_path / "run"]
    meet = ["--set", f'ring.directory="{tmp_path / "meet"}"']
    ranks = [
        process([*arguments, *meet, *more], RANK=str(rank), WORLD_SIZE="2")
        for rank, more in enumerate(([], [option, value]))
    ]
    told = [own.communicate(timeout=60)[0] for own in ranks]
    assert sorted(own.returncode for own in ranks) == [1, 2]  # who came second, and who was first
    second = told[[own.returncode for own in ranks].index(2)]
    assert re.search(said, second) and "Traceback" not in "".join(told)
    assert re.search(said, "".join(text for text in told if text is not second))  # it is told why


def test_ranks_per_peer_need_a_launcher(tmp_path):
    one = process(["-m", "kgraft_cli", "fit", "--ranks-per-peer", "2", "--out", tmp_path / "run"])
    said = one.communicate(timeout=60)[0]
    assert one.returncode == 2 and "start with torchrun" in said


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "number"), [("skip", signal.SIGSTOP), ("wait", signal.SIGKILL)])
def test_a_rank_that_is_lost_is_named_and_the_policy_kept(tmp_path, policy, number):
    """See `tests.faults.ranks` for the long form."""
    whole = tmp_path / "whole"
    if policy != "skip":
        assert not any(run_ranks(whole, "stop", None).wait())
    row = Row(policy, number.name)
    for tries in range(3):
        trial(row, tmp_path / f"run-{tries}", whole, number, random.Random(tries))
        if row.times:
            break
    assert row.times == 1 and row.wrong == [] and row.seconds and max(row.seconds) < 10
