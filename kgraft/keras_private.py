"""Everything kgraft takes from Keras' private modules: what it is, and what would replace it.

Whatever moves there in a new release breaks here and nowhere else; `pyproject.toml` bounds Keras
from above for that reason.

| name | what it is | public |
|---|---|---|
| `Functional` | a functional model, whose `call` the compiled engine on torch replaces | none |
| `operation_fn` | how a functional model calls one operation of its graph | none |
| `unpack_singleton` | a list of one output as the output itself | none |
| `get_keras_mask` | the mask that a tensor carries, None for none | none |
| `in_stateless_scope` | whether variables are values of a scope | `keras.StatelessScope`, mute |
| `EpochIterator` | whatever `fit` takes, read as batches | none |
| `GeneratorDataAdapter` | a data set that can be read only once | none |
| `TorchDataLoaderAdapter` | a data set that is a torch `DataLoader` | none |
| `can_convert_arrays` | whether something is arrays, as `fit` decides it | none |
| `class_weight_to_sample_weights` | class weights as weights of examples | inside `fit` |
| `train_validation_split` | cuts the end off some arrays | inside `fit` |
"""

from keras.src.backend import get_keras_mask
from keras.src.backend.common.stateless_scope import in_stateless_scope
from keras.src.models.functional import Functional, operation_fn, unpack_singleton
from keras.src.trainers.data_adapters.array_data_adapter import can_convert_arrays
from keras.src.trainers.data_adapters.array_slicing import train_validation_split
from keras.src.trainers.data_adapters.data_adapter_utils import class_weight_to_sample_weights
from keras.src.trainers.data_adapters.generator_data_adapter import GeneratorDataAdapter
from keras.src.trainers.data_adapters.torch_data_loader_adapter import TorchDataLoaderAdapter
from keras.src.trainers.epoch_iterator import EpochIterator

__all__ = [
    "EpochIterator",
    "Functional",
    "GeneratorDataAdapter",
    "TorchDataLoaderAdapter",
    "can_convert_arrays",
    "class_weight_to_sample_weights",
    "get_keras_mask",
    "in_stateless_scope",
    "operation_fn",
    "train_validation_split",
    "unpack_singleton",
]
