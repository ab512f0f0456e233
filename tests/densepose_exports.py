"""Fake DensePose exports in TorchScript, one per known interface. They return the picture itself as IUV."""

from typing import Dict, Tuple

import torch
from torch import nn


def charts(iuv: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the outputs of a DensePose head for an IUV image `(H, W, 3)` of V, U and I in 0..255."""
    v, u, parts = iuv[:, :, 0] / 255, iuv[:, :, 1] / 255, iuv[:, :, 2].long()
    fine = nn.functional.one_hot(parts, 25).permute(2, 0, 1)[None].float()
    coarse = torch.stack([parts == 0, parts > 0])[None].float()
    return coarse, fine, u * fine, v * fine


class DictExport(nn.Module):
    """Takes a BGR picture `(H, W, 3)` in 0..255 and returns one person in a box inside it."""

    def forward(self, image: torch.Tensor) -> Dict[str, torch.Tensor]:
        if image.shape[2] != 3:
            raise RuntimeError("three channels last")
        box = torch.tensor([[4.0, 2.0, 60.0, 78.0]])
        coarse, fine, u, v = charts(image.flip(2)[2:78, 4:60])
        return {
            "pred_boxes": box, "scores": torch.ones(1), "pred_densepose_coarse_segm": coarse,
            "pred_densepose_fine_segm": fine, "pred_densepose_u": u, "pred_densepose_v": v,
        }  # fmt: skip


class ChannelsFirstExport(nn.Module):
    """The same for a picture `(3, H, W)`."""

    def forward(self, image: torch.Tensor) -> Dict[str, torch.Tensor]:
        assert image.shape[0] == 3
        box = torch.tensor([[4.0, 2.0, 60.0, 78.0]])
        coarse, fine, u, v = charts(image.permute(1, 2, 0).flip(2)[2:78, 4:60])
        return {
            "pred_boxes": box, "scores": torch.ones(1), "pred_densepose_coarse_segm": coarse,
            "pred_densepose_fine_segm": fine, "pred_densepose_u": u, "pred_densepose_v": v,
        }  # fmt: skip


class TupleExport(nn.Module):
    """Takes an RGB picture `(3, H, W)`, uint8, and returns one person, or nobody if the picture is black."""

    def forward(
        self, image: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        assert image.dtype == torch.uint8 and image.shape[0] == 3
        coarse, fine, u, v = charts(image.permute(1, 2, 0).float()[2:78, 4:60])
        num = 1 if bool(image.any()) else 0
        return torch.tensor([[4.0, 2.0, 60.0, 78.0]])[:num], coarse[:num], fine[:num], u[:num], v[:num]
