"""What kgraft relies on in Keras' private names: a Keras that breaks one breaks its test here."""

import ast
import inspect
import re
from pathlib import Path

import keras
import numpy as np
import pytest

from kgraft import keras_private
from kgraft.keras_private import (
    BOOKS,
    EpochIterator,
    Functional,
    GeneratorDataAdapter,
    ObjectSharingScope,
    TorchDataLoaderAdapter,
    can_convert_arrays,
    class_weight_to_sample_weights,
    compute_output_spec,
    flat_layers,
    get_global_attribute,
    get_keras_mask,
    global_seed_generator,
    graph_of,
    in_stateless_scope,
    nodes_of,
    operation_fn,
    train_validation_split,
    unpack_singleton,
)

pytestmark = pytest.mark.core

TOLD = {
    name
    for row in re.findall(r"^\| (`.*?`) \|", keras_private.__doc__, re.M)
    for name in re.findall(r"(\w+)`", row)
}
TORCHS = {
    "_foreach_copy_",
    "_forward_hooks",
    "_forward_pre_hooks",
    "_fused_sgd_",
    "_local_scalar_dense",
    "_ops",
    "_schema",
}
PYTHONS = {"_exit"}
JAXS = {"_src"}  # see tests/links/test_jax_store.py
ENDINGS = {"_add", "_conv", "_dropout", "_pool", "_initializer"}  # of names, in strings
X = np.arange(10, dtype="float32").reshape(5, 2)
Y = np.array([0, 1, 2, 1, 0])


def numbers(value):
    return keras.ops.convert_to_numpy(value).tolist()


def functional():
    given = keras.Input((2,), name="given")
    return keras.Model(given, keras.layers.Dense(3, name="head")(given))


def generator():
    yield X[:2], Y[:2]
    yield X[2:4], Y[2:4]


class Counted(keras.utils.PyDataset):
    """Two batches, and how often Keras said that an epoch had ended."""

    def __init__(self):
        super().__init__()
        self.ended = 0

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return X[2 * index : 2 * index + 2], Y[2 * index : 2 * index + 2]

    def on_epoch_end(self):
        self.ended += 1


def firsts(epoch):
    """The first number of every batch's x."""
    return [numbers(batches[0][0])[0][0] for _, _, batches in epoch]


