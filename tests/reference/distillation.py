"""Distillation (eq. 8-12) in NumPy, float64, written apart from kgraft."""

import numpy as np


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def mean_probabilities(teacher_logits, temperature):
    return np.mean([softmax(np.float64(z) / temperature) for z in teacher_logits], axis=0)


def distillation_losses(student_logits, probabilities, temperature):
    """KD of every image: tau^2 times the cross entropy of softmax(z_s / tau) with pbar."""
    own = softmax(np.float64(student_logits) / temperature)
    return np.array(
        [
            -(temperature**2) * sum(p * np.log(q) for p, q in zip(pbar, image, strict=True))
            for pbar, image in zip(np.float64(probabilities), own, strict=True)
        ]
    )


def cross_entropies(student_logits, labels):
    own = softmax(np.float64(student_logits))
    return np.array([-np.log(image[label]) for image, label in zip(own, labels, strict=True)])


def logit_gradients(student_logits, labels, probabilities, temperature):
    """Derivatives of every image's CE + KD by its logits."""
    logits = np.float64(student_logits)
    from_labels = softmax(logits) - np.eye(logits.shape[-1])[labels]
    return from_labels + temperature * (softmax(logits / temperature) - probabilities)
