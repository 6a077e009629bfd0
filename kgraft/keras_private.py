"""Everything private that kgraft takes from Keras: what it is, and what would replace it.

Whatever moves there in a new release breaks here, or its test in `tests/test_keras_private.py`;
`pyproject.toml` bounds Keras from above for that reason. Names of private modules are imported
here and nowhere else:

| name | what it is | public |
|---|---|---|
| `Functional` | a functional model, whose `call` the compiled engine on torch replaces | none |
| `operation_fn` | how a functional model calls one operation of its graph | none |
| `unpack_singleton` | a list of one output as the output itself | none |
| `get_keras_mask` | the mask that a tensor carries, None for none | none |
| `compute_output_spec` | a call without numbers | inside `fit` |
| `in_stateless_scope` | whether variables are values of a scope | `keras.StatelessScope`, mute |
| `EpochIterator` | whatever `fit` takes, read as batches | none |
| `GeneratorDataAdapter` | a data set that can be read only once | none |
| `TorchDataLoaderAdapter` | a data set that is a torch `DataLoader` | none |
| `can_convert_arrays` | whether something is arrays, as `fit` decides it | none |
| `class_weight_to_sample_weights` | class weights as weights of examples | inside `fit` |
| `train_validation_split` | cuts the end off some arrays | inside `fit` |
| `get_global_attribute` | what Keras keeps of the process, `global_seed_generator` say | none |
| `ObjectSharingScope` | objects that stand several times in a file are one | inside `load_model` |
| `global_seed_generator` | what draws where no seed was given, made when first asked for | none |

Graphs are read by functions that stand here (`graph_of`, `nodes_of`, `flat_layers`), other private
attributes of public classes where they are needed. `BOOKS` lists those that nobody reads.

| attribute | what it is | public |
|---|---|---|
| `Model._compile_config` | the arguments of `compile` as given | `get_compile_config`, copies |
| `Model._compile_loss` | the compiled loss, another object after every `compile` | none |
| `Model._compile_metrics` | the compiled metrics, likewise | none |
| `Model._loss_tracker` | the mean of the loss, a metric | `metrics`, by its name |
| `Model._compute_loss` | `compute_loss`, for signatures with and without `training` | none |
| `Model._initial_epoch` | where a restored `fit` goes on, set by `BackupAndRestore` | none |
| `Model._symbolic_build` | builds model, optimizer and metrics for a batch | inside `fit` |
| `Model._jax_state`, `_jax_state_synced` | the values that jax trains between two batches | none |
| `Sequential._functional` | the functional model behind it | none |
| `Functional._standardize_inputs` | whatever `call` takes as a flat list of tensors | none |
| `Function._nodes_by_depth` | the graph's nodes, a list for each distance from the outputs | none |
| `Function._outputs_struct` | the outputs in their structure | `outputs`, flat |
| `Layer._flatten_layers` | a layer and all inside it, outer ones first | `layers`, one level |
| `Layer._losses` | losses added in a call | `losses`, with the regularizers' |
| `Layer._losses_override` | what `losses` says instead, where it is not empty | none |
| `Layer._metrics` | the metrics that are a layer's own attributes | `metrics`, of all inside |
| `Layer._seed_generators` | the generators that it draws random numbers from | none |
| `Layer._trainable_variables` | weights made trainable, whatever `trainable` says now | none |
| `Layer._non_trainable_variables` | weights made not trainable, likewise | none |
| `KerasTensor._keras_history` | the operation that made it | none |
| `BatchNormalization._reduction_axes` | all axes but its own | `axis` |
| `MeanMetricWrapper._fn`, `_fn_kwargs` | its function and that one's arguments | none |
| `Optimizer._learning_rate` | the schedule, or a constant rate's variable | `learning_rate` |
| `Optimizer._accumulated_gradients` | of several steps, it gets them late | none |
| `Optimizer._model_variables_moving_average` | likewise; the averages of `use_ema` | none |
| `Optimizer._trainable_variables` | what it moves, in the order of its own state | none |
| `Metric._built` | whether one that is built late, e.g. `AUC`, is | none |
| `Optimizer._exclude_from_weight_decay` | variables without decay | its setter |
| `Optimizer._exclude_from_weight_decay_pattern` | their names | its setter |
| `Optimizer._backend_update_step` | moves all variables in a step | `update_step`, one |
| `Optimizer._iterations` | how many steps it has taken, a variable | `iterations`, read-only |
| `MultiOptimizer._optimizer_map` | which optimizer moves a variable | none |
| `Optimizer._get_current_learning_rate` | what a step takes its rate from | none |
| `Optimizer._get_variable_index` | where a variable's state lies | none |
| `Optimizer._use_weight_decay` | whether a variable is decayed | none |
| `SeedGenerator._initial_seed` | the seed that was given, None where none was | `get_config` |
| `Variable._direct_assign` | sets a value without checks | `assign` |
| `Variable._value` | the backend's own tensor or variable | `value`, `assign` |
"""

from typing import Any

import keras
from keras.src.backend import compute_output_spec, get_keras_mask
from keras.src.backend.common.global_state import get_global_attribute
from keras.src.backend.common.stateless_scope import in_stateless_scope
from keras.src.models.functional import Functional, operation_fn, unpack_singleton
from keras.src.random.seed_generator import global_seed_generator
from keras.src.saving.serialization_lib import ObjectSharingScope
from keras.src.trainers.data_adapters.array_data_adapter import can_convert_arrays
from keras.src.trainers.data_adapters.array_slicing import train_validation_split
from keras.src.trainers.data_adapters.data_adapter_utils import class_weight_to_sample_weights
from keras.src.trainers.data_adapters.generator_data_adapter import GeneratorDataAdapter
from keras.src.trainers.data_adapters.torch_data_loader_adapter import TorchDataLoaderAdapter
from keras.src.trainers.epoch_iterator import EpochIterator

# What Keras writes down while it builds and runs, and says nothing about what a step does.
BOOKS = frozenset(
    {
        *("_auto_config", "_build_shapes_dict", "_called", "_compile_config", "_input_spec"),
        *("_call_context_args", "_call_has_context_arg", "_call_signature"),
        *("_compiled_trainable_state", "_eval_epoch_iterator", "_exclude_from_weight_decay_cache"),
        *("_inbound_nodes", "_initial_epoch", "_inputs", "_layers", "_lock", "_loss_ids"),
        *("_losses", "_losses_override", "_metrics", "_nodes", "_nodes_by_depth"),
        *("_non_trainable_variables", "_operations", "_operations_by_depth", "_outbound_nodes"),
        *("_outputs", "_parent_path", "_path", "_tracker", "_trainable_variables"),
        *("_trainable_variables_indices", "_variables", "built", "call_signature_parameters"),
        *("history", "predict_function", "stop_training", "test_function", "train_function"),
    }
)


def graph_of(layer: Any) -> Any | None:
    """The functional graph behind a functional or built sequential model, else None."""
    if isinstance(layer, keras.Sequential):
        return layer._functional
    return layer if isinstance(layer, keras.Function) else None


def nodes_of(graph: Any) -> list[Any]:
    """The calls that make up a graph, each after those that feed it."""
    by_depth = graph._nodes_by_depth
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]


def flat_layers(layer: Any) -> list[Any]:
    """A layer and all inside it, outer ones first."""
    return list(layer._flatten_layers())
