import sys

import keras
import numpy as np
import pytest

from kgraft import equations
from kgraft.errors import UserError
from kgraft.grafting import Entropy, FilterEntropy, Graft, L1Norm, criteria
from tests.reference import grafting as reference

pytestmark = pytest.mark.core


@pytest.fixture
def kernels():
    rng = np.random.default_rng(0)
    return [
        rng.normal(size=s).astype(np.float32) for s in ((3, 3, 2, 4), (1, 1, 8, 3), (3, 3, 5, 1))
    ]


AXES = [(3,), (3,), (2, 3)]


def tensors(kernels):
    return [keras.ops.convert_to_tensor(kernel) for kernel in kernels]


@pytest.mark.parametrize(
    ("binning", "measure"),
    [("closed", reference.entropy), ("authors", reference.authors_entropy)],
)
def test_entropy_of_each_kernel(kernels, binning, measure):
    information = Entropy(binning=binning).information(tensors(kernels), AXES)
    np.testing.assert_allclose(information, [measure(kernel) for kernel in kernels], atol=1e-12)


@pytest.mark.parametrize("binning", ["closed", "authors"])
def test_counts_on_an_accelerator_equal_those_on_the_host(kernels, binning):
    criterion = Entropy(bins=7, binning=binning)
    np.testing.assert_array_equal(
        criterion._counts_on_device(tensors(kernels)), criterion.counts(tensors(kernels))
    )


def test_half_precision_kernels_are_widened_exactly(kernels):
    half = [keras.ops.cast(kernel, "bfloat16") for kernel in tensors(kernels)]
    wide = [keras.ops.convert_to_numpy(keras.ops.cast(kernel, "float32")) for kernel in half]
    expected = [reference.entropy(kernel) for kernel in wide]
    np.testing.assert_allclose(Entropy().information(half, AXES), expected, atol=1e-12)
    np.testing.assert_array_equal(Entropy()._counts_on_device(half), Entropy().counts(half))


def test_filter_entropy_and_l1_norm_of_each_kernel(kernels):
    np.testing.assert_allclose(
        L1Norm().information(tensors(kernels), AXES),
        [np.abs(kernel).sum(dtype=np.float64) for kernel in kernels],
    )
    by_hand = [
        sum(reference.entropy(kernel[..., j]) for j in range(kernel.shape[-1]))
        for kernel in kernels[:2]
    ] + [sum(reference.entropy(kernels[2][:, :, c, 0]) for c in range(5))]
    np.testing.assert_allclose(FilterEntropy().information(tensors(kernels), AXES), by_hand)


def test_a_function_of_the_weights_is_a_criterion(kernels):
    criterion = criteria.get(np.ptp)
    expected = [np.ptp(kernel) for kernel in kernels]
    np.testing.assert_allclose(criterion.information(tensors(kernels), AXES), expected)


def test_a_criterion_that_fails_is_told_in_one_line(kernels):
    def raises(kernel):
        raise ValueError("no such thing.\nat all")

    class Few:
        def information(self, kernels):
            return 0.0

    said = r"^criterion raises failed: ValueError: no such thing \(test_criteria.py:\d+\)\.$"
    with pytest.raises(UserError, match=said):
        criteria.get(raises).information(tensors(kernels), AXES)
    peers = [keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(2, 3)]) for _ in "12"]
    with pytest.raises(UserError, match=r"^criterion Few failed: TypeError: .*information\(\)"):
        Graft(criterion=Few()).mix(peers)


def test_criteria_by_name():
    assert criteria.get("entropy") == Entropy()
    assert criteria.get("l1") == L1Norm()
    assert criteria.get("filter-entropy") == FilterEntropy()
    assert criteria.get(Entropy(bins=3)) == Entropy(bins=3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [("entropie", "Did you mean 'entropy'"), ("xyz", "Known: entropy"), (3, "is a int")],
)
def test_what_is_no_criterion_is_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        criteria.get(wrong)


def test_entropy_options_are_checked():
    with pytest.raises(UserError, match="bins=0"):
        Entropy(bins=0)
    with pytest.raises(UserError, match="closed"):
        Entropy(binning="close")
    assert equations.entropy([0, 0], 0 + 1) == 0.0


@pytest.mark.parametrize(
    ("measure", "what"),
    [
        (lambda kernel: np.abs(kernel).sum(axis=(0, 1)), r"an array of shape \(2, 4\)"),
        (lambda kernel: kernel[:1, 0, 0, 0], r"an array of shape \(1,\)"),
        (lambda kernel: None, "a NoneType"),
        (lambda kernel: "much", "a str"),
        (lambda kernel: [1.0, 2.0], "a list"),
    ],
)
def test_a_criterion_that_gives_no_single_number_is_refused(kernels, measure, what):
    with pytest.raises(UserError, match=f"gave {what} for a kernel of shape .3, 3, 2, 4."):
        criteria.get(measure).information(tensors(kernels), AXES)


def test_a_criterion_may_give_a_scalar_of_any_library(kernels):
    for measure in (np.max, lambda k: np.array(k.max()), lambda k: keras.ops.max(k)):
        information = criteria.get(measure).information(tensors(kernels), AXES)
        np.testing.assert_allclose(information, [kernel.max() for kernel in kernels])


@pytest.mark.parametrize("bins", [np.inf, np.nan, 2.5, True])
def test_bins_are_a_whole_number(bins):
    for criterion in (Entropy, FilterEntropy):
        with pytest.raises(UserError, match="bins="):
            criterion(bins=bins)


CODE = """
from dataclasses import dataclass

import numpy as np
from kgraft.grafting import setting


@dataclass(frozen=True)
class Mine:
    power: float = setting(2.0, above=0)

    def information(self, kernels, filter_axes):
        return np.full(len(kernels), self.power)


class Plain:
    def information(self, kernels, filter_axes):
        return np.zeros(len(kernels))


class Needs(Plain):
    def __init__(self, share):
        self.share = share


def reach(kernel):
    return np.ptp(kernel)


number = 3
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine_of_criteria.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("mine_of_criteria", None)


def test_a_criterion_of_ones_own_is_found_by_its_module_and_name(mine, kernels):
    given = tensors(kernels)
    assert criteria.get("mine_of_criteria:Mine").information(given, AXES).tolist() == [2.0] * 3
    assert criteria.get("mine_of_criteria:Plain").information(given, AXES).tolist() == [0.0] * 3
    assert Graft("mine_of_criteria:Mine") == Graft(criterion="mine_of_criteria:Mine")
    found = criteria.get("mine_of_criteria:reach").information(given, AXES)
    np.testing.assert_allclose(found, [np.ptp(kernel) for kernel in kernels])
    assert list(criteria.BY_NAME) == ["entropy", "filter-entropy", "l1"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Mien", r"has no 'Mien'\. Did you mean 'Mine'\?"),
        ("Needs", "needs share and is no dataclass: make it one"),
        ("number", r"is 3: expected a class with information\(kernels"),
        ("np.ndarray", r"is the class ndarray: expected a class with information"),
    ],
)
def test_what_is_no_criterion_of_ones_own_is_refused(mine, name, message):
    with pytest.raises(UserError, match=message):
        Graft(criterion=f"mine_of_criteria:{name}")
