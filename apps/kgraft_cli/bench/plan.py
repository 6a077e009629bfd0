"""What is to be measured, from the command line's words; imports nothing heavy."""

import re
from dataclasses import dataclass
from typing import Any

REFERENCE = "kgraft"
LAYER_LOOP = "layer-loop"

EVERYWHERE = ("kgraft", "kgraft-eager", "keras-fit")
TORCH_ONLY = (
    "pytorch",
    "pytorch-channels-last",
    "pytorch-compiled",
    "pytorch-compiled-channels-last",
    "processes",
    "processes-compiled",
)

_TWINS = re.compile(r"resnet(8|20|32|44|56|110)|mobilenet_v2")
_MODEL = {"graft": "mobilenet_v2"}
_PEERS = {"scaling": "1,2,4,8"}
_STEPS = {"graft": 1}


@dataclass(frozen=True)
class Plan:
    """What one call measures.

    Attributes:
        suite: `"speed"`, `"graft"`, `"startup"` or `"scaling"`.
        models: architectures; more than one for scaling only.
        peers: numbers of peers K.
        batch_sizes: images a step of one peer; more than one for scaling only.
        dataset: name of the data set.
        data_dir: where prepared sets are.
        repeats: blocks of every contender.
        steps: steps of every peer in a block.
        contenders: the ones that were asked for; none for all there are.
    """

    suite: str
    models: tuple[str, ...]
    peers: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    dataset: str
    data_dir: str | None
    repeats: int
    steps: int
    contenders: tuple[str, ...]


def plan_of(
    suite: str,
    *,
    model: str | None,
    peers: str | None,
    batch_size: str,
    dataset: str,
    data_dir: str | None,
    repeats: int,
    steps: int | None,
    contenders: tuple[str, ...],
) -> Plan:
    """The plan that some options describe, with the suite's own defaults filled in.

    Args:
        suite: see `Plan`.
        model: a name, or several with commas between them.
        peers: numbers with commas between them.
        batch_size: likewise.
        dataset: see `Plan`.
        data_dir: see `Plan`.
        repeats: see `Plan`.
        steps: see `Plan`.
        contenders: see `Plan`.

    Raises:
        UserError: an option is out of range, or the suite does not take it.
    """
    models = tuple(part.strip() for part in (model or _MODEL.get(suite, "resnet20")).split(","))
    sizes = _numbers("--batch-size", batch_size)
    steps = _STEPS.get(suite, 4) if steps is None else steps
    for option, number in (("--repeats", repeats), ("--steps", steps)):
        if number < 1:
            raise _mistake(f"{option} {number}: expected 1 or more.")
    if suite != "scaling" and (len(models) > 1 or len(sizes) > 1):
        raise _mistake(f"--suite {suite} takes one model and one batch size: lists are scaling's.")
    if contenders and suite in ("graft", "scaling"):
        raise _mistake(f"--contender: suite {suite} has its own, only speed and startup take it.")
    known = (*EVERYWHERE, *TORCH_ONLY)
    for name in contenders:
        if name not in known:
            raise _unknown(f"--contender {name!r} is unknown.", name, known)
    return Plan(
        suite=suite,
        models=models,
        peers=_numbers("--peers", peers or _PEERS.get(suite, "4")),
        batch_sizes=sizes,
        dataset=dataset,
        data_dir=data_dir,
        repeats=repeats,
        steps=steps,
        contenders=tuple(dict.fromkeys(contenders)),
    )


def contenders_for(plan: Plan, backend: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Who competes.

    Args:
        plan: what was asked for.
        backend: the one that Keras runs on.

    Returns:
        The contenders' names, and lines that say who is missing and why.

    Raises:
        UserError: one that was asked for does not run there, or has no such network.
    """
    if plan.suite == "scaling":
        return (REFERENCE,), ()
    if plan.suite == "graft":
        return (REFERENCE, LAYER_LOOP), ()
    missing = None
    if backend != "torch":
        missing = f"The pytorch and processes contenders run on torch; the backend is {backend}."
    elif not has_twin(plan.models[0]):
        missing = (
            f"No pytorch or processes contender for {plan.models[0]}: their networks are written "
            "by hand, for CIFAR ResNets and mobilenet_v2."
        )
    asked = [name for name in plan.contenders if name in TORCH_ONLY]
    if missing and asked:
        raise _mistake(f"--contender {asked[0]}: {missing}")
    all_of_them = EVERYWHERE if missing else (*EVERYWHERE, *TORCH_ONLY)
    return plan.contenders or all_of_them, (missing,) if missing and not plan.contenders else ()


def has_twin(model: str) -> bool:
    """Whether the benchmark has a hand-written PyTorch network of an architecture.

    Example:
        >>> has_twin("resnet20"), has_twin("resnet18")
        (True, False)
    """
    return _TWINS.fullmatch(model) is not None


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise _mistake(f"{option} {text!r}: expected numbers of 1 or more, e.g. 1,4.")
    return numbers


def _mistake(line: str) -> Exception:
    from kgraft.errors import UserError  # a mistake may cost the import of Keras, help may not

    return UserError(line)


def _unknown(line: str, word: str, known: tuple[str, ...]) -> Exception:
    from kgraft.errors import UserError, suggest

    return UserError(line + suggest(word, known))


def spec_of(plan: Plan, contender: str, peers: int, model: str, batch_size: int) -> dict[str, Any]:
    """What a worker is told.

    Args:
        plan: the plan.
        contender: whose part it plays.
        peers: K.
        model: architecture.
        batch_size: images a step of one peer.
    """
    return {
        "contender": contender,
        "model": model,
        "peers": peers,
        "batch_size": batch_size,
        "dataset": plan.dataset,
        "data_dir": plan.data_dir,
        "steps": plan.steps,
    }
