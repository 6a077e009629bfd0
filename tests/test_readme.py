"""The README's Python, as a reader pastes it, on a small network and small data."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest

from kgraft import models

TEXT = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.S)


def tiny(classes=10, **unused):
    return models.resnet8(classes=classes, input_shape=(8, 8, 1))


@pytest.mark.parametrize("block", BLOCKS, ids=["callback", "GraftingFit"])
def test_an_example_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "resnet32", tiny)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(140, 8, 8, 1)).astype("float32"), rng.integers(0, 10, 140)
    teacher = tiny(100)
    given = {"x": x, "y": y, "xv": x[:8], "yv": y[:8], "teacher": teacher, "build_my_cnn": tiny}
    exec(block.replace("epochs=200", "epochs=2"), given)
    if "histories" in given:
        assert [len(history.history["val_loss"]) for history in given["histories"]] == [2] * 4
        saved = keras.models.load_model("student.keras", compile=False)
        np.testing.assert_array_equal(
            saved.get_weights()[0], given["run"].peers[0].get_weights()[0]
        )
    else:
        assert len(given["model"].history.history["val_loss"]) == 2
