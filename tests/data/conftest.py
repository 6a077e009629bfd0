import dataclasses
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from kgraft.data import builders, cifar
from kgraft.data.archive import ArchiveSpec, Member

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture
def tiny_cifar100(monkeypatch) -> ArchiveSpec:
    """CIFAR-100 as if it had 30 training and 10 test images."""
    members = (Member("train.bin", "train", 30), Member("test.bin", "test", 10))
    spec = dataclasses.replace(cifar.CIFAR100.archive, members=members)
    monkeypatch.setattr(builders.Cifar100Binary, "SPEC", spec)
    return spec


@pytest.fixture
def tiny_cifar10(monkeypatch) -> ArchiveSpec:
    """CIFAR-10 as if each of its files had 4 images."""
    members = tuple(dataclasses.replace(m, images=4) for m in cifar.CIFAR10.archive.members)
    spec = dataclasses.replace(cifar.CIFAR10.archive, members=members)
    monkeypatch.setattr(builders.Cifar10Binary, "SPEC", spec)
    return spec


@pytest.fixture
def contents_of():
    """Random contents that fit a spec: file name -> bytes."""

    def make(spec: ArchiveSpec) -> dict[str, bytes]:
        rng = np.random.default_rng(0)
        files = {}
        for member in spec.members:
            records = rng.integers(0, 256, (member.images, spec.record_bytes), dtype=np.uint8)
            for column, label in enumerate(spec.labels):
                records[:, column] = rng.integers(0, label.classes, member.images)
            files[member.file] = records.tobytes()
        for label in spec.labels:
            lines = [f"{label.feature}_{i}" for i in range(label.classes)]
            files[label.file] = ("\n".join(lines) + "\n\n").encode()
        return files

    return make


@pytest.fixture
def write_archive(tmp_path):
    """Write `{member: bytes}` as a .tar.gz with a folder in it."""

    def write(folder: str, files: dict[str, bytes], name: str = "archive.tar.gz") -> Path:
        path = tmp_path / name
        with tarfile.open(path, "w:gz") as archive:
            for member, content in files.items():
                entry = tarfile.TarInfo(f"{folder}/{member}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        return path

    return write


@pytest.fixture(scope="session")
def real_archive(tmp_path_factory) -> Path:
    """The real CIFAR-100 archive, where the machine has the images."""
    if not (SHARED / "cifar100.py").is_file():
        pytest.skip(f"needs {SHARED}")
    import runpy

    path = tmp_path_factory.mktemp("cifar100") / "cifar-100-binary.tar.gz"
    runpy.run_path(str(SHARED / "cifar100.py"))["write_archive"](path)
    return path
