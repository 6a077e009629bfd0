import pytest

from kgraft.runs.config import Config


def changed(config, **changes):
    for key, value in changes.items():
        table, _, name = key.partition("__")
        config = config.changed(f"{table.replace('_', '-')}.{name}", value, "test")
    return config


@pytest.fixture
def tiny():
    """Two peers and a teacher, seconds in all; takes changes as `table__key=value`."""

    def config(**changes):
        small = changed(
            Config(),
            run__epochs=2,
            run__batch_size=32,
            peers__count=2,
            teachers__model="resnet8",
            data__limit_train=96,
            data__limit_test=40,
        )
        return changed(small, **changes)

    return config
