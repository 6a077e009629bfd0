"""The UCI handwritten digits: 1,797 real images of 8x8 that ship in the package.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, 1998, doi.org/10.24432/C50P49, licence CC BY 4.0. It is the test part of that set, in
the copy that scikit-learn distributes (`sklearn/datasets/data/digits.csv.gz`).

Changes made here, as the licence asks to say: the published grey levels 0..16 (the number of ink
pixels in a 4x4 block) are stored as `round(level * 255 / 16)`, uint8, so that they are pixels like
any other set's; and the images are parted into 1,442 for training and 355 for testing. Every fifth
image of each class, in the published order, is a test image: the parts have equal shares of every
class and are spread evenly over the published order, and no random generator, which a later version
might change, decides which image is where. Both parts keep the published order.
"""

from pathlib import Path

from kgraft.data.dataset import Dataset
from kgraft.data.npz import read_npz

FILE = Path(__file__).with_name("digits.npz")
TRAIN, TEST, SHAPE, CLASSES = 1442, 355, (8, 8, 1), 10
SOURCE = (
    "E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI Machine Learning "
    "Repository, 1998, doi.org/10.24432/C50P49"
)
LICENCE = "CC BY 4.0"


def read_digits() -> Dataset:
    """The digits: 1,442 images for training and 355 for testing, `(8, 8, 1)`, ten classes."""
    return read_npz(FILE, name="digits", source=SOURCE, licence=LICENCE)