def trees():
    root = Path(__file__).parents[1]
    for path in [*root.glob("kgraft/**/*.py"), *root.glob("apps/**/*.py")]:
        yield from ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def test_the_tables_hold_every_private_name():
    tree = ast.parse(Path(keras_private.__file__).read_text(encoding="utf-8"))
    taken = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert {a.name for node in taken if "keras.src" in node.module for a in node.names} <= TOLD
    nodes = list(trees())
    private = re.compile("_[^_].*").fullmatch
    read = {node.attr for node in nodes if isinstance(node, ast.Attribute) and private(node.attr)}
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    own |= {
        node.target.id
        for node in nodes
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    own |= {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }
    assert read - own - TORCHS - PYTHONS - JAXS <= TOLD, (
        "tell what it is in kgraft/keras_private.py, and test it"
    )


def sources_of_keras():
    root = Path(keras.__file__).parent / "src"
    return "\n".join(path.read_text(encoding="utf-8") for path in root.rglob("*.py"))


def test_the_tables_hold_private_names_of_keras_that_are_ours_too():
    """What is read of another object, or stands in a string, and Keras' sources know as well."""
    named = set()
    for node in trees():
        if isinstance(node, ast.Attribute):
            of = node.value
            ours = isinstance(of, ast.Name) and (of.id in ("self", "cls") or of.id[0].isupper())
            named |= set() if ours else {node.attr}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            named |= {node.value}
    named = set(filter(re.compile("_[a-z]\\w+").fullmatch, named)) - TOLD - BOOKS - ENDINGS
    keras_has = set(re.findall(r"(?:self\.|def )(_[a-z]\w+)", sources_of_keras()))
    untold = sorted(named & keras_has)
    assert not untold, "tell what they are in kgraft/keras_private.py, and test them"


def test_functional_models_are_functional_and_others_are_not():
    assert isinstance(functional(), Functional)
    assert not isinstance(keras.Sequential([functional()]), Functional)


def test_a_sequential_model_runs_through_a_functional_one():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    graph = graph_of(model)
    assert isinstance(graph, Functional)
    np.testing.assert_array_equal(numbers(graph(X)), numbers(model(X)))
    assert graph_of(graph) is graph
    assert graph_of(keras.Sequential([keras.layers.Dense(3)])) is None
    assert graph_of(model.layers[0]) is None


def test_a_functional_call_takes_inputs_training_and_mask():
    assert list(inspect.signature(Functional.call).parameters)[:4] == [
        "self",
        "inputs",
        "training",
        "mask",
    ]


def test_a_call_set_on_a_functional_model_is_the_one_that_runs():
    model = functional()
    model.call = lambda inputs, training=None, mask=None: keras.ops.zeros((1, 3))
    assert numbers(model(X)) == [[0.0, 0.0, 0.0]]


def test_inputs_of_a_functional_model_are_standardized_to_a_flat_list():
    given = {"a": keras.Input((2,), name="a"), "b": keras.Input((2,), name="b")}
    model = keras.Model(given, keras.layers.Add()(list(given.values())))
    flat = model._standardize_inputs({"b": X + 1, "a": X})
    assert [numbers(part) for part in flat] == [X.tolist(), (X + 1).tolist()]


def test_a_graphs_nodes_name_their_operation_arguments_and_outputs():
    model = functional()
    first, last = nodes_of(model)
    assert first.is_input and not last.is_input
    assert last.operation is model.get_layer("head")
    assert [id(tensor) for tensor in last.outputs] == [id(model.outputs[0])]
    args, kwargs = last.arguments.fill_in({id(first.outputs[0]): "seen"})
    assert (args, kwargs) == (("seen",), {})
    assert [id(tensor) for tensor in keras.tree.flatten(model._outputs_struct)] == [
        id(model.outputs[0])
    ]
    assert model.outputs[0]._keras_history.operation is last.operation


def test_an_operation_gets_the_training_flag_only_where_it_knows_one():
    ones = keras.ops.ones((1, 1000))
    dropped = operation_fn(keras.layers.Dropout(0.5), training=True)(ones)
    kept = operation_fn(keras.layers.Dropout(0.5), training=False)(ones)
    assert 0 in numbers(dropped)[0] and 0 not in numbers(kept)[0]
    assert numbers(operation_fn(keras.layers.Flatten(), training=True)(ones)) == numbers(ones)
    assert numbers(operation_fn(keras.layers.ReLU(), training=None)(ones)) == numbers(ones)


@pytest.mark.parametrize(
    ("packed", "single"), [([1], 1), ((1,), 1), ([1, 2], [1, 2]), ({"a": 1}, {"a": 1}), (1, 1)]
)
def test_a_list_of_one_is_unpacked(packed, single):
    assert unpack_singleton(packed) == single


def test_a_tensor_carries_the_mask_of_the_layer_that_made_it():
    assert get_keras_mask(keras.ops.ones((1, 2))) is None
    masked = keras.layers.Masking()(np.array([[[1.0], [0.0]]], "float32"))
    assert numbers(get_keras_mask(masked)) == [[True, False]]


def test_a_stateless_scope_is_seen_from_inside_only():
    assert not in_stateless_scope()
    with keras.StatelessScope():
        assert in_stateless_scope()
    assert not in_stateless_scope()


def test_objects_that_stand_twice_in_a_config_are_one_inside_a_scope():
    layer = keras.saving.serialize_keras_object(keras.layers.Dense(2))
    twice = [{**layer, "shared_object_id": 1}, {**layer, "shared_object_id": 1}]
    with ObjectSharingScope():
        first, second = map(keras.saving.deserialize_keras_object, twice)
    assert first is second
    first, second = map(keras.saving.deserialize_keras_object, twice)
    assert first is not second


def test_variables_that_are_made_without_numbers_wait_in_a_list():
    waiting = get_global_attribute("uninitialized_variables", [], set_to_default=True)
    before = len(waiting)
    with keras.StatelessScope(initialize_variables=False):
        functional()
    assert [tuple(own.shape) for own in waiting[before:]] == [(2, 3), (3,)]
    del waiting[before:]


def test_a_call_without_numbers_gives_shapes_or_what_the_call_would_raise():
    model = functional()
    before = model.get_weights()
    assert compute_output_spec(model, keras.KerasTensor((4, 2)), training=False).shape == (4, 3)
    with pytest.raises(ValueError, match="incompatible"):
        compute_output_spec(model, keras.KerasTensor((4, 5)), training=False)
    assert all(map(np.array_equal, model.get_weights(), before))


def test_arrays_are_arrays_and_data_sets_are_not():
    tensor = keras.ops.convert_to_tensor(X)
    assert can_convert_arrays((X, tensor, None, {"a": X}))
    assert not can_convert_arrays((generator(), None))
    assert not can_convert_arrays((Counted(), None))


def test_the_end_is_split_off_for_validation():
    (x, y, weight), (x_end, y_end, weight_end) = train_validation_split(
        (X, Y, None), validation_split=0.4
    )
    assert numbers(x) == X[:3].tolist() and numbers(y) == Y[:3].tolist()
    assert numbers(x_end) == X[3:].tolist() and numbers(y_end) == Y[3:].tolist()
    assert weight is None and weight_end is None


def test_a_split_that_leaves_one_side_empty_is_a_value_error():
    with pytest.raises(ValueError, match="validation_split"):
        train_validation_split((X, Y, None), validation_split=0.9)


def test_class_weights_become_weights_of_examples():
    weights = {0: 1.0, 1: 3.0}
    assert numbers(class_weight_to_sample_weights(Y, weights)) == [1.0, 3.0, 1.0, 3.0, 1.0]
    one_hot = np.eye(3)[Y]
    assert numbers(class_weight_to_sample_weights(one_hot, weights)) == [1.0, 3.0, 1.0, 3.0, 1.0]


def test_an_iterators_epochs_are_lists_of_one_batch_each():
    data = Counted()
    iterator = EpochIterator(data, steps_per_epoch=None, class_weight=None)
    iterator.reset()
    assert iterator.num_batches == 2
    assert firsts(iterator.enumerate_epoch()) == [0.0, 4.0]
    assert firsts(iterator.enumerate_epoch()) == [0.0, 4.0]


def test_the_data_set_hears_of_every_epochs_end():
    data = Counted()
    iterator = EpochIterator(data)
    before = data.ended
    firsts(iterator.enumerate_epoch())
    assert data.ended == before + 1
    iterator.reset()
    assert data.ended == before + 2


def test_epochs_of_fewer_steps_go_on_where_the_last_one_ended():
    iterator = EpochIterator(Counted(), steps_per_epoch=1)
    iterator.reset()
    assert iterator.num_batches == 1
    seen = [firsts(iterator.enumerate_epoch())[0] for _ in range(2)]
    assert seen == [0.0, 4.0]
    iterator.reset()
    assert firsts(iterator.enumerate_epoch()) == [0.0]


def test_a_data_sets_class_weights_reach_its_batches():
    iterator = EpochIterator(Counted(), class_weight={1: 3.0})
    _, _, batches = next(iter(iterator.enumerate_epoch()))
    assert numbers(batches[0][2]) == [1.0, 3.0]


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_a_generator_has_an_adapter_of_its_own_and_no_length():
    iterator = EpochIterator(generator())
    assert isinstance(iterator.data_adapter, GeneratorDataAdapter)
    assert not isinstance(EpochIterator(Counted()).data_adapter, GeneratorDataAdapter)
    assert iterator.num_batches is None
    assert firsts(iterator.enumerate_epoch()) == [0.0, 4.0]


def test_a_torch_loader_has_an_adapter_of_its_own():
    data = pytest.importorskip("torch.utils.data")
    loader = data.DataLoader(list(zip(X, Y, strict=True)), batch_size=2)
    assert isinstance(EpochIterator(loader).data_adapter, TorchDataLoaderAdapter)
    assert not isinstance(EpochIterator(Counted()).data_adapter, TorchDataLoaderAdapter)


def test_layers_lie_flat_with_the_model_before_its_layers():
    inner = functional()
    given = keras.Input((2,))
    outer = keras.Model(given, inner(given))
    found = flat_layers(outer)
    assert found[0] is outer
    assert {id(inner), id(inner.get_layer("head"))} < {id(layer) for layer in found}
    flat = outer._flatten_layers(include_self=False, recursive=False)
    assert {id(layer) for layer in flat} == {id(layer) for layer in outer.layers}


def test_an_optimizer_finds_its_state_by_the_variables_index():
    variables = [keras.Variable([1.0]), keras.Variable([2.0])]
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=0.1)
    optimizer.build(variables)
    assert [optimizer._get_variable_index(v) for v in variables] == [0, 1]
    optimizer.exclude_from_weight_decay([variables[1]])
    assert [optimizer._use_weight_decay(v) for v in variables] == [True, False]


