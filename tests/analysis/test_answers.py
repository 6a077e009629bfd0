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
