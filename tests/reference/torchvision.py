"""torchvision's transforms beside a CPU build of torch, where its compiled operations do not load.

None of them is needed for transforms: each that importing asks for is named to torch, and no more.
"""

import importlib
import re
import sys

import pytest
import torch

_KEPT = []  # a torch.library is gone with its last reference


def transforms():
    """`torchvision.transforms`; the test is skipped where torchvision is not installed."""
    return _imported("torchvision.transforms")


def v2():
    """`torchvision.transforms.v2`, likewise."""
    return _imported("torchvision.transforms.v2")


def _imported(name):
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    for _ in range(100):
        try:
            return importlib.import_module(name)
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None:
                raise
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(f"{missing[1]}(Tensor x) -> Tensor")
            _KEPT.append(library)
            for own in [own for own in sys.modules if own.startswith("torchvision")]:
                del sys.modules[own]
    raise RuntimeError("torchvision cannot be imported")