def test_a_constant_rate_is_a_variable_and_a_schedule_itself():
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    assert keras.optimizers.SGD(schedule)._learning_rate is schedule
    assert isinstance(keras.optimizers.SGD(0.1)._learning_rate, keras.Variable)


def test_a_step_takes_its_rate_from_one_method():
    variable = keras.Variable([1.0])
    optimizer = keras.optimizers.SGD(0.25)
    optimizer.build([variable])
    gradient = keras.ops.ones((1,))
    optimizer.apply([gradient])
    optimizer._get_current_learning_rate = lambda: keras.ops.convert_to_tensor(0.5)
    optimizer.apply([gradient])
    assert numbers(variable.value) == [0.25]


def test_a_compile_call_is_remembered_and_its_loss_kept():
    model = functional()
    assert model._compile_loss is None
    model.compile("sgd", "mse")
    assert {"optimizer", "loss", "metrics"} <= model._compile_config.config.keys()
    loss = model._compile_loss
    assert loss is not None and model._compile_metrics is None
    model.compile("sgd", "mse", metrics=["mae"])
    assert model._compile_loss is not loss and model._compile_metrics is not None


def test_a_loss_is_computed_with_or_without_the_training_flag():
    class Asked(keras.Model):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return training

    class Unasked(keras.Model):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
            return "unasked"

    given = {"x": X, "y": Y, "y_pred": Y, "sample_weight": None, "training": False}
    assert [model._compute_loss(**given) for model in (Asked(), Unasked())] == [False, "unasked"]


