import json
import os
import subprocess
import sys

import pytest

WRITTEN_BY_KERAS = {
    "floatx": "float32",
    "epsilon": 1e-07,
    "backend": "tensorflow",
    "image_data_format": "channels_last",
}


def run(code, tmp_path, *, config=None, **environment):
    if config is not None:
        (tmp_path / "keras.json").write_text(json.dumps(config))
    clean = {k: v for k, v in os.environ.items() if k not in ("KERAS_BACKEND", "KERAS_HOME")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, "KERAS_HOME": str(tmp_path), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip(), done.stderr


def chosen(tmp_path, **options):
    """What `backend.settle` says, without the import of the whole package."""
    code = (
        "import importlib.util, pathlib, sys; "
        "spec = importlib.util.find_spec('kgraft'); "
        "path = pathlib.Path(spec.origin).with_name('backend.py'); "
        "spec = importlib.util.spec_from_file_location('choice', path); "
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module); "
        "print(module.settle())"
    )
    return run(code, tmp_path, **options)


def test_torch_is_chosen_when_nobody_chose(tmp_path):
    assert chosen(tmp_path)[0] == "torch"


def test_the_file_that_keras_writes_by_itself_is_no_choice(tmp_path):
    assert chosen(tmp_path, config=WRITTEN_BY_KERAS)[0] == "torch"


def test_a_second_import_of_kgraft_still_chooses_torch(tmp_path):
    assert run("import kgraft, keras; print(keras.config.backend())", tmp_path)[0] == "torch"
    assert json.loads((tmp_path / "keras.json").read_text())["backend"] == "tensorflow"
    assert chosen(tmp_path)[0] == "torch"


def test_a_config_that_somebody_wrote_is_a_choice(tmp_path):
    pytest.importorskip("jax")
    assert chosen(tmp_path, config={**WRITTEN_BY_KERAS, "backend": "jax"})[0] == "jax"


def test_the_environment_wins(tmp_path):
    config = {**WRITTEN_BY_KERAS, "backend": "jax"}
    assert chosen(tmp_path, config=config, KERAS_BACKEND="torch")[0] == "torch"


def test_an_unknown_backend_is_refused(tmp_path):
    assert (
        "KERAS_BACKEND=mxnet: kgraft runs on torch"
        in run("import kgraft", tmp_path, KERAS_BACKEND="mxnet")[1]
    )


def test_a_backend_that_is_not_installed_is_refused(tmp_path):
    code = (
        "import importlib.util as u; find = u.find_spec; "
        "u.find_spec = lambda name, *a: None if name == 'jax' else find(name, *a); "
        "import kgraft"
    )
    assert (
        "backend jax is not installed: pip install 'kgraft[jax]'"
        in run(code, tmp_path, KERAS_BACKEND="jax")[1]
    )


def test_keras_imported_before_on_another_backend_is_warned_about(tmp_path):
    pytest.importorskip("jax")
    code = (
        "import os; os.environ['KERAS_BACKEND'] = 'jax'; import keras; "
        "del os.environ['KERAS_BACKEND']; import kgraft"
    )
    assert "Keras is already imported on jax, not on torch" in run(code, tmp_path)[1]


def test_importing_kgraft_is_enough_to_load_what_was_compiled_with_it(tmp_path):
    """Keras finds registered classes only once their module is imported."""
    path = str(tmp_path / "model.keras")
    train = (
        "import kgraft, keras; model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])"
        "; model.compile(kgraft.SGD(kgraft.cosine(0.1, epochs=2, steps_per_epoch=3)), 'mse')"
        "; model.save('" + path + "'); print('saved')"
    )
    assert run(train, tmp_path)[0] == "saved"
    load = "import kgraft, keras; print(keras.models.load_model('" + path + "').optimizer.name)"
    assert run(load, tmp_path)[0] == "sgd"
