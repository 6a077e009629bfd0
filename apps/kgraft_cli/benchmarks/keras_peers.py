"""The contenders that train with Keras."""

from typing import Any

from kgraft_cli.benchmarks.tasks import Task, batches_of, own_peak_bytes, take


class Kgraft:
    """kgraft's peers, stepped and grafted as `GraftingFit` does it."""

    def __init__(self, task: Task) -> None:
        import keras

        import kgraft
        from kgraft import models
        from kgraft.engines.engine import Engine
        from kgraft.grafting import Graft, Moment, Peers

        self._stream, classes = batches_of(task)
        keras.utils.set_random_seed(0)
        shape = tuple(self._stream._images.shape[1:])
        self.models = [
            models.build(task.model, input_shape=shape, classes=classes) for _ in range(task.peers)
        ]
        for model in self.models:
            model.compile(
                kgraft.SGD(0.1, momentum=0.9, l2=5e-4),
                keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                metrics=["accuracy"],
            )
        self._engine = Engine(
            self.models, "eager" if task.contender == "kgraft-eager" else "compiled"
        )
        graft = Graft()
        peers = Peers(self.models, graft.plan(self.models))
        self._graft = lambda: graft.apply(peers, {}, Moment())

    def block(self, number: int, steps: int) -> None:
        """See `Contender`."""
        streams = [take(self._stream, k, number, steps) for k in range(len(self.models))]
        self._engine.begin_epoch()
        for batches in zip(*streams, strict=True):
            self._engine.step(batches)
        self._engine.wait()
        self._engine.end_epoch()

    @property
    def is_settled(self) -> bool:
        """Whether it has found out how steps are taken fastest."""
        return self._engine.is_settled

    def exchange(self) -> None:
        """Graft."""
        self._graft()
        self._engine.wait()

    def peak_bytes(self) -> int:
        """See `Contender`."""
        return own_peak_bytes()


class KerasFit:
    """K times `Model.fit` as a user would write it, one network after the other."""

    def __init__(self, task: Task) -> None:
        import keras

        from kgraft import models

        self._stream, classes = batches_of(task)
        shape = tuple(self._stream._images.shape[1:])

        def plain(layer: Any) -> Any:
            if isinstance(layer, keras.layers.BatchNormalization):
                return keras.layers.BatchNormalization.from_config(layer.get_config())
            return type(layer).from_config(layer.get_config())

        self._models = [
            keras.models.clone_model(
                models.build(task.model, input_shape=shape, classes=classes), clone_function=plain
            )
            for _ in range(task.peers)
        ]
        for model in self._models:
            model.compile(
                keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=5e-4),
                keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                metrics=["accuracy"],
            )

    def block(self, number: int, steps: int) -> None:
        """See `Contender`."""
        for k, model in enumerate(self._models):
            model.fit(take(self._stream, k, number, steps), steps_per_epoch=steps, verbose=0)

    def exchange(self) -> None:
        """Nothing: these networks do not know of each other."""

    def peak_bytes(self) -> int:
        """See `Contender`."""
        return own_peak_bytes()
