import numpy as np

from kgraft.runs.scoring import accuracy, ensemble


def test_accuracy_and_ensemble_by_hand():
    logits = [np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([[0.0, 1.0], [0.0, 1.0]])]
    labels = np.array([0, 0])
    assert [accuracy(part, labels) for part in logits] == [0.5, 0.0]
    sure, less = np.exp(2) / (np.exp(2) + 1), np.exp(1) / (np.exp(1) + 1)
    np.testing.assert_allclose(ensemble(logits)[0], [(sure + 1 - less) / 2, (1 - sure + less) / 2])
    assert accuracy(ensemble(logits), labels) == 0.5
