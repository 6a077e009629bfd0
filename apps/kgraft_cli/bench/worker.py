"""A worker: builds one contender, says that it is ready, then measures block after block.

Run as `python -m kgraft_cli.bench.worker SPEC`. Orders come on stdin, one a line, and each has one
line of JSON for an answer:

| order | what is done | answer |
|---|---|---|
| `go` | `steps` steps of all peers, then one exchange | `step_seconds`, `exchange_seconds`, ... |
| `train N` | N steps of all peers | `seconds` |
| `exchange` | one exchange | `seconds` |
| `state` | nothing | `peak_memory_bytes`, `model_bytes`, `finite` |

The worker ends with its input.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from kgraft_cli.bench.protocol import Answers


def main(text: str) -> None:
    """Play the contender that a spec describes until the input ends.

    Args:
        text: the spec, JSON.
    """
    answers = Answers()
    spec = json.loads(text)
    try:
        if spec["contender"] == "facts":
            from kgraft_cli.bench.facts import facts

            answers.give(facts(spec))
            return
        contender, ready = _prepared(spec)
    except (ValueError, ImportError) as error:
        if type(error).__module__.partition(".")[0] != "kgraft":
            raise
        answers.give({"error": str(error)})
        return
    answers.give(ready)
    for line in sys.stdin:
        match line.split():
            case ["go"]:
                trained = _seconds(lambda: contender.train(spec["steps"]))
                answer = {
                    "step_seconds": trained / spec["steps"],
                    "exchange_seconds": _seconds(contender.exchange),
                    **_state(contender),
                }
            case ["train", count]:
                answer = {"seconds": _seconds(lambda n=int(count): contender.train(n))}
            case ["exchange"]:
                answer = {"seconds": _seconds(contender.exchange)}
            case ["state"]:
                answer = _state(contender)
            case _:
                break
        answers.give(answer)
    contender.close()


def _prepared(spec: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A contender after two steps of every peer and one exchange, and what that took."""
    import kgraft  # noqa: F401  # chooses the backend before anybody imports Keras

    imported = time.time() - spec["spawned"]
    from kgraft_cli.bench.contenders import build

    contender = build(spec)
    contender.train(1)
    started = time.time() - spec["spawned"]
    contender.exchange()
    contender.train(1)
    return contender, {
        "ready": True,
        "startup_seconds": started,
        "import_seconds": imported,
        "engine": contender.describe(),
    }


def _state(contender: Any) -> dict[str, Any]:
    return {
        "peak_memory_bytes": contender.peak_memory(),
        "model_bytes": contender.model_bytes(),
        "finite": contender.finite(),
    }


def _seconds(action: Callable[[], Any]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


if __name__ == "__main__":
    main(sys.argv[1])
