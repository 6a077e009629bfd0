"""`kgraft plan`, on ResNet8, whose weights are counted by hand."""

import math
import re
from pathlib import Path

import pytest
from kgraft_cli import main as program

ROOT = Path(__file__).parents[2]
# 3x3 kernels, seven batch normalisations with four numbers a channel, a classifier of 100
CONVOLUTIONS = 9 * (3 * 16 + 2 * 16 * 16 + 16 * 32 + 32 * 32 + 32 * 64 + 64 * 64)
CHANNELS = 3 * 16 + 2 * 32 + 2 * 64
NUMBERS = CONVOLUTIONS + 4 * CHANNELS + 64 * 100 + 100
ROW = 4 * NUMBERS
TRAINED = 4 * (NUMBERS - 2 * CHANNELS)
SLOW = ["--bandwidth", "0.001", "--host-bandwidth", "0.001", "--copy-bandwidth", "0.001"]
SLOW += ["--graft-bandwidth", "0.001", "--latency", "0", "--host-latency", "0"]
SLOW += ["--store-time", "0"]  # a million bytes a second, nothing else


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as left:
        program.main(["plan", "--model", "resnet8", *arguments])
    printed = capsys.readouterr()
    return left.value.code, printed.out, printed.err


def rows(out):
    return {name.strip(): told.strip() for name, told in re.findall(r"(?m)^│(.*?)│(.*?)│$", out)}


def seconds(size):
    return f"{size / 1e6:.3g} s" if size >= 1e6 else f"{size / 1e3:.3g} ms"


def test_two_peers_on_two_hosts(capsys):
    """Each of two lanes has two edges, both between hosts; both lanes share a card."""
    code, out, err = run(
        capsys, "--hosts", "2", "--gpus", "2", "--peers", "2", "--images-per-second", "500", *SLOW
    )
    assert (code, err) == (0, "")
    assert f"{NUMBERS:,} weights, {ROW / 1e3:.1f} kB, in 7 groups" in out
    assert "2 hosts, 4 ranks; 2 peers, each on 2 ranks that share its batches" in out
    assert "196 steps of 256 images an epoch" in out
    found = rows(out)
    assert found["ring edges within a process"] == found["ring edges within a host"] == "0"
    assert found["ring edges between hosts"] == "4"
    assert found["a rank sends"] == found["a rank receives"] == f"{ROW / 1e3:.1f} kB"
    assert found["busiest network card, each way"] == f"{2 * ROW / 1e3:.1f} kB"
    assert found["copies from and to the GPU"] == found["busiest link"] == seconds(2 * ROW)
    assert found["counting and blending"] == seconds(ROW)
    small = 4 * 2 * (8 + 7 * 8 + 8)  # ranks x peers x bytes a peer, three gathers
    assert found["small values through the store"] == f"{small} µs"
    mixing = 5 * ROW + small
    assert found["one mixing"] == found["mixings, 1 an epoch"] == seconds(mixing)
    assert found["gradients a rank sends a step"] == f"{TRAINED / 1e3:.1f} kB"
    assert found["the same, busiest network card"] == "0"  # a block lies on one host
    reducing = 2 * TRAINED  # two edges, one way each, 2 x 1/2 of the gradients
    assert found["gradients, a step"] == seconds(reducing)
    assert found["training"] == "50 s"
    share = mixing / (mixing + 196 * reducing + 50e6)
    assert found["share of the mixings"] == f"{share:.2%}"


def test_papa_meets_every_ten_steps(capsys):
    given = ("--gpus", "2", "--peers", "2", "--method", "papa", "--images", "12800")
    code, out, _ = run(capsys, *given, *SLOW)
    found = rows(out)
    assert code == 0 and "ring edges" not in out
    assert found["a rank sends"] == f"{ROW / 1e3:.1f} kB"  # 2 x 1/2 of the weights
    mixing = 5 * ROW + 2 * 2 * 16
    assert found["one mixing"] == seconds(mixing)
    assert found["mixings, 10 an epoch"] == seconds(10 * mixing)
    assert out.endswith("-m kgraft_cli fit RUNFILE --peers 2 --method papa\n")


