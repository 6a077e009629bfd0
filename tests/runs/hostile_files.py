"""Files that somebody means ill with: each is put where kgraft would read it, by the command given.

`ATTACKS`: name -> a function that is given a directory with a finished run, `run`, and one that was
broken off, `broken`, and returns the command line; and the words that the answer holds.
"""

import gzip
import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import warnings
import zipfile

import h5py
import keras
import numpy as np
import torch

from kgraft.training.checkpoint_files import _checksum, _checksum_of

GIB = 1 << 30
ATTACKS = {}


def attack(name, *said, code=2):
    def add(make):
        ATTACKS[name] = (make, said, code)
        return make

    return add


def fit(*arguments):
    small = ("--peers", 2, "--teachers", 0, "--epochs", 1, "--limit-train", 80, "--limit-test", 40)
    return ["fit", *small, "--out", "new", *arguments]


def taught_by(file):
    return ["fit", "--peers", 2, "--teachers", 1, "--epochs", 1, "--set",
            f"teachers.files=['{file}']", "--out", "new"]  # fmt: skip


def edited(file, change):
    """A JSON file with something changed."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


# run directories: JSON


def summary(name, change, *said):
    def make(here):
        edited(here / "run/summary.json", change)
        return ["select", "run"]

    attack(f"summary.json {name}", "summary.json", *said)(make)


summary("without peers", lambda s: s.pop("peers"), "peers is missing")
summary("of an object as peers", lambda s: s.update(peers={}), "expected a list")
summary("of words as peers", lambda s: s.update(peers=["x", "y"]), "peers[0] is 'x': expected an")
summary("without a score", lambda s: s["peers"][1].pop("validation_accuracy"), "peers[1]")
summary("with a word as score", lambda s: s["peers"][0].update(validation_accuracy="x"), "is 'x'")
summary("with NaN as score", lambda s: s["peers"][0].update(test_accuracy=float("nan")), "cut off")
summary("with 10**400 as score", lambda s: s["peers"][0].update(test_accuracy=10**400), "expected")
summary("of no peers", lambda s: s.update(peers=[]), "0 peers, run.toml 2")
summary("of 5000 peers", lambda s: s.update(peers=s["peers"] * 2500), "5000 peers, run.toml 2")


def written(name, file, content, command, *said):
    def make(here):
        (here / file).write_bytes(content)
        return command

    attack(name, *said)(make)


DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
for name, content in {
    "nested without end": DEEP,
    "not UTF-8": b'{"peers": "\xff\xfe"}',
    "of 20 MiB": b'{"peers": [' + b" " * (20 << 20) + b"]}",
    "a list": b"[1, 2]",
}.items():
    written(f"summary.json {name}", "run/summary.json", content, ["evaluate", "run"], "summary")
    written(f"environment.json {name}", "broken/environment.json", content,
            ["fit", "--resume", "broken"], "environment.json")  # fmt: skip
written("run.toml nested without end", "run/run.toml", b"a = " + b"[" * 100_000,
        ["evaluate", "run"], "nested too deep")  # fmt: skip
written("run.toml not UTF-8", "run/run.toml", b"\xff\xfe", ["evaluate", "run"], "cannot be read")
written("run.toml of 20 MiB", "run/run.toml", b"#" * (20 << 20), ["evaluate", "run"], "more than")
for value in (3, "rm -rf ~", None, {"name": 3}, {"name": "$(rm -rf ~)"}):
    text = json.dumps({"backend": value}).encode()
    written(f"environment.json's backend {value}", "broken/environment.json", text,
            ["fit", "--resume", "broken"], "environment.json")  # fmt: skip


def selection(name, change, *said):
    def make(here):
        comparison(here)
        edited(here / "all/plain/seed-0/select.json", change)
        return ["compare", "c.toml", "--out", "all", "--only-read"]

    attack(f"select.json {name}", "select.json", *said)(make)


def comparison(here):
    """A comparison of one entry whose run is the finished one."""
    (here / "c.toml").write_text(
        "[comparison]\nseeds = [0]\n[common]\nrun.epochs = 1\nrun.batch_size = 32\n"
        "data.limit_train = 96\ndata.limit_test = 40\n"
        '[entries.plain]\nrun.method = "graft"\npeers.count = 2\n'
    )
    (here / "all/plain").mkdir(parents=True)
    shutil.copytree(here / "run", here / "all/plain/seed-0")
    scores = {"networks": 1, "test_accuracy": 0.5, "validation_accuracy": 0.5, "peers": [1]}
    found = dict.fromkeys(("best peer", "uniform soup", "greedy soup", "ensemble"), scores)
    (here / "all/plain/seed-0/select.json").write_text(json.dumps(found))


selection("without the best peer", lambda s: s.pop("best peer"), "best peer is missing")
selection("with a word as score", lambda s: s["best peer"].update(test_accuracy="[/red]"), "[/red]")
selection("with a list as networks", lambda s: s["ensemble"].update(networks=[]), "networks")


@attack("comparison.json of nonsense is not read", code=0)
def _(here):
    comparison(here)
    (here / "all/comparison.json").write_bytes(DEEP)
    return ["compare", "c.toml", "--out", "all", "--only-read"]


@attack("metrics.jsonl of nonsense is not read", code=0)
def _(here):
    (here / "run/metrics.jsonl").write_bytes(DEEP)
    return ["evaluate", "run"]


# run directories: links and pipes


def linked(name, file, target, command, *said):
    def make(here):
        path = here / file
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        (here / "outside").mkdir()
        (here / "outside/precious.txt").write_text("precious\n" * 10_000)
        path.symlink_to(here / target)
        return command

    attack(f"a link: {name}", "symbolic link", *said)(make)


RESUME, SELECT = ["fit", "--resume", "broken"], ["select", "run"]
linked("metrics.jsonl", "broken/metrics.jsonl", "outside/precious.txt", RESUME, "metrics.jsonl")
linked("the lock", "broken/.lock", "outside/new.txt", RESUME, ".lock")
linked("checkpoints", "broken/checkpoints", "outside", RESUME, "checkpoints")
linked("peers", "broken/peers", "outside", RESUME, "peers")
linked("select.json", "run/select.json", "outside/precious.txt", SELECT, "select.json")


@attack("a link: where a soup is written first", "symbolic link")
def _(here):
    (here / "outside").mkdir()
    (here / "outside/precious.txt").write_text("precious")
    (here / f"run/.select.{os.getpid()}.json").symlink_to(here / "outside/precious.txt")
    return SELECT


@attack("a pipe: state.json", "no ordinary file")
def _(here):
    state = sorted(here.glob("broken/checkpoints/peers/epoch-*"))[-1] / "state.json"
    state.unlink()
    os.mkfifo(state)
    return RESUME


# checkpoints: the checksum is right, whoever can change a state can count it


def state(name, change, *said, command=RESUME):
    def make(here):
        folder = sorted(here.glob("broken/checkpoints/peers/epoch-*"))[-1]
        for other in folder.parent.glob("epoch-*"):
            if other != folder:
                shutil.rmtree(other)
        told = json.loads((folder / "state.json").read_text())
        told = change(told, folder) or told
        told["arrays"] = told.get("arrays") and _checksum_of(folder / "arrays.safetensors")
        told["checksum"] = _checksum(told)
        (folder / "state.json").write_text(json.dumps(told))
        return command

    attack(f"checkpoint {name}", *said, code=said and 2)(make)


def put(*keys, value):
    def change(told, _):
        for key in keys[:-1]:
            told = told[key]
        told[keys[-1]] = value

    return change


def recorder(told):
    return next(entry for entry in told["state"]["callbacks"][-1] if entry[0] == "_Watch")[1]


def recorded(key, value):
    return lambda told, _: recorder(told).update({key: value})


LINES = ("metrics.jsonl", "grafts.jsonl")
FOREIGN = "is not as kgraft writes it"
state("with a word as epoch", put("state", "told", value="x"), FOREIGN, "told is 'x'")
state("with a word as begins", put("state", "begins", value="x"), FOREIGN)
state("with a list as identity", put("state", "identity", value=[]), FOREIGN)
state("with a session of words", put("state", "session", value="x"), FOREIGN)
state("with another epoch", put("state", "session", "epochs_done", value=7), FOREIGN)
state("with a mixer's state of words", put("state", "session", "put_off", value="x"), FOREIGN)
state("with records of nothing", put("state", "records", value={}), FOREIGN)
state("with an array that is not there", put("state", "random", value={"__array__": "x"}), FOREIGN)
state("with an array of a list", put("state", "random", value={"__array__": []}), FOREIGN)
state("with chance of words", put("state", "random", "python", value="x"), FOREIGN)
state("with no callbacks", put("state", "callbacks", value=3), FOREIGN)
state("with callbacks of words", put("state", "callbacks", value=[["x"], ["y"]]), FOREIGN)
state("with logs of one peer", put("state", "logs", value=[{}]), FOREIGN)
state("with best epochs of words", recorded("best_epoch", "x"), "best epochs are of other models")
state("with no best weights", recorded("best_weights", [[], []]), "best epochs are of other models")
state("with lengths of words", recorded("lines", {"metrics.jsonl": "x"}), "lengths")
state(
    "with lengths below zero",
    recorded("lines", {name: {"size": -5, "checksum": 0} for name in LINES}),
    "lengths of its files",
)


def nested_state(told, _):
    inner = 1
    for _ in range(700):
        inner = {"a": inner}
    told["state"]["session"]["mixer"] = inner


state("nested deep", nested_state, FOREIGN)


# a damaged one is passed over: the run goes on from its beginning


def sparse_header(_, folder):
    claims = json.dumps({"000000": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1]}})
    header = struct.pack("<Q", len(claims)) + claims.encode()
    (folder / "arrays.safetensors").write_bytes(header + bytes(8))


state("whose arrays claim terabytes", sparse_header)
state("without arrays", put("arrays", value=None))
state("without a version", lambda told, _: {k: told[k] for k in told if k != "version"})
state("without a state", lambda told, _: {k: told[k] for k in told if k != "state"})


# teachers that a run has trained


@attack("teacher-1.json of words", "teacher-1.json", "row is 'x'")
def _(here):
    (here / "broken/teachers/teacher-1.json").write_text('{"row": "x", "lines": {}}')
    return RESUME


@attack("teacher-1.json with lengths of words", "lengths of its files")
def _(here):
    edited(here / "broken/teachers/teacher-1.json", lambda told: told.update(lines=[1]))
    return RESUME


@attack("teacher-1.keras of another network", "another network than teacher 1")
def _(here):
    dense((8, 8, 1), 10).save(here / "broken/teachers/teacher-1.keras")
    return RESUME


# .keras files


def dense(shape=(8, 8, 1), classes=10):
    layers = keras.layers
    return keras.Sequential([keras.Input(shape), layers.Flatten(), layers.Dense(classes)])


def keras_file(name, *said, config=None, more=None, weights=None, how=zipfile.ZIP_STORED):
    """A model whose config is changed, whose archive holds more, or whose weights are others."""

    def make(here):
        dense().save(here / "plain.keras")
        with zipfile.ZipFile(here / "plain.keras") as old:
            parts = {part: old.read(part) for part in old.namelist()}
        if config is not None:
            told = json.loads(parts["config.json"])
            told = config(told) or told
            parts["config.json"] = told if isinstance(told, bytes) else json.dumps(told).encode()
        if weights is not None:
            parts["model.weights.h5"] = weights(parts["model.weights.h5"])
        parts |= more or {}
        with zipfile.ZipFile(here / "evil.keras", "w", how) as new:
            for part, content in parts.items():
                new.writestr(part, content)
        (here / "plain.keras").unlink()
        return taught_by("evil.keras")

    attack(f".keras {name}", "teacher evil.keras", *said)(make)


def layer(number, **changes):
    return lambda told: told["config"]["layers"][number]["config"].update(changes)


def instead(number, **entry):
    def change(told):
        told["config"]["layers"][number] = {**told["config"]["layers"][number], **entry}

    return change


def built_deep(told):
    inner = {}
    for _ in range(400):
        inner = {"class_name": "x", "config": inner}
    told["config"]["layers"].append(inner)


def conv(told):
    """Images that grow: a kernel of nothing, and numbers without end."""
    growing = {"module": "keras.layers", "class_name": "UpSampling2D", "registered_name": None}
    for k in range(3):
        own = {**growing, "config": {"name": f"up{k}", "size": [100, 100]}}
        told["config"]["layers"].insert(1, own)
    told["config"]["layers"].insert(
        4, {**growing, "class_name": "GlobalMaxPooling2D", "config": {"name": "down"}}
    )
    told["config"]["layers"][-1]["build_config"] = {"input_shape": [None, 1]}


LAMBDA = {"class_name": "__lambda__", "config": {"value": "4wEAAAA=", "defaults": None}}
keras_file("with 10**12 neurons", "bytes of weights", config=layer(2, units=10**12))
keras_file("with 10**9 neurons", "bytes of weights", config=layer(2, units=10**9))
keras_file("with -1 neurons", config=layer(2, units=-1))
keras_file("with a word as neurons", config=layer(2, units="x"))
keras_file("with images of 10**9", "bytes of weights", config=lambda told: [
    layer(0, batch_shape=[None, 10**9, 10**9, 1])(told), told["config"]["layers"][2].pop(
        "build_config")][1:1])  # fmt: skip
keras_file("that grows images", "numbers of an image", config=conv)
keras_file("with a Lambda layer", config=instead(
    1, class_name="Lambda", config={"name": "evil", "function": LAMBDA}))  # fmt: skip
keras_file("with os.system", config=instead(1, class_name="system", module="os",
                                            registered_name="system"))  # fmt: skip
keras_file("with a class of nobody", config=instead(1, class_name="Evil", module="evil",
                                                    registered_name="evil>Evil"))  # fmt: skip
keras_file("with a function that loads", config=instead(
    1, class_name="function", module="keras.saving", config="load_model"))  # fmt: skip
keras_file("with a torch pickle", config=instead(
    1, class_name="TorchModuleWrapper", config={"name": "t", "module": {
        "class_name": "__bytes__", "config": {"value": "x"}}}))  # fmt: skip
keras_file("with a SavedModel", config=instead(
    1, class_name="TFSMLayer", config={"name": "t", "filepath": "/tmp/evil"}))  # fmt: skip
keras_file("whose vocabulary is a file", config=instead(
    1, class_name="StringLookup", config={"name": "t", "vocabulary": "/etc/passwd"}))  # fmt: skip
keras_file("of a list", config=lambda told: b"[1]")
keras_file("of a word", config=lambda told: b'"x"')
keras_file("of nothing", config=lambda told: b"{}")
keras_file("that is a layer", config=lambda told: told["config"]["layers"][1])
keras_file("not UTF-8", config=lambda told: b'{"a": "\xff"}')
keras_file("nested without end", config=lambda told: DEEP)
keras_file("nested deep", config=built_deep)
keras_file("with NaN", config=layer(2, units=float("nan")))
keras_file("with a path that leads out", "'../../evil.txt'", more={"../../evil.txt": b"evil"})
keras_file("with a root's path", "'/tmp/evil.txt'", more={"/tmp/evil.txt": b"evil"})
keras_file("with assets", "'assets/a.txt'", more={"assets/a.txt": b"x"})
keras_file("with a pickle", "'model.pkl'", more={"model.pkl": pickle.dumps(print)})
keras_file("with a packed gigabyte of config", "unpacks to", how=zipfile.ZIP_DEFLATED,
           more={"config.json": b" " * (1 << 28) + b"{}"})  # fmt: skip
keras_file("with a packed gigabyte of weights", "unpacks to", how=zipfile.ZIP_DEFLATED,
           weights=lambda _: bytes(1 << 28))  # fmt: skip


def h5(make):
    def weights(_):
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            own = file.create_group("layers/dense/vars")
            make(own)
        return buffer.getvalue()

    return weights


def swollen(group):
    group.create_dataset("0", shape=(1 << 14, 1 << 14), dtype="f8", chunks=(128, 128),
                         compression="gzip", fillvalue=1.0)  # fmt: skip


def outer(group):
    group["0"] = h5py.ExternalLink("/etc/passwd", "/")


def external(group):
    group.create_dataset("0", shape=(64, 10), dtype="f4", external=[("/etc/passwd", 0, 2560)])


keras_file("with weights that claim 2 GiB", "and 0 are stored", weights=h5(swollen))
keras_file("with weights elsewhere", weights=h5(outer))
keras_file("with weights in /etc/passwd", weights=h5(external))
keras_file("with weights of nobody", weights=h5(lambda group: None))
keras_file("with weights of words", weights=lambda _: b"these are none")
keras_file("with weights cut off", weights=lambda content: content[:3000])


@attack(".keras with a part twice", "a part twice")
def _(here):
    dense().save(here / "evil.keras")
    with zipfile.ZipFile(here / "evil.keras", "a") as archive:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            archive.writestr("config.json", "{}")
    return taught_by("evil.keras")


def made(name, make_model, *said):
    def make(here):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of one that is not built
            make_model().save(here / "evil.keras")
        return taught_by("evil.keras")

    attack(f".keras {name}", "teacher evil.keras", *said)(make)


def two_inputs():
    one, other = keras.Input((8, 8, 1)), keras.Input((8, 8, 1))
    flat = keras.layers.Flatten()(keras.layers.Concatenate()([one, other]))
    return keras.Model([one, other], keras.layers.Dense(10)(flat))


def two_outputs():
    one = keras.Input((8, 8, 1))
    flat = keras.layers.Flatten()(one)
    return keras.Model(one, [keras.layers.Dense(10)(flat), keras.layers.Dense(10)(flat)])


def a_map():
    return keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(10, 3)])


made("of two inputs", two_inputs, "one input and one output")
made("of two outputs", two_outputs, "one input and one output")
made("that answers with a map", a_map, "expected one number a class")
made("of nothing built", lambda: keras.Sequential([keras.layers.Dense(10)]), "one input")


@attack("a peer of other images", "takes images of (9, 9, 1)")
def _(here):
    dense((9, 9, 1)).save(here / "run/peers/peer-2.keras")
    return ["evaluate", "run"]


@attack("a peer of another network", "peer 2 is another network than peer 1")
def _(here):
    dense().save(here / "run/peers/peer-2.keras")
    return SELECT


@attack("a model whose layers are called as kgraft's are", "no PyTorch layout is known")
def _(here):
    given = keras.Input((8, 8, 1))
    stem = keras.layers.Dense(4, name="stem")(given)
    keras.Model(given, keras.layers.Conv1D(2, 2, name="logits")(
        keras.layers.Reshape((64, 4))(stem))).save(here / "m.keras")  # fmt: skip
    return ["weights", "export", "m.keras", "-o", "out.pt"]


# data


def npz(name, *said, parts, how=zipfile.ZIP_STORED):
    def make(here):
        rng = np.random.default_rng(0)
        arrays = {
            "x_train": rng.integers(0, 256, (20, 6, 5, 3), dtype=np.uint8),
            "y_train": np.arange(20) % 4,
            "x_test": rng.integers(0, 256, (6, 6, 5, 3), dtype=np.uint8),
            "y_test": np.arange(6) % 4,
        }
        with zipfile.ZipFile(here / "mine.npz", "w", how) as archive:
            for key, array in arrays.items():
                buffer = io.BytesIO()
                np.save(buffer, array)
                archive.writestr(f"{key}.npy", parts.get(key, buffer.getvalue()))
        return fit("--dataset", "mine.npz", "--batch-size", 4)

    attack(f".npz {name}", "mine.npz", *said)(make)


def npy(header, content=b"", version=b"\x01\x00"):
    text = header.encode()
    size = struct.pack("<H" if version[0] == 1 else "<I", len(text))
    return b"\x93NUMPY" + version + size + text + content


def claims(shape, kind="|u1"):
    return f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}}}"


npz("that claims terabytes", "does not hold", parts={"x_train": npy(claims((1 << 40, 1, 1, 1)))})
npz("that packs a gigabyte", "does not hold", how=zipfile.ZIP_DEFLATED,
    parts={"x_train": npy(claims((1 << 20, 32, 32, 1)), bytes(1 << 30))})  # fmt: skip
npz("with a shape below zero", parts={"x_train": npy(claims((-5, 2, 2, 3)))})
npz("with an object array", "pickled", parts={"x_train": npy(claims((1,), "|O"), b"cos\nsystem\n")})
npz("with a header of parentheses", parts={"x_train": npy("(" * 9000)})
npz("with a header of minus signs", parts={"x_train": npy("-" * 9000 + "1")})
npz("with a header of 4 GiB", parts={"x_train": b"\x93NUMPY\x02\x00\xff\xff\xff\xff{"})
npz("of another version", parts={"x_train": npy(claims((1,)), version=b"\x09\x00")})
npz("with a dtype of gigabytes", parts={"x_train": npy(claims((), "|V2000000000"))})
npz("not UTF-8", parts={"x_train": npy("{}", version=b"\x03\x00")[:12] + b"\xff\xff"})


@attack(".npz that is one array of terabytes", "a single array")
def _(here):
    (here / "mine.npz").write_bytes(npy(claims((1 << 42,))))
    return fit("--dataset", "mine.npz")


@attack(".npz under a password", "mine.npz", "cannot be read")
def _(here):
    command = ATTACKS[".npz not UTF-8"][0](here)
    content = bytearray((here / "mine.npz").read_bytes())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = -1
        while (place := content.find(mark, place + 1)) >= 0:
            content[place + at] |= 1
    (here / "mine.npz").write_bytes(content)
    return command


def packed(name, *said, make_tar):
    def make(here):
        with gzip.open(here / "a.tar.gz", "wb", compresslevel=1) as stream:
            make_tar(stream)
        return ["data", "prepare", "cifar10", "--archive", "a.tar.gz", "--data-dir", "sets"]

    attack(f"archive {name}", "archive a.tar.gz", *said)(make)


class Zeros(io.RawIOBase):
    def read(self, size=-1):
        return bytes(size)


def entries(*given):
    def make(stream):
        with tarfile.open(fileobj=stream, mode="w|") as archive:
            for info in given:
                archive.addfile(info, Zeros() if info.size else None)

    return make


def entry(name, size=0, **more):
    info = tarfile.TarInfo(name)
    info.size = size
    for key, value in more.items():
        setattr(info, key, value)
    return info


def endless_pax(stream):
    """A header of a header that claims, and has, 600 MB."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 600 << 20
    stream.write(info.tobuf(tarfile.USTAR_FORMAT))
    for _ in range(600):
        stream.write(bytes(1 << 20))


