"""Check and summarize a network without training it."""

import copy

import torch
import torch.nn.functional as F
import torchinfo


def check_network(model, shape, autocast):
    """Run a copy of a network forward and backward on random images (N, 3, H, W) in both modes, inside a context.

    Raises what the network raises, and ValueError if gradients are missing or not finite. Leaves random states alone.
    """
    with torch.random.fork_rng(devices=[]), autocast:
        model, images = copy.deepcopy(model), torch.randn(shape)
        for batch in images, images[:1]:  # in training mode, in evaluation mode
            logits = model.train(len(batch) > 1)(batch)
            F.cross_entropy(logits.float(), torch.arange(len(batch))).backward()
    for name, p in model.named_parameters():
        if p.requires_grad and (p.grad is None or not p.grad.isfinite().all()):
            raise ValueError(f"the gradient of {name} is {'missing' if p.grad is None else 'not finite'}")


def summarize(model):
    """Return torchinfo's table of a network for one image, its parameters and multiply-accumulates (MACs)."""
    columns = ("output_size", "kernel_size", "num_params", "mult_adds")
    info = torchinfo.summary(model, input_data=torch.zeros(1, 3, 32, 32), col_names=columns,
                             row_settings=["var_names"], device="cpu", verbose=0)
    return str(info).replace("Units.MEGABYTES", "millions"), info.total_params, info.total_mult_adds
