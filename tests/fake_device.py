"""An accelerator that computes nothing: torch's private device with fake tensors; torch only.

Every operation is looked up for it, with shapes, dtypes and devices, and none is carried out: what
mixes a tensor of the host into the device's, asks for a number or moves data unseen fails here, on
a machine without an accelerator, in a second.

    with fake_device() as device:
        device.move(model)       # built, compiled and with one step behind it, on the CPU
        ...                      # numbers that the host reads are 0
        device.uploads, device.downloads

`register` comes before the first backward pass of a process: autograd counts the devices then.
"""

import contextlib
import functools
from unittest import mock

import keras
import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "kfake"
_as_tensor, _numpy, _from_numpy = torch.as_tensor, torch.Tensor.numpy, torch.from_numpy


class FakeDevice:
    """What lies on the device, and what has moved to it and from it.

    Attributes:
        uploads: how many arrays and numbers became tensors there.
        downloads: how many tensors were handed out as arrays.
    """

    def __init__(self):
        self.device = torch.device(NAME, 0)
        self.uploads = self.downloads = 0

    def tensor(self, *shape, dtype=torch.float32):
        """A tensor there."""
        return torch.empty(shape, dtype=dtype, device=self.device)

    def move(self, model):
        """Put all variables of a compiled model there.

        Keras cannot build a model there: it has no generator of random numbers.
        """
        variables = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
        for variable in {id(own): own for own in variables}.values():
            old = variable._value
            new = self.tensor(*old.shape, dtype=old.dtype)
            if isinstance(old, torch.nn.Parameter):
                new = torch.nn.Parameter(new, requires_grad=old.requires_grad)
            variable._value = new

    def as_tensor(self, data, dtype=None, device=None):
        """`torch.as_tensor`, which itself asks for memory there that it cannot have."""
        if isinstance(data, torch.Tensor) or device is None or torch.device(device).type != NAME:
            return _as_tensor(data, dtype=dtype, device=device)
        self.uploads += 1
        host = np.asarray(data)
        dtype = dtype or _from_numpy(np.empty(0, host.dtype)).dtype
        return torch.zeros(host.shape, dtype=dtype, device="cpu").to(device)

    def from_numpy(self, array):
        """`torch.from_numpy`, of what is about to go there: memory of the host is no fake's."""
        self.uploads += 1
        return torch.zeros(
            array.shape, dtype=_from_numpy(np.empty(0, array.dtype)).dtype, device="cpu"
        )

    def numpy(self, tensor, **options):
        """`torch.Tensor.numpy`; there are no numbers, so they are 0."""
        if not isinstance(tensor, FakeTensor):
            return _numpy(tensor, **options)
        self.downloads += 1
        return np.zeros(tensor.shape, str(tensor.dtype).removeprefix("torch."))


@contextlib.contextmanager
def fake_device():
    """Everything inside happens on a `FakeDevice`, which is Keras' default."""
    register()
    device = FakeDevice()
    with (
        FakeTensorMode(allow_non_fake_inputs=False),
        keras.device(f"{NAME}:0"),
        mock.patch("torch.as_tensor", device.as_tensor),
        mock.patch("torch.from_numpy", device.from_numpy),
        mock.patch("torch.Tensor.numpy", lambda tensor, **options: device.numpy(tensor, **options)),
    ):
        yield device


@functools.cache
def register():
    """Make the device known to torch, for the rest of the process."""
    _setup_privateuseone_for_python_backend(NAME)
