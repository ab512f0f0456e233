# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""DensePose on pictures from a TorchScript file, without detectron2; supports both common kinds of export.

Loading a TorchScript file runs the code in it: use only files from a source that you trust.
"""

import importlib
import os
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from PIL import Image

from training.engine.devices import check_device
from training.engine.hub_access import check_reachable
from training.engine.messages import shorten
from training.poses.detections import Detection, detections_from_torchscript


def find_densepose(path: str | os.PathLike) -> Path:
    """Return the path of a TorchScript file; `OWNER/REPOSITORY/FILE` is downloaded from the Hub into its cache.

    Raises:
        ValueError: If the file exists neither here nor on the Hub.
    """
    if os.path.isfile(path):  # a `Path` would raise an error for a name that is too long
        return Path(path)
    rule = "`densepose` must be a TorchScript file, here or as OWNER/REPOSITORY/FILE on the Hub"
    owner, _, rest = str(path).partition("/")
    repository, _, name = rest.partition("/")
    if not name or os.path.exists(owner or "/"):
        reason = "is not a file" if os.path.exists(path) else "does not exist"
        raise ValueError(f"{rule}, got {shorten(str(path))}, which {reason}.")
    check_reachable("densepose", f"{owner}/{repository}", rule.partition(" must ")[2])
    try:
        return Path(hf_hub_download(f"{owner}/{repository}", name))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise ValueError(f"{rule}, got {str(path)!r}: {str(error).strip().splitlines()[0]}") from error


class PictureRefused(ValueError):
    """A picture on which DensePose fails, although it works on another one."""


class DensePoseEstimator:
    """DensePose from a TorchScript file.

    The type that `forward` returns tells the two kinds of export apart. One that returns a dict takes a BGR picture,
    0..255, as HWC or CHW (tried on the first picture). One that returns a tuple takes CHW RGB uint8. Neither takes a
    batch, since the outputs do not say which picture shows a person. `path` is that of [`find_densepose`].

    Raises:
        ValueError: If the file or device does not exist, or the file is not a TorchScript module that returns a dict
            or a tuple.
    """

    def __init__(self, path: str | os.PathLike, device: str | torch.device = "cpu"):
        path, self.device = find_densepose(path), check_device(device)
        try:
            importlib.import_module("torchvision")  # registers the operators that exports use
        except (ImportError, OSError, RuntimeError):  # not installed, or a build for another torch
            pass  # an export without these operators works
        try:
            # A CPU cannot run exports that are stored in half precision.
            self.model = torch.jit.load(str(path), map_location=self.device).eval().float()
        except RuntimeError as error:
            hint = f" `make densepose` installs the torchvision that fits torch {torch.__version__}."
            hint = hint if "torchvision" in str(error) else ""
            reason = " ".join(str(error).split())[:300]
            raise ValueError(
                f"`densepose` must be a TorchScript DensePose; {str(path)!r} is not: {reason}{hint}"
            ) from error
        returned = str(self.model.forward.schema.returns[0].type)
        self.takes_bgr = returned.startswith("Dict")
        if not self.takes_bgr and not returned.startswith(("Tuple", "(")):
            raise ValueError(f"`densepose` must return a dict or a tuple as exports do, but returns {returned}.")
        self.layouts = ["chw", "hwc"] if self.takes_bgr else ["chw"]
        self._accepted: Image.Image | None = None

    def __call__(self, image: Image.Image) -> list[Detection]:
        """Detect the people in one picture.

        Raises:
            PictureRefused: If the model fails on this picture alone.
            ValueError: If it also fails on the first picture that it accepted, or on a black one if there is none.
        """
        try:
            detections = self._detect(image)
        except ValueError as error:
            try:
                self._detect(self._accepted or Image.new("RGB", (512, 640)))
            except ValueError:
                raise error from None
            raise PictureRefused(str(error)) from error
        self._accepted = self._accepted or image
        return detections

    def _detect(self, image: Image.Image) -> list[Detection]:
        return detections_from_torchscript(self._run(np.asarray(image.convert("RGB"))))

    @torch.no_grad()
    def _run(self, pixels: np.ndarray) -> dict | tuple:
        if self.takes_bgr:
            pixels = pixels[..., ::-1]
        tensor = torch.from_numpy(pixels.copy()).to(self.device)
        tensor = tensor.float() if self.takes_bgr else tensor
        errors = []
        for layout in self.layouts:
            try:
                output = self.model(tensor.permute(2, 0, 1).contiguous() if layout == "chw" else tensor)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, torch.jit.Error) as error:
                errors.append(f"{layout}: {str(error).strip().splitlines()[-1]}")
                continue
            self.layouts = [layout]
            return output
        raise ValueError(
            f"`image` must be a picture that the model accepts, but it failed on {pixels.shape} ({'; '.join(errors)})."
        )
