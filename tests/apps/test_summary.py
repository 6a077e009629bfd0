import io

import pytest
from kgraft_cli.summary import summary_table
from rich.console import Console


@pytest.mark.parametrize("held_out", [0.5, None])
def test_a_best_epoch_is_told_where_images_were_held_out(held_out):
    row = {
        "peer": 1,
        "lr": 0.1,
        "test_accuracy": 0.25,
        "best_epoch": 3,
        "best_validation_accuracy": held_out,
        "best_test_accuracy": 0.75,
    }
    summary = {
        "peers": [row],
        "teachers": [],
        "ensemble": {"test_accuracy": 0.25},
        "selected_on": "validation",
    }
    out = io.StringIO()
    Console(file=out, width=100).print(summary_table(summary))
    assert "25.00%" in out.getvalue()
    assert ("75.00% (epoch 3)" in out.getvalue()) == (held_out is not None)
    assert ("best on validation" in out.getvalue()) == (held_out is not None)
