# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""The model behind the page: one device, which samples one video at a time, and the files of a finished video."""

import shlex
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import torch
from accelerate import PartialState
from PIL import Image

from model_card.space.figures import FPS
from pipeline_dreampose import DreamPosePipeline
from training.hub.loras import choose_loras
from training.hub.repositories import load_pipeline
from training.media import animation
from training.poses.pose_folder import write_poses


MAX_STEPS = 100
FOLDER = "dreampose"  # of a download


@dataclass(frozen=True)
class Settings:
    """How a video is sampled: `few` is whether by the model's few-step LoRA; the others are the pipeline's."""

    few: bool
    num_inference_steps: int
    image_guidance_scale: float
    pose_guidance_scale: float
    seed: int = 0

    @property
    def call_options(self) -> dict[str, float]:
        names = "num_inference_steps", "image_guidance_scale", "pose_guidance_scale"
        return {name: getattr(self, name) for name in names}


class Studio:
    """A model on one device.

    Args:
        model (`str`): Folder or Hub id of a pipeline. Its few-step LoRA is used if it has one.
        device (`str`, *optional*): Where it samples; by default on a GPU if there is one.
    """

    def __init__(self, model: str, device: str | None = None):
        self.model, self.device = model, device or PartialState().device
        self.loras, fast = choose_loras([], model)
        self.has_few = fast is not None
        self._pipelines, self._running = {}, None
        self._lock, self._loading = threading.Lock(), threading.Lock()

    def pipeline(self, few: bool) -> DreamPosePipeline:
        """Return the pipeline of few or full steps, loaded when it is first needed, as `animate.py` loads it."""
        if few and not self.has_few:
            raise ValueError("`few` must be off for this model, which has no few-step LoRA. Choose full steps.")
        with self._loading:
            if few not in self._pipelines:
                self._pipelines[few] = load_pipeline(self.model, self.device, lora=self.loras if few else [])
                self._pipelines[few].set_progress_bar_config(disable=True)
        return self._pipelines[few]

    def defaults(self, few: bool) -> Settings:
        """Return the settings that the model stores for few or full steps."""
        config = self.pipeline(few).config
        names = "num_inference_steps", "image_guidance_scale", "pose_guidance_scale"
        return Settings(few, *(config[f"default_{name}"] for name in names))

    def frames(
        self, photo: Image.Image, poses: Sequence[Image.Image] | torch.Tensor, settings: Settings, chunk_size: int = 8
    ) -> Iterator[Image.Image]:
        """Yield the frames of a video as they are made, by `chunk_size`. Another call ends this one after one chunk.

        The page's queue calls for the next video when this one is finished or was cancelled, so that nobody's video is
        ended by another visitor.

        Raises:
            ValueError: If the pipeline refuses the photo, the poses or a setting, before a model runs.
        """
        steps, seed = settings.num_inference_steps, settings.seed
        if not isinstance(steps, int) or not 1 <= steps <= MAX_STEPS:
            raise ValueError(f"`steps` must be a whole number from 1 to {MAX_STEPS}, got {steps!r}.")
        if not isinstance(seed, int) or not 0 <= seed < 2**63:
            raise ValueError(f"`seed` must be a whole number from 0 to 2^63 - 1, got {seed!r}.")
        with self._lock:
            if self._running is not None:
                self._running.close()  # a cancelled one, which still holds the scheduler
            pipe = self.pipeline(settings.few)
            generator = torch.Generator().manual_seed(seed)
            options = {"generator": generator, "chunk_size": chunk_size, **settings.call_options}
            running = self._running = pipe.stream(photo, poses, **options)
        while True:
            with self._lock:
                frame = next(running, None) if self._running is running else None
            if frame is None:
                return
            yield frame


def write_result(
    folder: Path,
    model: str,
    photo: Image.Image,
    poses: Sequence[Image.Image] | torch.Tensor,
    frames,
    settings: Settings,
) -> Path:
    """Write a finished video with its strip, its material and how to make it again; return the archive of them all.

    `frames` are the paths of `animation.frame_path` in `folder / "frames"`. The files lie in `folder / FOLDER`.
    """
    out = folder / FOLDER
    out.mkdir()
    photo.save(out / "photo.png")
    write_poses(poses, out / "poses", "poses")
    pictures = (animation.read_frame(folder / "frames", index) for index in range(len(poses)))
    scale = animation.default_scale(frames[0].height)
    paths = animation.output_paths(out / "video.mp4")
    animation.write_outputs(paths, photo, poses, pictures, folder / "frames", FPS, scale)
    (out / "again.py").write_text(python_lines(model, settings, poses))
    (out / "again.sh").write_text(shell_command(model, settings, poses) + "\n")
    archive = folder / f"{FOLDER}.zip"
    with ZipFile(archive, "w", ZIP_DEFLATED) as file:
        for path in sorted(out.rglob("*")):
            if path.is_file():
                file.write(path, path.relative_to(folder))
    return archive


def python_lines(model: str, settings: Settings, poses: Sequence[Image.Image] | torch.Tensor) -> str:
    """Return the Python lines that make exactly the frames of a video, beside the download's files."""
    few = [
        f'pipe.load_lora_weights({model!r}, subfolder="fast", adapter_name="fast")',
        'pipe.use_few_steps("fast")',
        "pipe.fuse_lora()",
        "pipe.unload_lora_weights()",
    ]
    if isinstance(poses, torch.Tensor):
        read = f'torch.from_numpy(np.load("{FOLDER}/poses/poses.npy"))'
    else:
        read = f'[load_image(str(path)) for path in sorted(Path("{FOLDER}/poses").glob("*.png"))]'
    options = "".join(f"    {name}={value!r},\n" for name, value in settings.call_options.items())
    lines = [
        *(["import numpy as np"] if isinstance(poses, torch.Tensor) else ["from pathlib import Path", ""]),
        "import torch",
        "from diffusers.utils import load_image",
        "",
        "from pipeline_dreampose import DreamPosePipeline",
        "",
        "",
        f"pipe = DreamPosePipeline.from_pretrained({model!r})",
        *(few if settings.few else []),
        f'photo = load_image("{FOLDER}/photo.png")',
        f"poses = {read}",
        "frames = pipe(",
        "    photo,",
        "    poses,",
        f"{options}    generator=torch.Generator().manual_seed({settings.seed}),",
        ").frames[0]",
    ]
    return "\n".join(lines) + "\n"


def shell_command(model: str, settings: Settings, poses: Sequence[Image.Image] | torch.Tensor) -> str:
    """Return the shell command that makes exactly the video, beside the download's files."""
    source = f"{FOLDER}/poses/poses.npy" if isinstance(poses, torch.Tensor) else f"{FOLDER}/poses"
    words = ["python", "animate.py", "--model", model, "--image", f"{FOLDER}/photo.png", "--poses", source]
    words += ["--output", "video.mp4", "--fps", str(FPS), "--seed", str(settings.seed)]
    words += ["--fast" if settings.few else "--no_fast"]
    for name, value in settings.call_options.items():
        words += [f"--{name}", str(value)]
    return shlex.join(words)
