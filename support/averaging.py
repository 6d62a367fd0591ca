"""A moving average of a model's weights. For common.py, where the average is what is evaluated and saved.

torch.optim.swa_utils.AveragedModel does the same to the same bits, but for batch norm's count of batches, which it
averages too; a step of it takes 0.36 ms for the network of bn.py, and one of this 0.15 (an AMD EPYC).
"""

import copy

import torch


class MovingAverage:
    """A copy of `model`, `.module`, whose floating-point weights and statistics follow the model's step by step.

    Polyak and Juditsky 1992, "Acceleration of Stochastic Approximation by Averaging"; theirs is a plain mean."""

    def __init__(self, model, decay):
        self.model, self.module, self.decay = model, copy.deepcopy(model), decay
        self.means = floats(self.module)

    def update(self, step):
        """Move as far as `share` says, after the training step `step` (from 0)."""
        torch._foreach_lerp_(self.means, floats(self.model), share(self.decay, step))


def share(decay, step):
    """How far an exponential moving average moves in a step (from 0): 1 - decay, and more in the first steps."""
    return max(1 - decay, 10 / (10 + step))


def floats(model):
    """Weights and statistics, but not batch norm's count of batches. To be asked for anew in every step: a norm may put
    new tensors into its buffers."""
    return [value.detach() for value in [*model.parameters(), *model.buffers()] if value.is_floating_point()]
