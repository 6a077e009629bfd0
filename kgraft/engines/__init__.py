"""How K peers take one step: the eager engine, and lock-step with a running `fit`."""
