"""GraftingFit over several processes is GraftingFit in one, bit for bit."""

import json
import re

import keras
import numpy as np
import pytest

from tests.processes import ended, process, started
from tests.training.ring_cases import CASES, K

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.skipif(keras.config.backend() != "torch", reason="spawns processes of torch"),
]
RANKS = 2
NAMES = [*(case.__name__ for case in CASES), "resumed"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the cases came to, in one process and over the ranks."""
    directory = tmp_path_factory.mktemp("ring")
    script = ["-m", "tests.training.ring_cases", directory]
    ended([process(script), *started(script, RANKS)])
    alone = {name: dict(np.load(directory / f"{name}-all.npz")) for name in NAMES}
    parts = {
        name: [dict(np.load(directory / f"{name}-{rank}.npz")) for rank in range(RANKS)]
        for name in NAMES
    }
    errors = [json.loads((directory / f"errors-{rank}.json").read_text()) for rank in range(RANKS)]
    return alone, parts, errors


@pytest.mark.parametrize("name", NAMES)
def test_weights_logs_and_records_are_those_of_one_process(found, name):
    alone, parts, _ = found
    expected = alone[name]
    seen = set()
    for part in parts[name]:
        for key, value in part.items():
            np.testing.assert_array_equal(value, expected[key], err_msg=key)
        seen |= part.keys()
    assert seen == expected.keys()
    assert any(key.startswith(f"weight {K - 1}") for key in seen)


def test_cases_differ(found):
    """Else a case would not be what it is called."""
    alone = found[0]
    weights = {name: own["weight 0 0"].tobytes() for name, own in alone.items()}
    assert weights.pop("resumed") == weights["uninterrupted"]
    assert weights.pop("two_fits") == weights["plain"]
    assert len(set(weights.values())) == len(weights)


def test_each_rank_has_its_share_of_the_peers(found):
    places = [
        {int(key.split()[1]) for key in part if key.startswith("weight")}
        for part in found[1]["plain"]
    ]
    assert places == [{0, 1}, {2}]


def test_the_first_peers_logs_have_everybodys(found):
    first, second = found[1]["plain"]
    assert np.array_equal(first["log 0 peer3_loss"], second["log 2 loss"])
    assert np.array_equal(first["log 0 peer3_val_loss"], second["log 2 val_loss"])
    assert "log 1 peer3_loss" not in first


def test_a_training_that_one_peer_stops_ends_on_all_ranks(found):
    first, second = found[1]["stopped_by_one"]
    assert len(first["log 0 loss"]) == len(second["log 2 loss"]) == 2


def test_processes_that_do_not_train_the_same_are_refused_on_all(found):
    for errors in found[2]:
        assert (
            "peer 1 and peer 3, which is in another process, have different mixers"
            in (errors["mixers"])
        )
        assert re.search(r"have different mixers \(\w+ is .+ and .+\)", errors["mixers"])
        assert "have different steps an epoch" in errors["steps"]
        rule = "all ranks of a ring run the same program."
        assert errors["batches"] == f"batch_size is 8 on rank 0 and 9 on rank 1: {rule}"
        assert errors["saved"] == f"checkpoint= is given on rank 0 and None on rank 1: {rule}"
        assert (
            "different dtype policies (number 1 is float32 and mixed_bfloat16)"
            in (errors["policies"])
        )
        assert errors["waits"].startswith('on_lost_peer="wait" goes on from checkpoints')
        assert errors["callback"].startswith("callbacks holds a GraftCallback")
        assert "have different weights (number 1 is [72, 4] and [72, 5])" in errors["shapes"]
        assert "needs all peers in one process" in errors["mutual"]
        assert errors["link"] == "link is 'ring': expected kgraft.RingLink(...) or None."
        assert errors["few"] == "peers: 1, ranks: 2; every rank needs one."
