import zipfile

import keras
import numpy as np
import pytest
import torch

from kgraft import models
from kgraft.errors import UserError
from kgraft.runs import state_dict
from kgraft.runs.assembly import assemble
from kgraft.runs.execution import execute
from kgraft.runs.weights import export_weights, import_weights
from tests.reference.torch_models import (
    TWINS,
    CifarResNet,
    NamedWideResNet,
    copy_to,
    randomise,
)

CLASSES = 5
SAME_OTHER = ("same", "other")
LARGE = {"resnet110", "wrn-28-10", "resnet34", "resnet50"}


def twin_of(name, channels=3, classes=CLASSES):
    twin = TWINS[name](channels, classes)
    randomise(twin, torch.Generator().manual_seed(4))
    return twin


def same_bits(ours, theirs):
    return ours.shape == theirs.shape and ours.tobytes() == theirs.tobytes()


def weights_of(state):
    return {k: np.asarray(v) for k, v in state.items() if not k.endswith("num_batches_tracked")}


def test_the_size_is_the_sources_where_it_knows_it(tmp_path):
    models.build("wrn-10-1", input_shape=(10, 12, 1), classes=3).save(tmp_path / "m.keras")
    import_weights(tmp_path / "m.keras", "wrn-10-1", tmp_path / "same.keras")
    import_weights(tmp_path / "m.keras", "wrn-10-1", tmp_path / "other.keras", size=16)
    shapes = [keras.models.load_model(tmp_path / f"{n}.keras").input_shape for n in SAME_OTHER]
    assert shapes == [(None, 10, 12, 1), (None, 16, 16, 1)]


def test_a_tensor_that_is_not_dense_is_refused_in_one_line(tmp_path):
    state = twin_of("wrn-10-1").state_dict()
    key = next(iter(state))
    for wrong in (torch.eye(3).to_sparse(), torch.empty(3, device="meta")):
        torch.save({**state, key: wrong}, tmp_path / "w.pt")
        with pytest.raises(UserError, match=f"{key} is a sparse, quantized or empty tensor") as no:
            state_dict.read(tmp_path / "w.pt")
        assert "\n" not in str(no.value)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in TWINS]
)
def test_every_architecture_goes_both_ways_bit_for_bit(name, tmp_path):
    twin = twin_of(name)
    torch.save(twin.state_dict(), tmp_path / "twin.pt")
    model = import_weights(tmp_path / "twin.pt", name, tmp_path / "student.keras", size=16)
    by_hand = models.build(name, input_shape=(16, 16, 3), classes=CLASSES)
    copy_to(by_hand, twin)
    assert all(map(same_bits, model.get_weights(), by_hand.get_weights()))
    saved = keras.models.load_model(tmp_path / "student.keras")
    assert all(map(same_bits, saved.get_weights(), by_hand.get_weights()))

    layout = {"wrn": "wide", "vgg": "vgg", "mob": "mobilenet"}.get(name[:3])
    layout = "torchvision-mobilenet" if name == "mobilenet_v2-224" else layout
    layout = layout or ("cifar" if isinstance(twin, CifarResNet) else "torchvision")
    export_weights(tmp_path / "student.keras", tmp_path / "back.pt", layout=layout)
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    theirs = weights_of(twin.state_dict())
    assert set(back) == set(twin.state_dict())
    assert all(same_bits(weights_of(back)[key], theirs[key]) for key in theirs)
    TWINS[name](3, CLASSES).load_state_dict(back)  # strict


@pytest.mark.parametrize(("name", "shape"), [("wrn-16-2", (2, 2)), ("wrn-10-1", (1, 1))])
def test_the_authors_wide_resnet_goes_both_ways_bit_for_bit(name, shape, tmp_path):
    twin = NamedWideResNet(*shape, 3, CLASSES)
    randomise(twin, torch.Generator().manual_seed(4))
    torch.save({"net": twin.state_dict(), "acc": 95.8}, tmp_path / "best_199.t7")
    model = import_weights(tmp_path / "best_199.t7", name, tmp_path / "student.keras", size=16)
    images = np.random.default_rng(2).normal(size=(4, 16, 16, 3)).astype("float32")
    with torch.no_grad():
        theirs = twin.eval()(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    ours = keras.ops.convert_to_numpy(model(images, training=False))
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())

    export_weights(tmp_path / "student.keras", tmp_path / "back.pt", layout="hysts")
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert list(back) == list(twin.state_dict())
    state = weights_of(twin.state_dict())
    assert all(same_bits(weights_of(back)[key], value) for key, value in state.items())


