"""A trace alone: what it writes down of a step, and what it refuses to."""

import keras
import numpy as np
import pytest

if keras.config.backend() != "torch":
    pytest.skip("traces are torch's", allow_module_level=True)

import torch

from kgraft.engines.torch.trace import Trace


def test_python_numbers_are_tensors_once():
    factor = [3.0]

    def step(batch):
        (x,) = batch
        total = torch.zeros(2)
        total.add_(1.0)
        scale = torch.tensor(factor[0]).to(torch.float64)
        return {"y": x * scale + total}

    trace = Trace(step, (torch.ones(2),))
    factor[0] = 7.0
    called = [node for node in trace._program.graph.nodes if node.op == "call_function"]
    names = [str(node.target) for node in called]
    assert not any("lift_fresh" in name or "_to_copy" in name for name in names)
    for _ in range(2):  # what is changed in place starts anew every time
        assert trace([torch.full((2,), 2.0)])["y"].tolist() == [7.0, 7.0]


def test_a_step_that_is_traced_is_taken_once_while_it_is_traced():
    weights = [torch.ones(2), torch.ones(3)]

    def step(batch):
        torch._foreach_mul_(weights, torch.tensor(0.5))  # make_fx alone runs it twice
        return {"y": batch[0] + weights[0]}

    trace = Trace(step, (torch.ones(2),))
    assert [weight.tolist() for weight in weights] == [[0.5] * 2, [0.5] * 3]
    assert trace([torch.ones(2)])["y"].tolist() == [1.25, 1.25]


def test_a_step_that_reads_a_tensor_as_an_array_is_no_trace():
    for read in (lambda x: x.numpy().sum(), np.asarray, lambda x: sum(x.tolist())):
        with pytest.raises(RuntimeError, match="depends on the value of a tensor"):
            Trace(lambda batch, read=read: {"y": batch[0] * read(batch[0])}, (torch.ones(2),))


def test_what_a_step_changes_is_no_constant_however_often_it_is_read():
    seen = torch.zeros(2)

    def step(batch):
        once, twice = seen * 2, seen * 3
        seen.add_(batch[0])
        return {"y": once + twice}

    trace = Trace(step, (torch.ones(2),))
    assert [trace([torch.ones(2)])["y"].tolist() for _ in range(2)] == [[5.0, 5.0], [10.0, 10.0]]