def test_a_restored_fit_says_where_it_goes_on(tmp_path):
    model = functional()
    model.compile("sgd", "mse")
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup", delete_checkpoint=False)
    assert model._initial_epoch is None
    model.fit(X, np.zeros((5, 3)), epochs=2, verbose=0, callbacks=[backup])
    backup.set_model(model)
    backup.on_train_begin()
    assert model._initial_epoch == 2


def test_metrics_and_their_functions_can_be_told():
    metric = keras.metrics.MeanMetricWrapper(keras.losses.huber, name="own", delta=2.0)
    model = functional()
    model.own = metric
    assert model._metrics == [metric]
    assert (metric._fn, metric._fn_kwargs) == (keras.losses.huber, {"delta": 2.0})


def test_a_multi_optimizer_knows_whose_a_variable_is():
    inner = keras.optimizers.SGD(0.1)
    chosen = keras.optimizers.MultiOptimizer(lambda variable: inner)
    assert chosen._optimizer_map(keras.Variable([1.0])) is inner


def test_steps_are_counted_in_a_variable_that_can_be_moved():
    optimizer = keras.optimizers.SGD(0.1)
    optimizer._iterations.assign_add(2)
    assert numbers(optimizer.iterations) == 2


def test_an_unbuilt_model_is_built_from_symbolic_data():
    model = keras.Sequential([keras.layers.Dense(3)])
    model.compile("sgd", "mse")
    model._symbolic_build(data_batch=(X, np.zeros((5, 3), "float32")))
    assert model.built and model.optimizer.built


