"""Every test starts from the same seeds, on the backend of KERAS_BACKEND (torch by default)."""

import kgraft  # isort: skip  # chooses the backend before Keras is imported
import keras
import pytest

assert kgraft.__name__


@pytest.fixture(autouse=True)
def _seeded():
    keras.utils.set_random_seed(0)
