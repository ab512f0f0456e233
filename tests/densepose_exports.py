"""Modules with the interfaces of DensePose's TorchScript exports: they "find" the IUV painted into a picture."""

from typing import Dict, Tuple

import torch
from torch import nn


def charts(iuv: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a head that is sure of itself says of an IUV picture [H,W,3], as V, U, I in 0..255."""
    v, u, parts = iuv[:, :, 0] / 255, iuv[:, :, 1] / 255, iuv[:, :, 2].long()
    fine = nn.functional.one_hot(parts, 25).permute(2, 0, 1)[None].float()
    coarse = torch.stack([parts == 0, parts > 0])[None].float()
    return coarse, fine, u * fine, v * fine


class DictExport(nn.Module):
    """One BGR picture in 0..255, HWC; one person, in a box inside the picture."""

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
    """The same, CHW."""

    def forward(self, image: torch.Tensor) -> Dict[str, torch.Tensor]:
        assert image.shape[0] == 3
        box = torch.tensor([[4.0, 2.0, 60.0, 78.0]])
        coarse, fine, u, v = charts(image.permute(1, 2, 0).flip(2)[2:78, 4:60])
        return {
            "pred_boxes": box, "scores": torch.ones(1), "pred_densepose_coarse_segm": coarse,
            "pred_densepose_fine_segm": fine, "pred_densepose_u": u, "pred_densepose_v": v,
        }  # fmt: skip


class TupleExport(nn.Module):
    """One RGB picture, uint8, CHW. It misses the person where the picture is black."""

    def forward(
        self, image: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        assert image.dtype == torch.uint8 and image.shape[0] == 3
        coarse, fine, u, v = charts(image.permute(1, 2, 0).float()[2:78, 4:60])
        num = 1 if bool(image.any()) else 0
        return torch.tensor([[4.0, 2.0, 60.0, 78.0]])[:num], coarse[:num], fine[:num], u[:num], v[:num]