def trailing(stream):
    entries(entry("x"))(stream)
    for _ in range(600):
        stream.write(bytes(1 << 20))


FOLDER = "cifar-10-batches-bin"
packed("that never ends", "unpacks to more than", make_tar=trailing)
packed("with a gigabyte of something else", "unpacks to more than",
       make_tar=entries(entry("x", 1 << 30)))  # fmt: skip
packed("with a header of 600 MB", "unpacks to more than", make_tar=endless_pax)
packed("whose paths lead out", "has no cifar-10-batches-bin/batches.meta.txt", make_tar=entries(
    entry("../../evil", 10), entry("/etc/evil", 10)))  # fmt: skip
packed("of links", "has no cifar-10-batches-bin", make_tar=entries(
    entry(f"{FOLDER}/test_batch.bin", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    entry(f"{FOLDER}/data_batch_1.bin", type=tarfile.LNKTYPE, linkname="../../etc/passwd"),
    entry(f"{FOLDER}/data_batch_2.bin", type=tarfile.CHRTYPE),
))  # fmt: skip


# state dicts


def weights(name, *said, make_file, suffix=".pt", model="resnet8"):
    def make(here):
        make_file(here / f"w{suffix}")
        return ["weights", "import", f"w{suffix}", model, "-o", "out.keras"]

    attack(f"{suffix} {name}", f"w{suffix}", *said)(make)


def saved(**tensors):
    return lambda path: torch.save({key.replace("_", "."): t for key, t in tensors.items()}, path)


class Call:
    def __reduce__(self):
        return os.system, ("touch evil.txt",)


def deflated(path):
    torch.save({"conv1.weight": torch.zeros(1 << 26)}, path)
    with zipfile.ZipFile(path) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in parts.items():
            new.writestr(name, content)


def overclaiming(path):
    """A storage that says to hold more numbers than its record has bytes."""
    torch.save({"conv1.weight": torch.zeros(1000)}, path)
    with zipfile.ZipFile(path) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for name, content in parts.items():
            if name.endswith("data.pkl"):  # 1000 is M\xe8\x03: 2-byte integers
                content = content.replace(b"M\xe8\x03", b"J\x00\x00\x00\x10")
            new.writestr(name, content)


def tuples(path):
    """A key that is a tuple of tuples of tuples: to print it takes longer than anybody lives."""
    body = b"\x80\x02}(K\x01\x85" + b"q\x00h\x00\x86" * 6 + b"K\x02u."
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        new.writestr("archive/data.pkl", body)
        new.writestr("archive/version", "3\n")


weights("that runs code", "not executed", make_file=lambda path: torch.save(Call(), path))
weights("of an old pickle", "w.pt", make_file=lambda path: path.write_bytes(pickle.dumps(Call())))
weights("whose one number stands for 10**12", "of which the file holds 4", make_file=saved(
    conv1_weight=torch.zeros(1).expand(10**6, 10**6)))  # fmt: skip
weights("packed", "unpack to", make_file=deflated)
weights("that claims more numbers", "w.pt", make_file=overclaiming)
SPARSE = torch.sparse_coo_tensor([[0], [0]], [1.0], (10**6, 10**6), check_invariants=True)
weights(
    "with a sparse tensor",
    "sparse, quantized or empty tensor",
    make_file=saved(conv1_weight=SPARSE),
)
weights("with a meta tensor", "w.pt", make_file=saved(
    conv1_weight=torch.zeros(10**6, 10**6, device="meta")))  # fmt: skip
weights("with a key that is no word", "a key of type int", make_file=lambda path: torch.save(
    {3: torch.zeros(1)}, path))  # fmt: skip
weights("with a key of tuples", "key of type tuple", make_file=tuples)
weights("of 10**12 channels of nothing", "w.pt", make_file=saved(
    conv1_weight=torch.zeros(16, 10**12, 0, 0)))  # fmt: skip
weights("of 10**12 classes of nothing", "w.pt", make_file=saved(
    linear_weight=torch.zeros(10**12, 0)))  # fmt: skip


def safetensors(name, claims, *said, extra=b""):
    def make_file(path):
        header = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + extra)

    weights(name, *said, make_file=make_file, suffix=".safetensors")


