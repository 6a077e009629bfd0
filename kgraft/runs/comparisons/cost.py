"""What an entry of a comparison costs: every network that was trained for it, its teachers too."""

from collections.abc import Callable
from dataclasses import dataclass

from kgraft.runs.comparisons.file import Comparison, Entry
from kgraft.runs.methods import taught_epochs


@dataclass(frozen=True)
class Trained:
    """A network that is trained.

    Attributes:
        model: its architecture.
        epochs: how long; an epoch has the same images in all entries.
    """

    model: str
    epochs: int


def trained_for(comparison: Comparison, entry: Entry) -> list[Trained]:
    """Every network that is trained for an entry.

    Its peers, the teachers that its run trains, and all that is trained for the entries that its
    teachers come from: the best peer of four has cost four. Each run counts once for an entry, and
    anew for every entry that is taught by it. Teachers from files are not among them.

    Args:
        comparison: the comparison.
        entry: one of its entries.
    """
    found = []
    for number, config in enumerate(run.config for run in _runs_for(comparison, entry)):
        if number or entry.result != "committee":  # which answers without its student
            found += [Trained(config.model.name, config.run.epochs)] * config.peers.count
        untrained = config.teachers.count - len(config.teachers.files)
        found += [Trained(config.teachers.model, taught_epochs(config))] * untrained
    return found


def given_teachers(comparison: Comparison, entry: Entry) -> int:
    """How many teachers of an entry, and of those that teach it, come from files.

    Args:
        comparison: the comparison.
        entry: one of its entries.
    """
    return sum(
        len(run.config.teachers.files) - len(run.named_teachers())
        for run in _runs_for(comparison, entry)
    )


def cost(comparison: Comparison, entry: Entry, flops: Callable[[str], int]) -> float:
    """What an entry costs, in trainings of one network of the baseline's.

    The sum over the networks that are trained of FLOPs an image x images seen, over the same of one
    network of the baseline. The forward passes of finished teachers are not in it.

    Args:
        comparison: the comparison.
        entry: one of its entries.
        flops: architecture -> FLOPs of one image; asked only where architectures differ.
    """
    unit = comparison.entry(comparison.baseline).config

    def size(model: str) -> float:
        return 1.0 if model == unit.model.name else flops(model) / flops(unit.model.name)

    return sum(
        size(trained.model) * trained.epochs / unit.run.epochs
        for trained in trained_for(comparison, entry)
    )


def _runs_for(comparison: Comparison, entry: Entry) -> list[Entry]:
    """The entry whose runs it reads, and every one that teaches it, or a teacher of its."""
    found = [comparison.entry(entry.runs_of)]
    for run in found:  # grows while it is read
        for name in run.named_teachers():
            teacher = comparison.entry(name)
            if teacher not in found:
                found.append(teacher)
    return found
