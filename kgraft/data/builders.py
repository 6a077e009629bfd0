"""TFDS builders of the CIFAR sets, from the binary archives, and how they are prepared.

Unlike TFDS' own `cifar10` and `cifar100` they prepare and read without TensorFlow, keep the
published order and record the archive's checksum; hence names of their own, `cifar10_binary` and
`cifar100_binary`. Importing this module imports tensorflow_datasets.
"""

import contextlib
import io
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from kgraft.data import cifar
from kgraft.data.archive import ArchiveSpec, Contents, download, read_archive
from kgraft.errors import StorageError, UserError


class CifarBinary(
    tfds.core.GeneratorBasedBuilder,
    skip_registration=True,  # type: ignore[call-arg]  # TFDS is not typed
):
    """Base of both builders: images, their labels, and `archive_sha256` in the metadata.

    Args:
        contents: The archive's contents; None downloads the archive.
        **builder_arguments: As any TFDS builder takes them, `data_dir` foremost.
    """

    VERSION = tfds.core.Version("1.0.0")
    SPEC: ClassVar[ArchiveSpec]

    def __init__(self, *, contents: Contents | None = None, **builder_arguments: Any) -> None:
        self._contents = contents
        super().__init__(**builder_arguments)

    def _info(self) -> tfds.core.DatasetInfo:
        labels = {
            column.feature: tfds.features.ClassLabel(num_classes=column.classes)
            for column in self.SPEC.labels
        }
        # not features.Image, which needs TensorFlow to be written; stored as they are, since
        # natural images of 3 kB hardly compress
        image = tfds.features.Tensor(shape=self.SPEC.shape, dtype=np.uint8, encoding="bytes")
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self.SPEC.title}, from {self.SPEC.file}, in the published order.",
            features=tfds.features.FeaturesDict({"image": image, **labels}),
            supervised_keys=("image", "label"),
            homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
            citation=cifar.SOURCE,
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        contents = self._contents
        if contents is None:
            contents = read_archive(download(self.SPEC, Path(dl_manager.download_dir)), self.SPEC)
        for column in self.SPEC.labels:
            self.info.features[column.feature].names = list(contents.class_names[column.feature])
        self.info.metadata["archive_sha256"] = contents.sha256
        return {
            split: self._generate_examples(contents.images[split], contents.labels[split])
            for split in contents.images
        }

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        features = [column.feature for column in self.SPEC.labels]
        for index, (image, of_image) in enumerate(zip(images, labels, strict=True)):
            yield index, {"image": image, **dict(zip(features, map(int, of_image), strict=True))}


class Cifar10Binary(CifarBinary):
    """CIFAR-10: 60,000 images of 32x32x3 in 10 classes."""

    name = cifar.CIFAR10.prepared_as
    SPEC = cifar.CIFAR10.archive


class Cifar100Binary(CifarBinary):
    """CIFAR-100: 60,000 images of 32x32x3 in 100 classes, with their 20 coarse ones."""

    name = cifar.CIFAR100.prepared_as
    SPEC = cifar.CIFAR100.archive


BUILDERS: dict[str, type[CifarBinary]] = {
    "cifar10": Cifar10Binary,
    "cifar100": Cifar100Binary,
    "cifar100-coarse": Cifar100Binary,  # one set, two columns of labels
}


def prepare_cifar(name: str, *, archive: Path | None, data_dir: Path) -> Path:
    """Prepare a CIFAR set; one that is prepared already is left as it is.

    Everything is written to a hidden folder beside its final place and moved there when it is
    whole, so that a failure or an interruption leaves nothing behind.

    Args:
        name: One of `BUILDERS`.
        archive: The binary archive, checked in either case; None downloads it where it is needed.
        data_dir: TFDS data directory, made if it is missing.

    Returns:
        Folder of the prepared set.

    Raises:
        UserError: the archive is not usable, `data_dir` is a file or lies in one, or the download
            failed.
        StorageError: `data_dir` cannot be written to.
    """
    builder_class = BUILDERS[name]
    contents = None if archive is None else read_archive(archive, builder_class.SPEC)
    final = data_dir / builder_class.name / str(builder_class.VERSION)
    if final.is_dir():
        return final
    try:
        with _staging(data_dir) as folder:
            downloads = folder / "downloads"
            downloads.mkdir()
            builder = builder_class(contents=contents, data_dir=folder)
            # TFDS prints its progress; preparing takes seconds
            with (
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                builder.download_and_prepare(
                    file_format="array_record", download_dir=str(downloads)
                )
            final.parent.mkdir(exist_ok=True)
            Path(builder.data_path).rename(final)
    except OSError as problem:
        reason = problem.strerror or " ".join(str(problem).split())
        in_the_way = isinstance(problem, FileExistsError | NotADirectoryError)
        raise (UserError if in_the_way else StorageError)(
            f"data directory {data_dir}: {name} cannot be written: {reason}."
        ) from None
    return final


@contextlib.contextmanager
def _staging(data_dir: Path) -> Iterator[Path]:
    """A hidden folder in `data_dir`; what was made for it is gone again unless it was used."""
    missing = [folder for folder in (data_dir, *data_dir.parents) if not folder.exists()]
    data_dir.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".kgraft-", dir=data_dir))
    try:
        yield staging
    finally:
        shutil.rmtree(staging)
        for folder in missing:
            if any(folder.iterdir()):
                break
            folder.rmdir()
