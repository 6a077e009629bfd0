"""A run file -> typed settings -> plain objects -> a run directory."""
