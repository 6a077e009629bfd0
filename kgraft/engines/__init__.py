"""How K peers take one step: engines, the backends under them, lock-step with a running `fit`."""
