"""Cross entropy with smoothed labels, from class numbers."""

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable("kgraft")
class SmoothedCrossentropy(keras.losses.CategoricalCrossentropy):
    """`keras.losses.CategoricalCrossentropy` with `label_smoothing`, for class numbers.

    With smoothing e and C classes an image's label counts 1 - e + e / C, and every other class
    e / C, as in `torch.nn.CrossEntropyLoss(label_smoothing=e)`.

    Args:
        label_smoothing: e, 0 or more and below 1.
        from_logits: whether predictions are logits.
        **options: see `keras.losses.CategoricalCrossentropy`.

    Source: Szegedy et al., "Rethinking the Inception architecture", CVPR 2016, section 7.

    Example:
        >>> loss = SmoothedCrossentropy(0.2)
        >>> round(float(loss(keras.ops.array([0]), keras.ops.array([[2.0, 0.0]]))), 4)
        0.3269
    """

    def __init__(
        self, label_smoothing: float = 0.1, from_logits: bool = True, **options: Any
    ) -> None:
        super().__init__(from_logits=from_logits, label_smoothing=label_smoothing, **options)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """The loss of each image, `(batch,)`.

        Args:
            y_true: class numbers, `(batch,)` or `(batch, 1)`.
            y_pred: predictions, `(batch, classes)`.
        """
        numbers = ops.reshape(ops.cast(y_true, "int32"), ops.shape(y_pred)[:-1])
        return super().call(ops.one_hot(numbers, y_pred.shape[-1], dtype=y_pred.dtype), y_pred)