def test_what_a_layer_says_of_itself():
    layer = keras.layers.Dense(3, kernel_regularizer="l2", activity_regularizer="l2")
    layer(X)
    assert len(layer._losses) == 1 and len(layer.losses) == 2
    assert layer._seed_generators == []
    assert len(keras.layers.Dropout(0.5)._seed_generators) == 1
    seeds = [keras.layers.Dropout(0.5, seed=own)._seed_generators[0] for own in (None, 3)]
    assert [own._initial_seed for own in seeds] == [None, 3]
    layer.trainable = False
    assert layer.trainable_variables == []
    assert [v.path for v in layer._trainable_variables] == [v.path for v in layer.variables]
    assert layer._non_trainable_variables == []


def test_batch_normalisation_averages_over_all_axes_but_its_own():
    layer = keras.layers.BatchNormalization()
    layer.build((None, 4, 4, 3))
    assert list(layer._reduction_axes) == [0, 1, 2]


def test_a_value_can_be_set_without_checks():
    variable = keras.Variable([1.0, 2.0])
    variable._direct_assign(keras.ops.convert_to_tensor([3.0, 4.0]))
    assert numbers(variable.value) == [3.0, 4.0]
    variable._value = variable._value + 1
    assert numbers(variable.value) == [4.0, 5.0]


def test_one_method_moves_all_variables():
    class Still(keras.optimizers.SGD):
        def _backend_update_step(self, grads, trainable_variables, learning_rate):
            self.seen = [numbers(grads[0]), trainable_variables, numbers(learning_rate)]

    variable = keras.Variable([1.0])
    optimizer = Still(0.25)
    optimizer.build([variable])
    optimizer.apply([keras.ops.ones((1,))])
    assert optimizer.seen == [[1.0], [variable], 0.25]
    assert numbers(variable.value) == [1.0]


def test_an_optimizer_keeps_what_it_does_not_decay():
    variable = keras.Variable([1.0])
    optimizer = keras.optimizers.SGD(0.1, weight_decay=0.1)
    optimizer.build([variable])
    optimizer.exclude_from_weight_decay([variable], ["bias"])
    assert len(optimizer._exclude_from_weight_decay) == 1
    assert optimizer._exclude_from_weight_decay_pattern.pattern == "bias"


def test_state_that_comes_late_is_called_as_it_was():
    optimizer = keras.optimizers.SGD(0.1, use_ema=True, gradient_accumulation_steps=2)
    optimizer.build([keras.Variable([1.0])])
    assert optimizer._accumulated_gradients and optimizer._model_variables_moving_average
    assert len(optimizer._trainable_variables) == len(optimizer._model_variables_moving_average)
    assert "_built" in vars(keras.metrics.AUC())


def test_the_process_has_one_generator_once_somebody_has_drawn_from_it():
    keras.utils.clear_session()
    assert get_global_attribute("global_seed_generator") is None
    keras.random.uniform(())
    generator = get_global_attribute("global_seed_generator")
    assert generator is global_seed_generator()
    before = numbers(generator.state)
    drawn = numbers(keras.random.uniform((3,)))
    generator.state.assign(before)
    assert numbers(keras.random.uniform((3,))) == drawn


def test_losses_can_be_said_instead():
    layer = keras.layers.Dense(3, kernel_regularizer="l2")
    layer(X)
    assert len(layer.losses) == 1
    layer._losses_override = [1.0, 2.0]
    assert layer.losses == [1.0, 2.0]


def test_what_is_written_down_are_attributes_of_a_trained_model():
    model = functional()
    model.compile(keras.optimizers.SGD(0.1, weight_decay=0.1), "mse")
    model.fit(X, np.zeros((5, 3)), verbose=0)
    parts = [model, *flat_layers(model), model.optimizer, *model.metrics, model._compile_loss]
    assert {name for part in parts for name in dir(part)} >= BOOKS | {"_loss_tracker"}


@pytest.mark.skipif(keras.config.backend() != "jax", reason="jax trains values, not variables")
def test_values_in_training_reach_the_variables_when_they_are_synced():
    model = functional()
    model.compile("sgd", "mse")
    kernel, bias = model.trainable_variables
    model._jax_state = {"trainable_variables": [kernel.value + 1, bias.value]}
    model._jax_state_synced = False
    before = numbers(kernel.value + 1)
    model.jax_state_sync()
    assert numbers(kernel.value) == before
    assert model._jax_state_synced
