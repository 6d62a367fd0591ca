"""What can be told of a network without training it: errors, layers and parameters, receptive fields."""

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
    """Return torchinfo's summary of a network for one image: str() it, .total_params, .total_mult_adds."""
    columns = ("output_size", "kernel_size", "num_params", "mult_adds")
    return torchinfo.summary(model, input_data=torch.zeros(1, 3, 32, 32), col_names=columns,
                             row_settings=["var_names"], device="cpu", verbose=0)


def receptive_fields(layers):
    """Return {layer: (receptive field, jump)} in pixels for the layers of a network, named as C1, c3, P1, GAP.

    Neighbouring outputs depend on squares of the image that are a jump apart, None from GAP on. Araujo et al. 2019,
    "Computing Receptive Fields of Convolutional Neural Networks".
    """
    field, jump, results = 1, 1, {}
    for name in layers:
        kernel, stride = {"C": (3, 1), "P": (2, 2), "G": (8, 8)}.get(name[0], (1, 1))  # GAP takes all 8x8 positions
        field, jump = field + (kernel - 1) * jump, jump * stride
        results[name] = field, jump if "GAP" not in results and name != "GAP" else None
    return results
