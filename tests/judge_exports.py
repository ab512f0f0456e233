"""Fake TorchScript networks for FID and FVD."""

import torch


class Inception(torch.nn.Module):
    """The interface of StyleGAN's Inception; the features are the means of the three channels."""

    def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        assert return_features and images.dtype == torch.uint8
        return images.float().mean(dim=[2, 3])


class I3D(torch.nn.Module):
    """The interface of StyleGAN-V's I3D; the features are the means of each frame's first channel."""

    def forward(
        self, videos: torch.Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False
    ) -> torch.Tensor:
        assert not rescale and not resize and return_features
        assert videos.shape[1:] == torch.Size([3, 16, 224, 224])
        return videos[:, 0].mean(dim=[2, 3])


def save_inception(path):
    torch.jit.script(Inception()).save(str(path))


def save_i3d(path):
    torch.jit.script(I3D()).save(str(path))
