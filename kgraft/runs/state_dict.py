"""PyTorch's state dicts as files: `.pt`, `.pth` and `.safetensors`, without executing a pickle."""

import io
import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kgraft.errors import UserError, line_of
from kgraft.files import write_bytes

State = dict[str, np.ndarray]
SUFFIXES = (".pt", ".pth", ".safetensors")
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("module.", "_orig_mod.")


class _ScalarType:
    """What stands in a pickle for a scalar's `numpy.dtype`; keeps nothing of it."""

    def __init__(self, *description: Any) -> None:
        del description

    def __setstate__(self, state: Any) -> None:
        del state


class _Scalar:
    """What stands in a pickle for a NumPy scalar, such as the best accuracy beside the weights.

    Nobody asks for its value, so that no code of NumPy runs on what a file says.
    """

    def __init__(self, *parts: Any) -> None:
        del parts


# the names by which NumPy 1 and 2 pickle a scalar
_SCALARS = [
    (_Scalar, "numpy.core.multiarray.scalar"),
    (_Scalar, "numpy._core.multiarray.scalar"),
    (_ScalarType, "numpy.dtype"),
]


def read(path: Path) -> State:
    """The weights in a PyTorch file.

    A checkpoint that holds its state dict under one of the usual keys (`state_dict`, `model`,
    `net`, ...) is unwrapped, and the prefixes of `DataParallel` and `torch.compile` are dropped.
    What else such a checkpoint holds may be numbers, NumPy's scalars included.

    Args:
        path: what `torch.save` or safetensors wrote. Pickled objects are refused, not executed.

    Returns:
        Key -> array, in the file's order: float32 (half precision is widened, which is exact), or
        whole numbers.

    Raises:
        UserError: the file is missing or damaged, holds something else, or weights in float64.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    tensors = _unwrapped(_load(path), path)
    for prefix in _PREFIXES:
        if tensors and all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    return {key: _array(path, key, tensor) for key, tensor in tensors.items()}


def write(path: Path, state: Mapping[str, np.ndarray]) -> None:
    """Write a state dict that `torch.load(weights_only=True)` or safetensors reads.

    Args:
        path: a new file; its suffix says which format.
        state: key -> array.

    Raises:
        UserError: another suffix.
        StorageError: the file cannot be written.
    """
    import torch

    check_suffix(path)
    tensors = {key: torch.from_numpy(np.array(array)) for key, array in state.items()}
    if path.suffix == ".safetensors":
        from safetensors.torch import save

        content = save(tensors)
    else:
        buffer = io.BytesIO()
        torch.save(tensors, buffer)
        content = buffer.getvalue()
    write_bytes(path, content)


def check_suffix(path: Path) -> None:
    """Refuse a file name that says no format.

    Raises:
        UserError: the suffix is none of `SUFFIXES`.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: expected a name that ends in {', '.join(SUFFIXES)}.")


def _load(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is no safetensors file: {line_of(error)}") from None
    import torch

    _check_zip(path)
    try:
        with torch.serialization.safe_globals(_SCALARS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that it does not read anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error) or "global" in str(error):
            raise UserError(
                f"{path} holds pickled objects, which are not executed; expected a state dict: "
                "torch.save(model.state_dict(), ...)."
            ) from None
        raise UserError(f"{path} is no PyTorch file, or is damaged.") from None
    except (
        *(RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError),
        *(AttributeError, AssertionError, OverflowError, struct.error),
    ):
        raise UserError(f"{path} is no PyTorch file, or is damaged.") from None


def _check_zip(path: Path) -> None:
    """Refuse a zip archive whose parts are packed, which PyTorch's never are.

    Raises:
        UserError: the parts are larger than the file.
    """
    if not zipfile.is_zipfile(path):  # PyTorch before 1.6, or something else
        return
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        raise UserError(f"{path} is no PyTorch file, or is damaged.") from None
    size = path.stat().st_size
    if total > size:
        raise UserError(
            f"{path}: its parts unpack to {total:,} bytes, and the file has {size:,}; expected one "
            "as torch.save writes it, which packs nothing."
        )


def _unwrapped(loaded: Any, path: Path) -> dict[str, Any]:
    for wrapper in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not loaded:
        raise UserError(
            f"{path} holds something of type {type(loaded).__name__}; expected a state dict: "
            "key -> tensor."
        )
    foreign = next((key for key in loaded if not isinstance(key, str)), None)
    if foreign is not None:
        raise UserError(
            f"{path} has a key of type {type(foreign).__name__}; expected a state dict: key -> "
            "tensor."
        )
    return dict(loaded)


def _array(path: Path, key: str, tensor: Any) -> np.ndarray:
    import torch

    if not isinstance(tensor, torch.Tensor):
        kind = (
            "a NumPy scalar" if isinstance(tensor, _Scalar) else f"of type {type(tensor).__name__}"
        )
        raise UserError(f"{path}: {key} is {kind}; expected a tensor.")
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise UserError(
            f"{path}: {key} is a sparse, quantized or empty tensor; expected a dense one: "
            "tensor.to_dense() or tensor.dequantize() before torch.save."
        )
    tensor = tensor.detach()
    claimed, held = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if claimed > held:  # one number may stand for many
        raise UserError(
            f"{path}: {key} of shape {tuple(tensor.shape)} has {claimed:,} bytes, of which the "
            f"file holds {held:,}; expected as many."
        )
    if tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.float()
    if (tensor.is_floating_point() and tensor.dtype != torch.float32) or tensor.is_complex():
        raise UserError(
            f"{path}: {key} is {str(tensor.dtype).removeprefix('torch.')}; expected float32 or a "
            "half precision, which lose nothing."
        )
    return tensor.contiguous().numpy()
