import keras
import numpy as np
import pytest

from kgraft.training.smoothed_loss import SmoothedCrossentropy

pytestmark = pytest.mark.core


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("shape", [(6,), (6, 1)])
def test_labels_share_with_all_classes(smoothing, shape):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(6, 5)).astype("float32"), rng.integers(0, 5, 6)
    targets = np.eye(5)[labels] * (1 - smoothing) + smoothing / 5
    logarithms = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = -(targets * logarithms).sum(1).mean()
    loss = SmoothedCrossentropy(smoothing)
    found = loss(keras.ops.convert_to_tensor(labels.reshape(shape)), logits)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_a_model_is_saved_with_it(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
    model.compile(optimizer="sgd", loss=SmoothedCrossentropy(0.2))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.loss.label_smoothing == 0.2 and loaded.loss.from_logits
