"""`kgraft bench`: its arithmetic, its processes, and its independent networks."""

import json

import keras
import numpy as np
import pytest
from kgraft_cli.benchmarks import runner
from kgraft_cli.benchmarks.tasks import Task
from kgraft_cli.main import main

from kgraft import models
from kgraft.grafting import Graft

TORCH = keras.config.backend() == "torch"


def task(contender="kgraft", **changes):
    settings = {"model": "resnet8", "peers": 2, "batch_size": 32, "dataset": "digits"}
    return Task(contender, **{**settings, "data_dir": None, "steps": 1, **changes})


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main(list(map(str, arguments)))
    said = capsys.readouterr()
    return end.value.code or 0, said.out, said.err


@pytest.mark.parametrize(
    ("file", "message"),
    [("", "is a directory; expected a file."), ("no/f.jsonl", "there is no directory")],
)
def test_a_file_that_cannot_be_written_is_refused_before_the_work(capsys, tmp_path, file, message):
    code, out, err = run(capsys, "bench", "graft", "--json", tmp_path / file)
    assert (code, out, err.count("\n")) == (2, "", 1) and message in err


def test_an_epoch_is_its_steps_and_one_exchange():
    result = runner.Result(task(peers=4, batch_size=10), 1.0, [0.5, 1.0], [2.0, 0.0])
    # 25 images: 3 steps; 4 * 25 / (3 * 0.5 + 2) and 4 * 25 / 3
    assert result.throughput(25) == pytest.approx([100 / 3.5, 100 / 3])


def test_ratios_are_taken_within_a_round():
    mine = runner.Result(task(), 1.0, [1.0, 2.0, 3.0], [0.0] * 3, 5)
    other = runner.Result(task("pytorch"), 1.0, [2.0, 8.0, 3.0], [0.0] * 3, 5)
    failed = runner.Result(task("processes"), error="no such thing")
    rows = {row["contender"]: row for row in runner.rows([mine, other, failed], images=32)}
    assert rows["pytorch"]["kgraft_over_this"] == pytest.approx(2.0)
    assert rows["pytorch"]["kgraft_over_this_range"] == pytest.approx([1.0, 4.0])
    assert rows["kgraft"]["kgraft_over_this"] == 1
    assert rows["processes"]["error"] == "no such thing"


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_worker_that_dies_says_why_and_the_others_go_on():
    tasks = [task("keras-fit", model="nosuchnet"), task()]
    results = runner.run(tasks, 1, lambda _: None, together=True)
    assert "nosuchnet" in results[0].error
    assert results[1].error is None and results[1].step_seconds[0] > 0
    assert results[1].startup_seconds is None  # of both at once


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.skipif(not TORCH, reason="has PyTorch contenders")
def test_a_small_run_gives_a_table_and_numbers(capsys, tmp_path):
    file = tmp_path / "numbers.json"
    chosen = ("kgraft", "keras-fit", "pytorch-channels-last", "processes")
    code, out, err = run(
        capsys,
        *("bench", "--model", "resnet8", "--peers", 2, "--batch-size", 32, "--repeats", 1),
        *("--steps", 1, "--json", file, *(x for name in chosen for x in ("--contender", name))),
    )
    assert code == 0, err
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["contender"] for row in rows] == list(chosen)
    for row in rows:
        assert "error" not in row, row
        assert row["contender"] in out
        for name in ("images_per_second", "kgraft_over_this", "startup_seconds", "peak_bytes"):
            assert row[name] > 0, name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--repeats", 0), "--repeats 0"),
        (("--peers", "2,x"), "--peers 2,x"),
        (("--contender", "keras"), "Did you mean 'keras-fit'"),
        (("--model", "resnet9"), "resnet"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(capsys, arguments, said):
    code, out, err = run(capsys, "bench", *arguments)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert said in err


@pytest.mark.core
def test_the_per_layer_loop_grafts_as_kgraft_does():
    from kgraft_cli.benchmarks.grafting import per_layer_loop

    def peers():
        made = []
        for k in range(3):
            keras.utils.set_random_seed(k)
            made.append(models.resnet8(input_shape=(8, 8, 1), classes=10))
        return made

    ours, looped = peers(), peers()
    record = Graft().mix(ours)
    assert record.coefficients.std() > 0.01
    # float32 entropies: eq. 7's slope at equality is 64
    np.testing.assert_allclose(per_layer_loop(looped), record.coefficients, atol=2e-3)
    for mine, other in zip(ours, looped, strict=True):
        for own, expected in zip(mine.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_allclose(own, expected, atol=2e-3)


@pytest.mark.skipif(not TORCH, reason="needs torch")
@pytest.mark.parametrize("name", ["resnet8", "resnet20", "mobilenet_v2"])
def test_the_hand_written_networks_are_as_large(name):
    from kgraft_cli.benchmarks.pytorch import network

    ours = models.build(name, input_shape=(32, 32, 3), classes=100)
    theirs = network(name, 3, 100)
    count = sum(weight.numel() for weight in theirs.parameters())
    assert count == sum(int(np.prod(weight.shape)) for weight in ours.trainable_weights)
