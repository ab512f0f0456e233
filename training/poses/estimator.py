# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""A TorchScript DensePose on pictures: no detectron2, both of the exports that are found in the wild.

Whoever loads a TorchScript file runs its code: take one from a source that you trust.
"""

import importlib
import importlib.util
import os
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from PIL import Image

from training.engine.devices import check_device
from training.poses.detections import Detection, detections_from_torchscript


def find_densepose(path: str | os.PathLike) -> Path:
    """A TorchScript file, fetched first if it lies on the Hub.

    Args:
        path (`str` or `os.PathLike`): The file, or `OWNER/REPOSITORY/FILE` on the Hub.
    Returns:
        `Path`: The file, in the Hub's cache if it came from there.
    Raises:
        ValueError: If it is neither here nor there.
    """
    if Path(path).is_file():
        return Path(path)
    rule = "`densepose` must be a TorchScript file, here or as OWNER/REPOSITORY/FILE on the Hub"
    owner, _, rest = str(path).partition("/")
    repository, _, name = rest.partition("/")
    if not name or Path(owner or "/").exists():
        raise ValueError(f"{rule}, got {str(path)!r}, which does not exist.")
    try:
        return Path(hf_hub_download(f"{owner}/{repository}", name))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise ValueError(f"{rule}, got {str(path)!r}: {str(error).strip().splitlines()[0]}") from error


class DensePoseEstimator:
    """DensePose from a TorchScript file.

    Two interfaces are recognised by the type that `forward` returns: a dict for an export that takes one BGR picture,
    0..255, as HWC or CHW (found out on the first picture), and a tuple for one that takes CHW RGB uint8. Neither takes
    a batch: the outputs would not tell whose picture a person is in.

    Args:
        path (`str` or `os.PathLike`): The file, or `OWNER/REPOSITORY/FILE` on the Hub.
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`): Where it runs.
    Raises:
        ValueError: If there is no such file or device, it is no TorchScript module, or it returns neither a dict nor a
            tuple.
    """

    def __init__(self, path: str | os.PathLike, device: str | torch.device = "cpu"):
        path, self.device = find_densepose(path), check_device(device)
        if importlib.util.find_spec("torchvision"):
            importlib.import_module("torchvision")  # exports use its operators, which importing it registers
        try:
            # Some exports are stored in half precision, in which a CPU cannot run them.
            self.model = torch.jit.load(str(path), map_location=self.device).eval().float()
        except RuntimeError as error:
            hint = " Install torchvision, whose operators it uses." if "torchvision" in str(error) else ""
            reason = " ".join(str(error).split())[:300]
            raise ValueError(
                f"`densepose` must be a TorchScript DensePose; {str(path)!r} is not: {reason}{hint}"
            ) from error
        returned = str(self.model.forward.schema.returns[0].type)
        self.takes_bgr = returned.startswith("Dict")
        if not self.takes_bgr and not returned.startswith(("Tuple", "(")):
            raise ValueError(f"`densepose` must return a dict or a tuple as exports do, but returns {returned}.")
        self.layouts = ["chw", "hwc"] if self.takes_bgr else ["chw"]

    def __call__(self, image: Image.Image) -> list[Detection]:
        """The people in one picture, perhaps none."""
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
            f"`image` must be what the model takes, but it failed on {pixels.shape} ({'; '.join(errors)})."
        )
