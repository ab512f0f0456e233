# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Metrics computed by trained networks. A metric whose package or weights are missing is left out, with the reason.

- `identity_distance` uses the model's own CLIP image encoder, or another one.
- `lpips` is torchmetrics' AlexNet variant (Zhang et al., 2018). It needs torchvision and its weights.
- `fid` needs a TorchScript Inception that takes uint8 pictures `[B, 3, H, W]` and `return_features=True`, such as
  StyleGAN's `inception-2015-12-05.pt`.
- `fvd_16f` needs a TorchScript I3D that takes videos `[B, 3, 16, 224, 224]` in `[-1, 1]` and `rescale=False`,
  `resize=False`, `return_features=True`, such as StyleGAN-V's `i3d_torchscript.pt`. The whole picture is squeezed to
  that square.

Loading a TorchScript file runs its code: use only files from a source that you trust.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import CLIPImageProcessor, CLIPVisionModel

from pipeline_dreampose import DreamPosePipeline, clip_pixel_values
from training.data.procedural_fashion import ProceduralFashion
from training.data.samples import PROCEDURAL
from training.engine.hub_access import check_reachable
from training.metrics.frames import identity_distance


VIDEO_LENGTH = 16  # frames of FVD-16f


def check_judges(inception: Path | None, i3d: Path | None, num_consecutive: int, dataset: str | None = None) -> None:
    """Raise a `ValueError` if a file does not exist, or if `i3d` comes without 16 consecutive frames per clip.

    The clips of a drawn `dataset` may be too short for them. See [`LearnedMetrics`].
    """
    if i3d is not None and num_consecutive != VIDEO_LENGTH:
        raise ValueError(f"`i3d` must come with `num_consecutive` {VIDEO_LENGTH}, got {num_consecutive}.")
    family, _, config_name = (dataset or "").partition("/")
    if i3d is not None and family == PROCEDURAL and not Path(dataset).exists():
        config = ProceduralFashion.builder_configs.get(config_name or ProceduralFashion.DEFAULT_CONFIG_NAME)
        if config is not None and config.num_frames <= VIDEO_LENGTH:
            raise ValueError(
                f"`i3d` must come with clips of at least {VIDEO_LENGTH + 1} frames, the photo and {VIDEO_LENGTH} more,"
                f" got `dataset` {dataset!r}, whose clips have {config.num_frames}."
            )
    for argument, path in (("inception", inception), ("i3d", i3d)):
        if path is not None and not Path(path).is_file():
            raise ValueError(f"`{argument}` must be a TorchScript file, got {str(path)!r}, which does not exist.")


class LearnedMetrics:
    """The learned metrics that are available.

    The image encoder of `pipe` measures identity, unless `identity_encoder` names the folder or Hub id of another one
    with its image processor. `num_consecutive` counts the consecutive frames per clip, of which FVD-16f needs 16.

    Attributes:
        notes (`dict[str, str]`): For each metric the network that computes it, or why it is left out.
    Raises:
        ValueError: If a given file or model cannot be loaded, or `i3d` is given without 16 frames.
    """

    def __init__(
        self,
        pipe: DreamPosePipeline,
        identity_encoder: str | None = None,
        inception: Path | None = None,
        i3d: Path | None = None,
        num_consecutive: int = 0,
    ):
        check_judges(inception, i3d, num_consecutive)
        self.device, self.notes = pipe.device, {"identity_distance": "by the model's own image encoder"}
        self.image_encoder, self.feature_extractor = pipe.image_encoder, pipe.feature_extractor
        if identity_encoder is not None:
            self._load_identity_encoder(identity_encoder)
        self.lpips = self._load_lpips()
        self.inception = self._load_torchscript("inception", inception, "fid")
        self.i3d = self._load_torchscript("i3d", i3d, f"fvd_{VIDEO_LENGTH}f")

    def _load_identity_encoder(self, name: str) -> None:
        check_reachable("identity_encoder", name, "be a CLIP image encoder's folder or Hub id")
        try:
            self.image_encoder = CLIPVisionModel.from_pretrained(name).to(self.device).eval()
            self.feature_extractor = CLIPImageProcessor.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"`identity_encoder` must be a CLIP image encoder's folder or Hub id, got {name!r}: {error}"
            ) from error
        self.notes["identity_distance"] = f"by {name}"

    def _load_lpips(self) -> torch.nn.Module | None:
        try:
            from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

            with _weights_only():
                judge = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True).to(self.device)
        except (ImportError, OSError, RuntimeError) as error:  # no torchvision, no network, a broken file
            self.notes["lpips"] = f"left out: {' '.join(str(error).split())}"
            return None
        self.notes["lpips"] = "by AlexNet"
        return judge

    def _load_torchscript(self, argument: str, path: Path | None, metric: str) -> torch.jit.ScriptModule | None:
        if path is None:
            self.notes[metric] = f"left out: needs the weights that `--{argument}` names"
            return None
        try:
            module = torch.jit.load(str(path), map_location=self.device).eval()
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"`{argument}` must be a TorchScript file, got {str(path)!r}: {reason}") from error
        self.notes[metric] = f"by {Path(path).name}"
        return module

    @torch.no_grad()
    def measure(self, prediction: torch.Tensor, truth: torch.Tensor) -> dict[str, float]:
        """Compare pictures with the true ones, both of shape `[B, 3, H, W]` and range `[0, 1]`.

        Return the means over the pictures of [`training.metrics.frames.identity_distance`] and, if available, of
        `lpips`: range `[0, inf)`, lower is better, equal pictures give 0.
        """
        features = [self._identity_features(images) for images in (prediction, truth)]
        values = {"identity_distance": identity_distance(*features).mean().item()}
        if self.lpips is not None:
            self.lpips.reset()
            self.lpips.update(prediction.to(self.device), truth.to(self.device))
            values["lpips"] = self.lpips.compute().item()
        return values

    def _identity_features(self, images: torch.Tensor) -> torch.Tensor:
        """Compute CLIP's pooled features, shape `[B, D]`, of whole pictures squeezed to its square."""
        size = self.image_encoder.config.image_size
        pixels = clip_pixel_values((images * 2 - 1).to(self.device), size, self.feature_extractor)
        return self.image_encoder(pixels.to(self.image_encoder.dtype)).pooler_output.float()

    @torch.no_grad()
    def picture_features(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Compute the features for FID of pictures `[B, 3, H, W]` in `[0, 1]`: `{"fid": [B, D]}` on the CPU.

        The result is empty without Inception.
        """
        if self.inception is None:
            return {}
        levels = images.mul(255).round().byte().to(self.device)
        return {"fid": self.inception(levels, return_features=True).float().cpu()}

    @torch.no_grad()
    def video_features(self, video: torch.Tensor) -> dict[str, torch.Tensor]:
        """Compute the features for FVD of 16 frames `[16, 3, H, W]` in `[0, 1]`: `{"fvd_16f": [1, D]}` on the CPU.

        The result is empty without I3D.
        """
        if self.i3d is None:
            return {}
        frames = torch.nn.functional.interpolate(video, (224, 224), mode="bilinear", antialias=True).clamp(0, 1)
        videos = (frames * 2 - 1).transpose(0, 1)[None].to(self.device)
        features = self.i3d(videos, rescale=False, resize=False, return_features=True)
        return {f"fvd_{VIDEO_LENGTH}f": features.float().cpu()}


@contextmanager
def _weights_only() -> Iterator[None]:
    """Make `torch.load` in any library unpickle nothing but weights."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
