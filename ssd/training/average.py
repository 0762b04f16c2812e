"""An exponential moving average of the weights of a network, which often detects better than the last weights."""

from copy import deepcopy

import torch
from torch import Tensor

from ssd.networks import Network


class Average:
    """A copy of a network whose weights are the average.

    The running statistics of batch norm are averaged in the same way. Those of the trained network would not fit: they
    belong to the activations of other weights. To compute them anew would take a pass over the pictures before each
    validation, and its result would depend on the order of the pictures. timm's ModelEma does the same.

    Args:
        model: the network that is trained, with its first weights, on its device; it is copied.
        decay: weight of the earlier average in each step, in 0..1. In the first steps it is less, see `update`.

    Attributes:
        model: the copy, in evaluation mode.

    Source: Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992; for the exponential form
    and its warm-up, tf.train.ExponentialMovingAverage.
    """

    def __init__(self, model: Network, decay: float) -> None:
        self.model, self.decay = deepcopy(model).eval().requires_grad_(False), decay
        # Collected once: this takes longer than the arithmetic of a step. keep_vars: the parameters themselves, since
        # views of their memory would be left behind if the network was moved.
        states = [network.state_dict(keep_vars=True).values() for network in (self.model, model)]
        self._averages: list[Tensor] = []
        self._values: list[Tensor] = []
        self._counts: list[tuple[Tensor, Tensor]] = []  # the numbers of batches that batch norm has seen
        for average, value in zip(*states, strict=True):
            if average.is_floating_point():
                self._averages.append(average)
                self._values.append(value)
            else:
                self._counts.append((average, value))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Adds the weights after a step to the average; does not wait for the device.

        Args:
            step: number of steps of the run so far, at least 1. The decay is (1 + step) / (10 + step) while this is
                less than `decay`, so that a short run forgets its first weights.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages, self._values, 1 - decay)
        for average, value in self._counts:
            average.copy_(value)
