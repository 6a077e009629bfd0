import numpy as np

from kgraft.runs.scoring import accuracy, ensemble, top_accuracy


def test_accuracy_and_ensemble_by_hand():
    logits = [np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([[0.0, 1.0], [0.0, 1.0]])]
    labels = np.array([0, 0])
    assert [accuracy(part, labels) for part in logits] == [0.5, 0.0]
    sure, less = np.exp(2) / (np.exp(2) + 1), np.exp(1) / (np.exp(1) + 1)
    np.testing.assert_allclose(ensemble(logits)[0], [(sure + 1 - less) / 2, (1 - sure + less) / 2])
    assert accuracy(ensemble(logits), labels) == 0.5


def test_five_guesses_are_right_where_a_label_is_among_them():
    scores = np.array([[6.0, 5, 4, 3, 2, 1, 0]] * 7)
    labels = np.arange(7)
    assert top_accuracy(scores, labels) == 5 / 7
    level = np.zeros((7, 7))  # the lower classes come first, as `accuracy` has it
    assert top_accuracy(level, labels) == 5 / 7
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(200, 30)), rng.integers(0, 30, 200)
    best = np.argsort(-scores, axis=1)[:, :5]
    assert top_accuracy(scores, labels) == np.mean((best == labels[:, None]).any(axis=1))
