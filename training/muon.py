# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Muon for weight matrices and convolutions, AdamW for the rest, as one optimizer with one learning rate."""

import math

import torch


MIN_MATRIX_SIZE = 32  # rows and columns; what is narrower has too few directions for an orthogonal step to be of use
# Of the iteration x -> a x + b x^3 + c x^5, which takes singular values of (0, 1] to around 1 (Jordan et al. 2024,
# "Muon: An optimizer for hidden layers in neural networks").
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NUM_ITERATIONS = 5


def is_matrix(weight: torch.Tensor) -> bool:
    """Whether a weight is moved by Muon: two dimensions or more, and not narrow in any way."""
    return weight.ndim >= 2 and min(len(weight), weight[0].numel()) >= MIN_MATRIX_SIZE


def orthogonalize(matrix: torch.Tensor) -> torch.Tensor:
    """The nearest matrix with equal singular values, about: U V^T of the SVD U S V^T, in float32.

    Newton-Schulz on the smaller Gram matrix: polynomials of one symmetric matrix commute, so that products with the
    long side are needed at both ends only. Singular values come out within about 0.7 and 1.2, except those that are
    next to nothing beside the matrix's norm.
    """
    wide = matrix.float() if matrix.shape[0] <= matrix.shape[1] else matrix.float().T
    wide = wide / wide.norm().clamp(min=1e-12)
    a, b, c = COEFFICIENTS
    gram = wide @ wide.T
    product = eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    for _ in range(NUM_ITERATIONS):
        step = a * eye + torch.addmm(gram, gram, gram, beta=b, alpha=c)
        product = step @ product
        gram = step @ gram @ step
    result = product @ wide
    return result if matrix.shape[0] <= matrix.shape[1] else result.T


class Muon(torch.optim.AdamW):
    """Orthogonal steps for matrices (Jordan et al. 2024), AdamW's for biases, norms and narrow weights.

    A matrix moves by its gradients' running mean with all singular values made equal, so that rare directions are
    learned as fast as common ones. The step's root mean square is the learning rate, which is the most that AdamW's
    weights usually move by: one rate serves both. Arguments are those of `torch.optim.AdamW`; the first beta is the
    momentum of matrices too (0.95 is usual), the second and epsilon are AdamW's alone.
    """

    @torch.no_grad()
    def step(self, closure=None):
        """One step; `closure` as torch's optimizers take it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gradients = {}
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None and is_matrix(weight):
                    self._move(weight, group)
                    # Out of AdamW's sight, which passes over weights without a gradient.
                    gradients[weight], weight.grad = weight.grad, None
        super().step()
        for weight, gradient in gradients.items():
            weight.grad = gradient
        return loss

    def _move(self, weight: torch.Tensor, group: dict) -> None:
        momentum, rate = group["betas"][0], float(group["lr"])
        if not self.state[weight]:
            self.state[weight]["momentum"] = torch.zeros_like(weight)
        mean = self.state[weight]["momentum"].lerp_(weight.grad, 1 - momentum)
        direction = orthogonalize(weight.grad.lerp(mean, momentum).flatten(1))  # Nesterov's look ahead
        weight.mul_(1 - rate * group["weight_decay"])
        weight.add_(direction.reshape(weight.shape), alpha=-rate * math.sqrt(max(direction.shape)))
