"""Muon, an optimizer of matrices, here for the filters of convolutions. For readers who ask what the recipes' first
line of the ablation is worth, and why.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks". torch.optim.Muon (torch 2.9 and later)
takes matrices only, one product after the other, and neither keeps a filter's length nor its mean."""

import torch
import torch.nn.functional as F


class Muon(torch.optim.SGD):
    """SGD, but filters (groups with "orthogonalize") move by orthogonalized momentum, and keep their length.

    Orthogonalized, a step moves all directions alike, not mostly those with a large gradient; the learning rate is its
    length as a share of the filters'. A norm undoes the length, so that may stay. With "zero_mean", filters also keep a
    mean of zero; ln.py tells why. The mean as in Qiao et al. 2019, "Weight Standardization"."""

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            if group["orthogonalize"]:
                self.orthogonalized_step(group["params"], group["lr"], group["momentum"], group["zero_mean"])
        super().step()

    def orthogonalized_step(self, filters, lr, momentum, zero_mean):
        weights, grads, state = as_matrices(filters), as_matrices([p.grad for p in filters]), self.state[filters[0]]
        if not state:
            inside = as_matrices([torch.ones_like(p) for p in filters])  # 0 where there is only padding
            state.update(length=frobenius_norms(weights), momentum_buffer=torch.zeros_like(grads), inside=inside,
                         share=inside / inside.sum(2, keepdim=True).clamp(min=1))
        state["momentum_buffer"].mul_(momentum).add_(grads)
        directions = orthogonalize(grads + momentum * state["momentum_buffer"])  # Nesterov
        weights -= lr * state["length"] / frobenius_norms(directions) * directions
        if zero_mean:
            weights -= (weights * state["share"]).sum(2, keepdim=True) * state["inside"]
        weights *= state["length"] / frobenius_norms(weights)
        for p, matrix in zip(filters, weights, strict=True):
            p.copy_(matrix[: len(p), : p[0].numel()].view_as(p))
            p.grad = None  # nothing is left for SGD


def as_matrices(filters):
    """K filters (channels made, channels seen, height, width) -> (K, M, N), a row for each channel made.

    Zeros fill them up to one size, so that all go through the same few products; to those they make no difference."""
    rows, columns = max(len(x) for x in filters), max(x[0].numel() for x in filters)
    return torch.stack([F.pad(x.flatten(1), (0, columns - x[0].numel(), 0, rows - len(x))) for x in filters])


def frobenius_norms(matrices):
    """(K, M, N) -> (K, 1, 1), the root of each one's sum of squares, above 0."""
    return matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-12)


def orthogonalize(matrices, steps=3):
    """(K, M, N) -> the same singular vectors, singular values near 1, by Newton-Schulz steps with Muon's coefficients.

    A step is x -> (3.4445 - 4.7750 g + 2.0315 g^2) x with g = x x.T. Here the factors of all steps, (K, M, M), are
    multiplied first, and x only once, at the end. Singular values of 0 stay."""
    x = matrices / frobenius_norms(matrices)
    gram, one = x @ x.mT, torch.eye(x.shape[1], device=x.device)
    product = one
    for _ in range(steps):
        factor = 3.4445 * one - 4.7750 * gram + 2.0315 * gram @ gram
        product, gram = factor @ product, factor @ gram @ factor
    return product @ x