def tensor(shape, offsets, dtype="F32"):
    return {"conv1.weight": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


safetensors("that claims terabytes", tensor([1 << 40], [0, 1 << 42]), "no safetensors file")
safetensors("that overflows", tensor([1 << 40, 1 << 40], [0, 8]), "no safetensors", extra=bytes(8))
safetensors("of nothing in 10**12 channels", tensor([16, 10**12, 0, 0], [0, 0]))
safetensors("nested without end", b'{"a":' * 50_000, "no safetensors file")
safetensors("not UTF-8", b'{"\xff": 1}', "no safetensors file")
safetensors("of another type", tensor([4], [0, 4], "F8_E5M2"), extra=bytes(4))


@attack(".safetensors with a header of 2**60 bytes", "no safetensors file")
def _(here):
    (here / "w.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    return ["weights", "import", "w.safetensors", "resnet8", "-o", "out.keras"]


# names


@attack("a teacher with NUL in its name", "no such file")
def _(here):
    return taught_by("a\\u0000.keras")


for name, arguments in {
    "data with NUL in its name": ["--set", 'data.name="a\\u0000.npz"'],
    "data with a name of 5000": ["--set", f"data.name='{'a' * 5000}.npz'"],
    "a directory with NUL": ["--dataset", "mnist", "--set", 'data.directory="a\\u0000"'],
    "a set with a name of 5000": ["--dataset", "a" * 5000],
}.items():
    attack(name)(lambda here, arguments=arguments: fit(*arguments))


@attack("an output with a name of 5000", "output")
def _(here):
    return [*fit(), "--out", "a" * 5000]


@attack("a run with a name of 5000")
def _(here):
    return ["evaluate", "a" * 5000]


@attack("a run file that never ends", "cannot be read")
def _(here):
    return ["fit", "/dev/zero"]


@attack("a key that rewrites the terminal", "x.toml")
def _(here):
    (here / "x.toml").write_text('[run]\n"\\u001b]0;evil\\u0007" = 1\n')
    return ["fit", "x.toml", "--out", "new"]
