# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Muon for weight matrices and convolutions, AdamW for the rest, as one optimizer with one learning rate."""

import math

import torch


MIN_MATRIX_SIZE = 32  # rows and columns; what is narrower has too few directions for an orthogonal step to be of use
# Of x -> a x + b x^3 + c x^5, which in five turns takes singular values of (0, 1] to around 1
# (https://kellerjordan.github.io/posts/muon, 2024).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NUM_ITERATIONS = 5


def is_matrix(weight: torch.Tensor) -> bool:
    """Whether Muon moves a weight: two dimensions or more, and not narrow in any way."""
    return weight.ndim >= 2 and min(len(weight), weight[0].numel()) >= MIN_MATRIX_SIZE


def orthogonalize(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix with all its singular values made about 1: U V^T of its SVD U S V^T, in float32, by Newton-Schulz.

    They come out within about 0.7 and 1.2, but for those that are next to nothing beside the matrix's norm.
    """
    is_tall = matrix.shape[0] > matrix.shape[1]
    wide = matrix.float().T if is_tall else matrix.float()
    wide = wide / wide.norm().clamp(min=1e-12)
    a, b, c = COEFFICIENTS
    for _ in range(NUM_ITERATIONS):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.T if is_tall else wide


class Muon(torch.optim.AdamW):
    """Orthogonal steps for matrices (https://kellerjordan.github.io/posts/muon), AdamW's for the rest.

    A matrix moves by its gradients' running mean with all singular values made equal, so that rare directions are
    learned as fast as common ones. A convolution is a matrix with a row for each output channel; embeddings and first
    layers count as matrices too, biases, norms and narrow weights do not. `torch.optim.Muon` takes matrices alone.

    A step's root mean square is at most about the learning rate, as that of AdamW's first steps, so that one rate
    serves both; that is five times what `torch.optim.Muon` makes of a rate with `adjust_lr_fn="match_rms_adamw"`.

    Args:
        params: What is trained.
        lr (`float`): Learning rate.
        betas (`tuple[float, float]`, *optional*, defaults to `(0.95, 0.999)`):
            Decay of the first moment, which is the momentum of matrices, and of AdamW's second.
        eps (`float`, *optional*, defaults to 1e-8): AdamW's.
        weight_decay (`float`, *optional*, defaults to 1e-2): Decoupled from the gradient.
    """

    def __init__(self, params, lr: float, betas=(0.95, 0.999), eps: float = 1e-8, weight_decay: float = 1e-2):
        # Never `fused`: a gradient scaler leaves overflows to fused optimizers, and matrices would take them as steps.
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, closure=None):
        """One step; `closure` as torch's optimizers take it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gradients = {}
        try:
            for group in self.param_groups:
                for weight in group["params"]:
                    if weight.grad is not None and is_matrix(weight):
                        self._move(weight, group)
                        # Out of AdamW's sight, which passes over weights without a gradient.
                        gradients[weight], weight.grad = weight.grad, None
            super().step()
        finally:
            for weight, gradient in gradients.items():
                weight.grad = gradient
        return loss

    def _move(self, weight: torch.Tensor, group: dict) -> None:
        state, momentum, rate = self.state[weight], group["betas"][0], float(group["lr"])
        if "momentum" not in state:
            # The count is what torch's AdamW looks for in each state that it loads.
            state["step"], state["momentum"] = torch.zeros(()), torch.zeros_like(weight)
        state["step"] += 1
        mean = state["momentum"].lerp_(weight.grad, 1 - momentum)
        direction = orthogonalize(weight.grad.lerp(mean, momentum).flatten(1))  # Nesterov's look ahead
        weight.mul_(1 - rate * group["weight_decay"])
        weight.add_(direction.reshape(weight.shape), alpha=-rate * math.sqrt(max(direction.shape)))
