"""The line between peers, point by point, by models that are put together here."""

import shutil

import keras
import numpy as np
import pytest
from scipy.special import log_softmax

from kgraft.errors import UserError
from kgraft.runs.answers import answers_told
from kgraft.runs.assembly import assemble
from kgraft.runs.connectivity import line_between
from kgraft.runs.execution import execute
from kgraft.training.soup import reestimate_statistics


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from kgraft.runs.config import Config
    from tests.runs.conftest import changed

    config = changed(
        Config(),
        run__epochs=2,
        run__batch_size=32,
        run__method="ensemble",
        peers__count=2,
        teachers__count=0,
        data__limit_train=128,
        data__limit_test=60,
    )
    place = tmp_path_factory.mktemp("runs") / "own"
    assembly = assemble(config)
    execute(assembly, place)
    return place, assembly


def test_every_point_is_a_network_of_its_own(run):
    place, assembly = run
    found = line_between(place, 1, 2, steps=3)
    assert found["share"] == [0.0, 0.5, 1.0]
    peers = [keras.models.load_model(place / f"peers/peer-{k}.keras") for k in (1, 2)]
    labels = assembly.dataset.test.labels
    for point, share in enumerate(found["share"]):
        model = keras.models.clone_model(peers[0])
        weights = zip(*(peer.get_weights() for peer in peers), strict=True)
        model.set_weights([a + share * (b - a) for a, b in weights])
        reestimate_statistics(model, assembly.train.epoch(0))
        logits = np.concatenate(
            [np.asarray(model(x, training=False).detach()) for x, _ in assembly.test.epoch(0)]
        )
        assert found["accuracy"][point] == pytest.approx((logits.argmax(1) == labels).mean())
        loss = -log_softmax(logits.astype(float), 1)[np.arange(len(labels)), labels].mean()
        assert found["loss"][point] == pytest.approx(loss, rel=1e-3)
    middle = found["loss"][1] - (found["loss"][0] + found["loss"][2]) / 2
    assert found["barrier"] == pytest.approx(max(middle, 0.0))
    flat = [
        np.concatenate([np.ravel(keras.ops.convert_to_numpy(w)) for w in peer.trainable_weights])
        for peer in peers
    ]
    apart = np.linalg.norm(flat[0] - flat[1]) / np.mean([np.linalg.norm(own) for own in flat])
    assert found["distance"] == pytest.approx(apart, rel=1e-5)


def test_a_line_has_two_ends(run):
    place, _ = run
    with pytest.raises(UserError, match="two different peers"):
        line_between(place, 1, 1)
    for ends in ((1, 3), (0, 1)):
        with pytest.raises(UserError, match=r"--line {} {}: the run in .* 1\.\.2".format(*ends)):
            line_between(place, *ends)


def test_a_peer_that_diverged_is_at_no_end(run, tmp_path):
    place = shutil.copytree(run[0], tmp_path / "own")
    diverge(place / "peers/peer-2.keras")
    with pytest.raises(UserError, match="--line 1 2: peer 2's weights are not finite"):
        line_between(place, 1, 2)


def test_of_a_peer_that_diverged_no_answer_is_known(run, tmp_path):
    place = shutil.copytree(run[0], tmp_path / "own")
    diverge(place / "peers/peer-2.keras")
    told = answers_told(run[0], place)
    well, sick = told["networks"][0], answers_told(place)["networks"][1]
    assert well["accuracy"] is not None and well["dead_activations"] is not None
    assert {own for key, own in sick.items() if key != "network"} == {None}
    assert told["baseline"] == {"accuracy": None, "calibration_error": None, "peers": 2}
    assert {own["above_baseline"] for own in told["classes"]} == {None}
    assert answers_told(place)["disagreement"] is None


def diverge(file):
    model = keras.models.load_model(file)
    model.set_weights([np.full_like(own, np.nan) for own in model.get_weights()])
    model.save(file)
