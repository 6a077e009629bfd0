"""Ranks as processes of their own, as torchrun or another launcher starts them."""

import os
import socket
import subprocess
import sys


def free_port():
    """A port that nobody listens on."""
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return own.getsockname()[1]


def environment(**more):
    """One thread, the backend of the tests, no launcher's variables, and what is given."""
    inherited = {name: value for name, value in os.environ.items() if name not in _LAUNCHERS}
    return {**inherited, "OMP_NUM_THREADS": "1", **more}


def started(arguments, ranks, **more):
    """Processes of `python ARGUMENTS`, one a rank, which find each other."""
    meet = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [
        process(arguments, RANK=str(rank), LOCAL_RANK=str(rank), **meet, **more)
        for rank in range(ranks)
    ]


def process(arguments, **more):
    """`python ARGUMENTS` in an environment of its own."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(processes, limit=240):
    """What they have said, once all have ended well."""
    said = [own.communicate(timeout=limit)[0] for own in processes]
    codes = [own.returncode for own in processes]
    assert codes == [0] * len(codes), "\n".join(said)[-4000:]
    return said


_LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
