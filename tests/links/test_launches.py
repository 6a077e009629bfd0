"""What a grafting on an accelerator costs in calls, counted on the CPU's tensors; torch."""

from collections import Counter

import keras
import pytest

import kgraft
from kgraft.engines.backends import BACKEND
from kgraft.grafting import population as populations

if keras.config.backend() != "torch":
    pytest.skip("counts torch's calls", allow_module_level=True)

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# these say how memory is to be read, and launch nothing
VIEWS = {"view", "slice", "detach", "select", "split", "split_with_sizes", "as_strided", "alias"}
VIEWS |= {"unsqueeze", "squeeze", "unbind", "expand", "_unsafe_view", "permute", "lift_fresh"}
WAITS = {"_local_scalar_dense", "nonzero", "_unique2", "equal"}


class Calls(TorchDispatchMode):
    """Counts what would be launched, and what would have to be waited for."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.found = Counter()
        self.transfers, self.uploads = 0, 0
        to_numpy, as_tensor = torch.Tensor.numpy, torch.as_tensor

        def numpy(tensor, *arguments, **options):
            self.transfers += 1
            return to_numpy(tensor, *arguments, **options)

        def upload(data, *arguments, **options):
            self.uploads += not isinstance(data, torch.Tensor)
            return as_tensor(data, *arguments, **options)

        monkeypatch.setattr(torch.Tensor, "numpy", numpy)
        monkeypatch.setattr(torch, "as_tensor", upload)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.found[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))

    @property
    def launches(self):
        return sum(n for name, n in self.found.items() if name not in VIEWS | WAITS)

    @property
    def waits(self):
        return self.transfers + sum(self.found[name] for name in WAITS)


def counted(monkeypatch, act, *, peers=8):
    monkeypatch.setattr(BACKEND, "is_on_host", lambda value: False)
    models = [
        kgraft.models.build("resnet20", input_shape=(32, 32, 3), classes=10) for _ in range(peers)
    ]
    act(models)
    with Calls(monkeypatch) as calls:
        act(models)
    print(calls.launches, calls.waits, calls.uploads, calls.found)
    return calls


@pytest.mark.parametrize("graft", [kgraft.Graft(), kgraft.Graft.authors()], ids=["ours", "theirs"])
def test_eight_peers_are_grafted_in_a_hundred_launches_and_two_waits(graft, monkeypatch):
    """14,296 launches and 792 waits weight by weight."""
    calls = counted(monkeypatch, graft.mix)
    assert calls.launches <= 100
    assert calls.waits <= 2
    assert calls.uploads <= 2  # the bins' edges and the coefficients


def test_the_number_of_peers_adds_a_launch_each_at_most(monkeypatch):
    two, eight = (counted(monkeypatch, kgraft.Graft().mix, peers=k).launches for k in (2, 8))
    assert eight - two <= 6


def test_the_counter_sees_the_way_weight_by_weight(monkeypatch):
    monkeypatch.setattr(populations.DeviceMatrix, "of", classmethod(lambda cls, models: None))
    calls = counted(monkeypatch, kgraft.Graft().mix)
    assert calls.launches > 10_000
    assert calls.waits > 700
