"""A moving average of a model's weights. For common.py, where the average is what is evaluated and saved.

torch.optim.swa_utils.AveragedModel does the same to the same bits, but for batch norm's count of batches, which it
averages too; a step of it takes 0.36 ms for the network of bn.py, and one of this 0.03 (an AMD EPYC, one thread).
"""

import copy

import torch


class MovingAverage:
    """A copy of `model`, `.module`, whose floating-point weights and statistics follow the model's step by step.

    Polyak and Juditsky 1992, "Acceleration of Stochastic Approximation by Averaging"; theirs is a plain mean."""

    def __init__(self, model, decay):
        self.module, self.decay = copy.deepcopy(model), decay
        self.means, self.values = floats(self.module), floats(model)

    def update(self, step):
        """Move as far as `share` says, after the training step `step` (from 0)."""
        torch._foreach_lerp_(self.means, self.values, share(self.decay, step))


def share(decay, step):
    """How far an exponential moving average moves in a step (from 0): 1 - decay, and more in the first steps."""
    return max(1 - decay, 10 / (10 + step))


def floats(model):
    """Weights and statistics, but not batch norm's count of batches: tensors that change as the model does."""
    return [value for value in model.state_dict().values() if value.is_floating_point()]
