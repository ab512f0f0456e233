# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""The model behind the page: one device, which samples one video at a time, and the files of a finished video."""

import shlex
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import torch
from accelerate import PartialState
from PIL import Image

from model_card.space.subjects import fetched_subject
from model_card.space.uploads import Material
from pipeline_dreampose import DreamPosePipeline
from training.hub.loras import choose_loras
from training.hub.repositories import load_pipeline
from training.media import animation
from training.poses.pose_folder import write_poses


MAX_STEPS = 100
FOLDER = "dreampose"  # of a download


@dataclass(frozen=True)
class Settings:
    """How a video is sampled.

    `few` is whether by the model's few-step LoRA, and `subject` the Hub id of a subject's LoRA, if any. The others are
    the pipeline's.
    """

    few: bool
    num_inference_steps: int
    image_guidance_scale: float
    pose_guidance_scale: float
    seed: int = 0
    subject: str = ""

    @property
    def call_options(self) -> dict[str, float]:
        names = "num_inference_steps", "image_guidance_scale", "pose_guidance_scale"
        return {name: getattr(self, name) for name in names}


class Studio:
    """A model on one device.

    Args:
        model (`str`): Folder or Hub id of a pipeline. Its few-step LoRA is used if it has one.
        device (`str`, *optional*): Where it samples; by default on a GPU if there is one.
        on_gpu (`Callable`, *optional*): Decorates the function that needs the GPU, as ZeroGPU wants it.
    """

    def __init__(
        self, model: str, device: str | None = None, on_gpu: Callable[[Callable], Callable] = lambda function: function
    ):
        self.model, self.device = model, device or PartialState().device
        self.loras, fast = choose_loras([], model)
        self.has_few = fast is not None
        self._pipelines, self._running = {}, None
        self._lock, self._loading = threading.Lock(), threading.Lock()
        self._sample = on_gpu(self._sample)

    def pipeline(self, few: bool, subject: str = "") -> DreamPosePipeline:
        """Return the pipeline of few or full steps, loaded when it is first needed, as `animate.py` loads it.

        Of all subjects, only the one that was asked for last stays in memory.
        """
        if few and not self.has_few:
            raise ValueError("`few` must be off for this model, which has no few-step LoRA. Choose full steps.")
        with self._loading:
            if (few, subject) not in self._pipelines:
                if subject:
                    self._pipelines = {key: pipe for key, pipe in self._pipelines.items() if not key[1]}
                self._pipelines[few, subject] = self._load(few, subject)
            return self._pipelines[few, subject]

    def _load(self, few: bool, subject: str) -> DreamPosePipeline:
        fast = self.loras if few else []
        if subject:
            with fetched_subject(subject) as path:
                pipe = load_pipeline(self.model, self.device, lora=[path, *fast])
        else:
            pipe = load_pipeline(self.model, self.device, lora=fast)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def defaults(self, few: bool) -> Settings:
        """Return the settings that the model stores for few or full steps."""
        config = self.pipeline(few).config
        names = "num_inference_steps", "image_guidance_scale", "pose_guidance_scale"
        return Settings(few, *(config[f"default_{name}"] for name in names))

    def frames(
        self, photo: Image.Image, poses: list[Image.Image] | torch.Tensor, settings: Settings, chunk_size: int = 8
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
            running = self._running = self._sample(photo, poses, settings, chunk_size)
        while True:
            with self._lock:
                frame = next(running, None) if self._running is running else None
            if frame is None:
                return
            yield frame

    def _sample(self, photo, poses, settings: Settings, chunk_size: int) -> Iterator[Image.Image]:
        generator = torch.Generator().manual_seed(settings.seed)
        options = {"generator": generator, "chunk_size": chunk_size, **settings.call_options}
        yield from self.pipeline(settings.few, settings.subject).stream(photo, poses, **options)


def write_result(
    folder: Path, studio: Studio, material: Material, frames: list[Image.Image], settings: Settings
) -> Path:
    """Write a finished video with its strip, its material and how to make it again; return the archive of them all.

    `frames` are also the files of `animation.frame_path` in `folder / "frames"`. The files lie in `folder / FOLDER`.
    """
    out = folder / FOLDER
    out.mkdir()
    photo, poses = material.photo, material.poses
    photo.save(out / "photo.png")
    write_poses(poses, out / "poses", "poses")
    scale = animation.default_scale(frames[0].height)
    paths = animation.output_paths(out / "video.mp4")
    animation.write_outputs(paths, photo, poses, frames, folder / "frames", material.fps, scale)
    (out / "again.py").write_text(python_lines(studio, material, settings))
    (out / "again.sh").write_text(shell_command(studio, material, settings) + "\n")
    archive = folder / f"{FOLDER}.zip"
    with ZipFile(archive, "w", ZIP_DEFLATED) as file:
        for path in sorted(out.rglob("*")):
            if path.is_file():
                file.write(path, path.relative_to(folder))
    return archive


def python_lines(studio: Studio, material: Material, settings: Settings) -> str:
    """Return the Python lines that make exactly the frames of a video, beside the download's files."""
    names, loading, device = [], [], str(studio.device)
    dtype = ", dtype=torch.float16" if device.startswith("cuda") else ""  # that of `load_pipeline`
    if settings.subject:
        names.append("subject")
        loading.append(f'pipe.load_lora_weights({settings.subject!r}, adapter_name="subject")')
    if settings.few:
        names.append("fast")
        loading.append(f'pipe.load_lora_weights({studio.model!r}, subfolder="fast", adapter_name="fast")')
        loading.append('pipe.use_few_steps("fast")')
    if names:
        loading += [f"pipe.set_adapters({names})".replace("'", '"'), "pipe.fuse_lora()", "pipe.unload_lora_weights()"]
    is_map = isinstance(material.poses, torch.Tensor)
    if is_map:
        read = f'torch.from_numpy(np.load("{FOLDER}/poses/poses.npy"))'
    else:
        read = f'[load_image(str(path)) for path in sorted(Path("{FOLDER}/poses").glob("*.png"))]'
    options = "".join(f"    {name}={value!r},\n" for name, value in settings.call_options.items())
    lines = [
        *(["import numpy as np"] if is_map else ["from pathlib import Path", ""]),
        "import torch",
        "from diffusers.utils import load_image",
        "",
        "from pipeline_dreampose import DreamPosePipeline",
        "",
        "",
        f"pipe = DreamPosePipeline.from_pretrained({studio.model!r}{dtype}).to({device!r})",
        *loading,
        f'photo = load_image("{FOLDER}/photo.png")',
        f"poses = {read}",
        "frames = pipe(",
        "    photo,",
        "    poses,",
        f"{options}    generator=torch.Generator().manual_seed({settings.seed}),",
        ").frames[0]",
    ]
    return "\n".join(lines) + "\n"


def shell_command(studio: Studio, material: Material, settings: Settings) -> str:
    """Return the shell command that makes exactly the video, beside the download's files."""
    source = f"{FOLDER}/poses" + ("/poses.npy" if isinstance(material.poses, torch.Tensor) else "")
    words = ["python", "animate.py", "--model", studio.model, "--image", f"{FOLDER}/photo.png", "--poses", source]
    words += ["--output", "video.mp4", "--fps", str(material.fps)]
    words += ["--device", str(studio.device), "--seed", str(settings.seed)]
    words += ["--lora", settings.subject] if settings.subject else []
    words += ["--fast" if settings.few else "--no_fast"]
    for name, value in settings.call_options.items():
        words += [f"--{name}", str(value)]
    return shlex.join(words)
