# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Muon for matrices and convolutions and AdamW for the rest, as one optimizer with one learning rate."""

import math

import torch


MIN_MATRIX_SIZE = 32  # rows and columns; a narrower weight has too few directions to gain from an orthogonal step
# Coefficients of x -> a x + b x^3 + c x^5. Five iterations bring singular values in (0, 1] to around 1
# (https://kellerjordan.github.io/posts/muon, 2024).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NUM_ITERATIONS = 5


def is_matrix(weight: torch.Tensor) -> bool:
    """Return whether Muon updates a weight: it has two or more dimensions and is wide enough in both directions."""
    return weight.ndim >= 2 and min(len(weight), weight[0].numel()) >= MIN_MATRIX_SIZE


def orthogonalize(matrix: torch.Tensor) -> torch.Tensor:
    """Bring all singular values of a matrix to about 1 (U V^T of its SVD U S V^T), in float32, by Newton-Schulz.

    The results lie within about 0.7 and 1.2, except for values that are tiny compared with the matrix's norm.
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
    """Orthogonal steps for matrices (https://kellerjordan.github.io/posts/muon), AdamW steps for the rest.

    A matrix moves by the running mean of its gradients with all singular values made equal, so that rare directions
    are learned as fast as common ones. A convolution is a matrix with one row per output channel. Embeddings and first
    layers count as matrices too; biases, norms and narrow weights do not. `torch.optim.Muon` takes only matrices.

    The root mean square of a step is at most about the learning rate, as in AdamW's first steps, so one rate serves
    both. The step is five times that of `torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"` at the same rate.

    The arguments are AdamW's. `betas[0]` is the decay of AdamW's first moment and of the momentum of matrices.
    """

    def __init__(self, params, lr: float, betas=(0.95, 0.999), eps: float = 1e-8, weight_decay: float = 1e-2):
        # Never `fused`: a gradient scaler leaves overflows to fused optimizers, which would spoil the matrices.
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, closure=None):
        """Do one step. `closure` is the same as in torch's optimizers."""
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
                        # Hide the gradient from AdamW, which skips weights without one.
                        gradients[weight], weight.grad = weight.grad, None
            super().step()
        finally:
            for weight, gradient in gradients.items():
                weight.grad = gradient
        return loss

    def _move(self, weight: torch.Tensor, group: dict) -> None:
        state, momentum, rate = self.state[weight], group["betas"][0], float(group["lr"])
        if "momentum" not in state:
            # torch's AdamW expects a step count in every state that it loads.
            state["step"], state["momentum"] = torch.zeros(()), torch.zeros_like(weight)
        state["step"] += 1
        mean = state["momentum"].lerp_(weight.grad, 1 - momentum)
        direction = orthogonalize(weight.grad.lerp(mean, momentum).flatten(1))  # Nesterov momentum
        weight.mul_(1 - rate * group["weight_decay"])
        weight.add_(direction.reshape(weight.shape), alpha=-rate * math.sqrt(max(direction.shape)))