@pytest.mark.core
def test_channels_and_classes_are_those_of_the_weights(tmp_path):
    torch.save(twin_of("resnet20", 1, 13).state_dict(), tmp_path / "twin.pth")
    model = import_weights(tmp_path / "twin.pth", "resnet20", tmp_path / "s.keras")
    assert (model.input_shape, model.output_shape) == ((None, 32, 32, 1), (None, 13))
    torch.save(twin_of("resnet18", 3, 4).state_dict(), tmp_path / "big.pth")
    big = import_weights(tmp_path / "big.pth", "resnet18", tmp_path / "b.keras")
    assert big.input_shape == (None, 224, 224, 3)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "best_prec1": 91.7, "epoch": 3},
        lambda state: {"net": state, "acc": 91.7},
        lambda state: {"net": state, "acc": np.float64(91.7), "epoch": np.int64(3)},
        lambda state: {"net": state, "acc": [np.float32(91.7)], "done": np.bool_(True)},
        lambda state: {"model": {f"module.{k}": v for k, v in state.items()}},
        lambda state: {f"_orig_mod.{k}": v for k, v in state.items()},
    ],
    ids=["state_dict", "net", "NumPy scalar", "NumPy scalars", "DataParallel", "compiled"],
)
def test_checkpoints_as_they_are_usually_wrapped(wrap, tmp_path):
    state = twin_of("resnet20").state_dict()
    torch.save(wrap(state), tmp_path / "checkpoint.pt")
    assert set(state_dict.read(tmp_path / "checkpoint.pt")) == set(state)


def test_scalars_of_numpy_1_are_tolerated_too(tmp_path):
    """NumPy 2 has moved the module that the pickle names."""
    state = twin_of("resnet20").state_dict()
    torch.save({"net": state, "acc": np.float64(91.7)}, tmp_path / "new.pt")
    with (
        zipfile.ZipFile(tmp_path / "new.pt") as new,
        zipfile.ZipFile(tmp_path / "old.pt", "w", zipfile.ZIP_STORED) as old,
    ):
        for name in new.namelist():
            moved = (b"numpy._core.multiarray", b"numpy.core.multiarray")
            old.writestr(name, new.read(name).replace(*moved))
    assert set(state_dict.read(tmp_path / "old.pt")) == set(state)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_every_format_holds_the_same(suffix, tmp_path):
    model = models.resnet8(classes=3, input_shape=(8, 8, 1))
    model.save(tmp_path / "model.keras")
    state = export_weights(tmp_path / "model.keras", tmp_path / f"w{suffix}")
    read = state_dict.read(tmp_path / f"w{suffix}")
    assert set(read) == set(state)
    assert all(same_bits(read[key], value) for key, value in state.items())
    again = import_weights(tmp_path / f"w{suffix}", "resnet8", tmp_path / "again.keras", size=8)
    assert all(map(same_bits, again.get_weights(), model.get_weights()))


def test_half_precision_is_widened_and_special_values_kept(tmp_path):
    state = {k: v.half() for k, v in twin_of("wrn-10-1").state_dict().items()}
    torch.save(state, tmp_path / "half.pt")
    model = import_weights(tmp_path / "half.pt", "wrn-10-1", tmp_path / "m.keras")
    np.testing.assert_array_equal(
        model.get_layer("stem").get_weights()[0],
        state["conv1.weight"].float().permute(2, 3, 1, 0).numpy(),
    )
    odd = twin_of("wrn-10-1").state_dict()
    bits = np.array([0x7FC12345, 0xFF800000, 0x80000000, 0x00000001], np.uint32)
    odd["bn1.bias"][:4] = torch.from_numpy(bits.view(np.float32))
    torch.save(odd, tmp_path / "odd.pt")
    model = import_weights(tmp_path / "odd.pt", "wrn-10-1", tmp_path / "odd.keras")
    assert model.get_layer("last_bn").get_weights()[1][:4].view(np.uint32).tolist() == bits.tolist()


def test_a_runs_peers_go_to_pytorch(tiny, tmp_path):
    execute(assemble(tiny(teachers__count=0)), tmp_path / "run")
    for k in (1, 2):
        peer = keras.models.load_model(tmp_path / "run" / "peers" / f"peer-{k}.keras")
        state = export_weights(tmp_path / "run", tmp_path / f"{k}.pt", peer=k)
        kernel = peer.get_layer("stem").get_weights()[0]
        np.testing.assert_array_equal(state["conv1.weight"], kernel.transpose(3, 2, 0, 1))
        again = import_weights(tmp_path / "run", "resnet8", tmp_path / f"{k}.keras", peer=k, size=8)
        assert all(map(same_bits, again.get_weights(), peer.get_weights()))
    with pytest.raises(UserError, match=r"--peer 3: the run in .* has peers 1..2"):
        export_weights(tmp_path / "run", tmp_path / "3.pt", peer=3)


class Pickled:
    """Something that a state dict must not hold."""


class Call:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return exec, ("raise AssertionError('code from a file was executed')",)


