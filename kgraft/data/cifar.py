"""CIFAR-10 and CIFAR-100: what their owners publish, and what is known about the images.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
cs.toronto.edu/~kriz/cifar.html. The SHA-256 checksums are those that TensorFlow Datasets publishes
for the same files; means and deviations are the published ones, over the 50,000 training images.
"""

from dataclasses import dataclass, replace

from kgraft.data.archive import ArchiveSpec, LabelColumn, Member

SOURCE = (
    "A. Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009, "
    "cs.toronto.edu/~kriz/cifar.html"
)
LICENCE = "none stated by its owner, who asks to be cited"


@dataclass(frozen=True)
class Cifar:
    """A CIFAR set.

    Attributes:
        archive: The published archive.
        prepared_as: Name of the set that is prepared from it, in the data directory.
        mean: Mean of every channel over train, pixels scaled to 0..1.
        std: Standard deviation of every channel over train, pixels scaled to 0..1.
        label: Which of the archive's label columns are the classes.
    """

    archive: ArchiveSpec
    prepared_as: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    label: str = "label"

    @property
    def classes(self) -> int:
        """Number of classes."""
        return next(own.classes for own in self.archive.labels if own.feature == self.label)


CIFAR10 = Cifar(
    ArchiveSpec(
        name="cifar10",
        title="CIFAR-10",
        file="cifar-10-binary.tar.gz",
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        size=170052171,
        md5="c32a1d4ab5d03f1284b67883e8d87530",
        sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        folder="cifar-10-batches-bin",
        members=(
            *(Member(f"data_batch_{i}.bin", "train", 10000) for i in range(1, 6)),
            Member("test_batch.bin", "test", 10000),
        ),
        labels=(LabelColumn("label", "batches.meta.txt", 10),),
    ),
    prepared_as="cifar10_binary",
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
)

CIFAR100 = Cifar(
    ArchiveSpec(
        name="cifar100",
        title="CIFAR-100",
        file="cifar-100-binary.tar.gz",
        url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        size=168513733,
        md5="03b5dce01913d631647c71ecec9e9cb8",
        sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        folder="cifar-100-binary",
        members=(Member("train.bin", "train", 50000), Member("test.bin", "test", 10000)),
        labels=(
            LabelColumn("coarse_label", "coarse_label_names.txt", 20),
            LabelColumn("label", "fine_label_names.txt", 100),
        ),
    ),
    prepared_as="cifar100_binary",
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
)

SETS = {
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "cifar100-coarse": replace(CIFAR100, label="coarse_label"),
}
