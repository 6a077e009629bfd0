"""`torch.optim.SGD`'s arithmetic in NumPy, one weight array at a time."""

import numpy as np


def trajectory(weight, gradient_of, rates, *, momentum=0.0, l2=0.0, nesterov=False):
    """Weights after every step.

    `gradient_of(weight, step)` gives the gradient, `rates[step]` the learning rate.
    """
    weight, velocity, visited = np.array(weight), None, []
    for step, rate in enumerate(rates):
        gradient = gradient_of(weight, step) + l2 * weight
        velocity = gradient if velocity is None else momentum * velocity + gradient
        weight = weight - rate * (gradient + momentum * velocity if nesterov else velocity)
        visited.append(weight)
    return visited
