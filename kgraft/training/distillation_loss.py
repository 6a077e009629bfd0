"""Knowledge distillation as a Keras loss."""

from typing import Any

import keras

from kgraft.equations import distillation_loss
from kgraft.settings import argument


@keras.saving.register_keras_serializable("kgraft")
class DistillationLoss(keras.losses.Loss):
    """`distillation_loss` as a Keras loss: `y_true` is pbar, `y_pred` the student's logits.

    Sample weights weigh an image's KD as they weigh its cross entropy.

    Args:
        temperature: tau, positive.
        name: name of the loss.
        reduction: how Keras reduces the images' losses; the mean over the batch by default.
        dtype: dtype of the computation; Keras' float type by default.

    Raises:
        UserError: `temperature` is not a positive number.
    """

    def __init__(
        self,
        temperature: float = 2.0,
        name: str = "distillation_loss",
        reduction: str = "sum_over_batch_size",
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.temperature = argument("temperature", temperature, float, above=0)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Each image's KD, shape `(batch,)`."""
        return distillation_loss(y_pred, y_true, self.temperature)

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return {**super().get_config(), "temperature": self.temperature}