def damaged(folder):
    """File -> the architecture it is given for, and what is said of it."""
    state = twin_of("resnet20").state_dict()
    whole = folder / "whole.pt"
    torch.save(state, whole)
    cases = {}

    def case(name, architecture, message, content=None):
        if content is not None:
            torch.save(content, folder / name)
        cases[name] = (architecture, message)

    (folder / "truncated.pt").write_bytes(whole.read_bytes()[:20_000])
    case("truncated.pt", "resnet20", "truncated.pt is no PyTorch file, or is damaged.")
    (folder / "text.pt").write_text("these are no weights\n")
    case("text.pt", "resnet20", "text.pt is no PyTorch file, or is damaged.")
    (folder / "empty.pt").touch()
    case("empty.pt", "resnet20", "empty.pt is no PyTorch file, or is damaged.")
    case("module.pt", "resnet20", "holds pickled objects, which are not executed", Pickled())
    case("list.pt", "resnet20", "of type list; expected a state dict", [torch.zeros(1)])
    case("number.pt", "resnet20", "epoch is of type int; expected a tensor.", {**state, "epoch": 3})
    scalar = {**state, "acc": np.float64(91.7)}
    case("scalar.pt", "resnet20", "acc is a NumPy scalar; expected a tensor.", scalar)
    array = {"net": state, "rng": np.zeros(3)}
    case("array.pt", "resnet20", "holds pickled objects, which are not executed", array)
    case("call.pt", "resnet20", "holds pickled objects, which are not executed", {"net": Call()})
    double = {k: v.double() for k, v in state.items()}
    case("double.pt", "resnet20", "conv1.weight is float64; expected float32", double)
    case(
        "deeper.pt",
        "resnet32",
        "deeper.pt: no layer1.3.conv1.weight of shape (16, 16, 3, 3), which resnet32 needs.",
        state,
    )
    case("foreign.pt", "vgg16", "holds none of vgg16's keys: it begins with conv1.weight", state)
    flat = {"features.0.weight": torch.zeros(16, 3, 3, 3)}
    known = "layouts known for it: wide (conv1.weight, ...), hysts (conv.weight, ...)."
    case("unknown.pt", "wrn-16-2", f"begins with features.0.weight; {known}", flat)
    half = {"fc.weight": torch.zeros(5, 128), **flat}
    case("half.pt", "wrn-16-2", f"which wrn-16-2 needs. It holds features.0.weight; {known}", half)
    wide = twin_of("resnet18").state_dict()
    case(
        "wide.pt",
        "resnet20",
        "wide.pt: conv1.weight is (64, 3, 7, 7); resnet20 expects (16, 3, 3, 3).",
        wide,
    )
    option_b = {**state, "layer2.0.downsample.0.weight": torch.zeros(32, 16, 1, 1)}
    case(
        "option-b.pt",
        "resnet20",
        "layer2.0.downsample.0.weight (32, 16, 1, 1) has no place in resnet20.",
        option_b,
    )
    state_dict.write(folder / "good.safetensors", {"a": np.zeros(3, np.float32)})
    cut = (folder / "good.safetensors").read_bytes()[:-4]
    (folder / "cut.safetensors").write_bytes(cut)
    case("cut.safetensors", "resnet20", "cut.safetensors is no safetensors file: ")
    case("absent.pt", "resnet20", "absent.pt: no such file.")
    return cases


def test_what_does_not_fit_gets_one_line_and_writes_nothing(tmp_path):
    for name, (architecture, message) in damaged(tmp_path).items():
        with pytest.raises(UserError) as caught:
            import_weights(tmp_path / name, architecture, tmp_path / "out.keras")
        print(caught.value)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out.keras").exists()


def test_wrong_outputs_layouts_and_models_are_refused(tmp_path):
    model = models.resnet8(classes=3, input_shape=(8, 8, 1))
    model.save(tmp_path / "model.keras")
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)]).save(tmp_path / "dense.keras")
    (tmp_path / "text.keras").write_text("no model")

    def refusal(call):
        with pytest.raises(UserError) as caught:
            call()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def export(source, out, **options):
        return refusal(lambda: export_weights(tmp_path / source, tmp_path / out, **options))

    assert "expected a name that ends in .pt, .pth, .safetensors" in export("model.keras", "w.bin")
    assert "text.keras exists already" in refusal(
        lambda: import_weights(tmp_path / "model.keras", "resnet8", tmp_path / "text.keras")
    )
    assert "there is no directory" in export("model.keras", "none/w.pt")
    assert "layout 'torchvison' does not fit resnet8. Did you mean 'torchvision'?" in export(
        "model.keras", "w.pt", layout="torchvison"
    )
    assert "no PyTorch layout is known" in export("dense.keras", "w.pt")
    assert "is no Keras model that can be loaded" in export("text.keras", "w.pt")
    assert "holds no run.toml" in export(".", "w.pt")
    assert "expected a name that ends in .keras" in refusal(
        lambda: import_weights(tmp_path / "model.keras", "resnet8", tmp_path / "w.h5")
    )
    assert "model 'resnet9' is unknown" in refusal(
        lambda: import_weights(tmp_path / "model.keras", "resnet9", tmp_path / "new.keras")
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "dense.keras",
        "model.keras",
        "text.keras",
    ]