def test_papa_all_meets_every_five_epochs(capsys):
    _, out, _ = run(capsys, "--gpus", "2", "--peers", "2", "--method", "papa-all", *SLOW)
    assert rows(out)["mixings, 0.2 an epoch"] == seconds(0.2 * (5 * ROW + 2 * 2 * 16))


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (
            "--hosts 64 --gpus 8 --peers 16",
            "torchrun --nnodes 64 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint "
            "HOST:29500 --rdzv-id NAME -m kgraft_cli fit RUNFILE --peers 16 --ranks-per-peer 32",
        ),
        (
            "--gpus 4 --peers 8",
            "torchrun --standalone --nproc-per-node 4 -m kgraft_cli fit RUNFILE --peers 8",
        ),
        ("--gpus 1 --peers 3", "kgraft fit RUNFILE --peers 3"),
    ],
)
def test_the_line_that_starts_it(capsys, given, line):
    code, out, _ = run(capsys, *given.split())
    assert code == 0
    assert out.splitlines()[-1] == line


def test_one_process_sends_nothing_and_blends_all_its_peers(capsys):
    _, out, _ = run(capsys, "--gpus", "1", "--peers", "3", *SLOW)
    found = rows(out)
    assert "1 host, 1 rank; 3 peers, 3 on a rank" in out
    assert found["ring edges within a process"] == "3"
    assert found["a rank sends"] == found["busiest link"] == "0"
    assert found["one mixing"] == seconds(3 * ROW)


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_it_is_shown_whole_at_any_width(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    _, out, _ = run(capsys, "--gpus", "2", "--peers", "2", "--images-per-second", "1000")
    *lines, command = out.splitlines()
    assert command.startswith("torchrun") and "…" not in out
    assert max(map(len, lines)) <= columns
    assert "one mixing" in out and "share of the mixings" in out


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            "--hosts 64 --peers 12",
            "512 ranks cannot be shared alike by 12 peers: 8 or 16 peers can; or say how many "
            "ranks a peer gets, a divisor of the ranks.",
        ),
        (
            "--hosts 64 --peers 16 --ranks-per-peer 8",
            "512 ranks with 8 per peer are 64 blocks, more than the 16 peers: take 32 ranks per "
            "peer, or at least 64 peers.",
        ),
        (
            "--peers 4 --ranks-per-peer 3",
            "8 ranks with 3 per peer: 3 does not divide 8, 2 or 4 does.",
        ),
        (
            "--peers 2 --batch-size 2",
            "--batch-size 2 is less than an image for each of a peer's 4 ranks: give 4 or more, "
            "or fewer --ranks-per-peer.",
        ),
        ("--bandwidth inf", "Invalid value for '--bandwidth': inf is no finite number."),
        ("--bandwidth fast", "Invalid value for '--bandwidth': 'fast' is not a valid number."),
        ("--latency -1", "Invalid value for '--latency': -1.0 is not in the range x>=0."),
        ("--hosts 0", "Invalid value for '--hosts': 0 is not in the range 1<=x<=4096."),
        ("--model resnet51", "model 'resnet51' is unknown. Did you mean 'resnet56'?"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(capsys, given, said):
    assert run(capsys, *given.split()) == (2, "", f"kgraft: {said}\n")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("resnet8", "resnet8, 32x32x3, 100 classes"),
        ("mobilenet_v2-224", "mobilenet_v2-224, 224x224x3, 1,000 classes"),
        ("MobileNetV3Small", "MobileNetV3Small, 224x224x3, 1,000 classes"),
    ],
)
def test_an_architecture_s_own_images_are_taken(capsys, given, told):
    _, out, _ = run(capsys, "--model", given)
    assert out.startswith(told)
    steps = math.ceil((1_281_167 if "224" in told else 50_000) / 128)
    assert f"{steps:,} steps of 128 images an epoch" in out


def test_the_document_shows_what_is_printed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = (ROOT / "kgraft" / "docs" / "many.md").read_text(encoding="utf-8")
    ((given, shown),) = re.findall(r"\n\$ kgraft plan (.*?)\n(.*?)```", text, re.S)
    _, out, _ = run(capsys, *given.split())
    assert out == shown
