"""Runs `on_fake_device` in a process of its own.

torch's autograd counts the devices at the first backward pass of a process, and a private device
that comes into being later has no queue; nor should the other tests see one.
"""

import subprocess
import sys
from pathlib import Path

import keras
import pytest


@pytest.mark.skipif(keras.config.backend() != "torch", reason="torch's device")
def test_on_a_fake_device():
    checks = Path(__file__).with_name("on_fake_device.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--tb=short", str(checks)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
