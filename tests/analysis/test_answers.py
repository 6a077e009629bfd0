import re

import numpy as np
import pytest
from scipy.special import softmax

import kgraft
from kgraft.analysis.answers import calibration_error, class_accuracies, disagreement


def logits(seed, count=200, classes=4):
    return np.random.default_rng(seed).normal(0, 2, (count, classes))


LABELS = np.random.default_rng(9).integers(0, 3, 200)  # the fourth class has no image


def test_networks_differ_on_a_share_of_images():
    given = [logits(0), logits(1), logits(0)]
    found = disagreement(given)
    for i, own in enumerate(given):
        for j, other in enumerate(given):
            different = sum(a.argmax() != b.argmax() for a, b in zip(own, other, strict=True))
            assert found[i, j] == pytest.approx(different / 200)


def test_calibration_errs_by_the_gap_of_each_bin():
    shares = softmax(logits(2), axis=1)
    total = 0.0
    for k in range(15):
        rows = [n for n in range(200) if k / 15 < shares[n].max() <= (k + 1) / 15]
        if rows:
            sure = np.mean([shares[n].max() for n in rows])
            right = np.mean([shares[n].argmax() == LABELS[n] for n in rows])
            total += len(rows) / 200 * abs(sure - right)
    assert calibration_error(shares, LABELS) == pytest.approx(total)


def test_a_network_that_is_as_sure_as_it_is_right_errs_by_nothing():
    shares = np.tile([0.75, 0.25], (4, 1))
    assert calibration_error(shares, np.array([0, 0, 0, 1])) == pytest.approx(0.0)


def test_logits_are_no_probabilities():
    with pytest.raises(kgraft.UserError, match="softmax of the logits"):
        calibration_error(logits(0), LABELS)


def test_classes_have_accuracies_of_their_own():
    own = logits(3)
    found = class_accuracies(own, LABELS)
    for k in range(3):
        assert found[k] == pytest.approx(np.mean(own[LABELS == k].argmax(1) == k))
    assert np.isnan(found[3])


def test_lists_and_columns_of_labels_are_read_as_arrays_are():
    shares, labels = [[0.9, 0.1], [0.4, 0.6]], [[0], [1]]
    assert calibration_error(shares, labels) == pytest.approx((0.1 + 0.4) / 2)
    assert class_accuracies(shares, labels).tolist() == [1.0, 1.0]
    assert class_accuracies(np.array(shares), np.array([[1], [1]], "uint8"))[1] == 0.5
    assert disagreement([shares, [[0, 1], [0, 1]]]).tolist() == [[0, 0.5], [0.5, 0]]


SHARES = [[0.9, 0.1], [0.4, 0.6]]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([0, 1, 1], r"labels of shape (3,): expected (2,)"),
        ([0, 2], "label 2: expected a class number, 0..1"),
        ([-1, 0], "label -1: expected a class number"),
        ([0.5, 0], "label 0.5: expected a class number"),
        ([float("nan"), 0], "label nan: expected a class number"),
        (["cat", "dog"], "labels: expected class numbers, 0..1"),
        ([[1, 0], [0, 1]], "labels of shape (2, 2): expected class numbers; argmax"),
    ],
)
def test_labels_that_are_none_are_told(labels, said):
    for call in (calibration_error, class_accuracies):
        with pytest.raises(kgraft.UserError, match=re.escape(said)):
            call(SHARES, labels)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: calibration_error(SHARES, [0, 1], bins=0), "bins 0: expected 1 or more"),
        (lambda: calibration_error([], []), "probabilities of shape (0,)"),
        (lambda: calibration_error(np.zeros((0, 3)), []), "probabilities of shape (0, 3)"),
        (lambda: class_accuracies([0.1, 0.2], [0, 1]), "answers of shape (2,)"),
        (lambda: class_accuracies([["a", "b"]], [0]), "answers: expected numbers"),
        (lambda: disagreement([]), "answers: of no network"),
        (lambda: disagreement([SHARES, SHARES[:1]]), "answers of network 2 are of shape (1, 2)"),
        (lambda: disagreement([[[1.0], [1.0, 2.0]]]), "answers of network 1: expected numbers"),
    ],
)
def test_answers_that_are_none_are_told(call, said):
    with pytest.raises(kgraft.UserError, match=re.escape(said)):
        call()


def test_of_a_network_that_answers_nan_nothing_is_known():
    sick = [[float("nan"), 1.0], [0.0, 1.0]]
    assert np.isnan(calibration_error(sick, [0, 1]))
    np.testing.assert_array_equal(class_accuracies(sick, [0, 1]), [np.nan, 1.0])
    np.testing.assert_array_equal(
        disagreement([SHARES, SHARES, sick]), [[0, 0, np.nan], [0, 0, np.nan], [np.nan] * 3]
    )
