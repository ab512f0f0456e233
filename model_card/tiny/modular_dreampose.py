# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0 (http://www.apache.org/licenses/LICENSE-2.0)
"""DreamPose as Modular Diffusers blocks, which call the steps of the pipeline in `pipeline_dreampose.py`.

Axes are those of that file: `B` videos, `P` photos of one subject, `F` frames, `T` image tokens, `D` token width.
"""

import importlib
import inspect
import itertools
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from diffusers import AutoencoderKL, ComponentsManager, DDIMScheduler, ModularPipeline, UNet2DConditionModel
from diffusers.configuration_utils import FrozenDict, register_to_config
from diffusers.guiders import BaseGuidance
from diffusers.modular_pipelines import (
    BlockState,
    ComponentSpec,
    ConfigSpec,
    InputParam,
    LoopSequentialPipelineBlocks,
    ModularPipelineBlocks,
    OutputParam,
    SequentialPipelineBlocks,
)
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionModel


if __package__:  # the copy in a model's folder: diffusers copies the file that is imported here, too
    if __package__ not in sys.modules:  # it has the repository's name, whose dots would be taken for those of packages
        sys.modules[__package__] = ModuleType(__package__)
        sys.modules[__package__].__path__ = [str(Path(__file__).parent)]
    from .pipeline_dreampose import DreamPosePipeline

    plug_in = sys.modules[DreamPosePipeline.__module__]
    if Path(plug_in.__file__).read_bytes() != DreamPosePipeline._source:  # another folder's, loaded before
        plug_in = importlib.reload(plug_in)
else:
    import pipeline_dreampose as plug_in

DreamPosePipeline, DreamPoseAdapter = plug_in.DreamPosePipeline, plug_in.DreamPoseAdapter
# The indexes of a folder name the adapter's class by this module, since its real name differs from folder to folder.
# diffusers looks such a name up among the modules that are imported already.
DreamPoseAdapter.__module__ = "dreampose_adapter"
sys.modules["dreampose_adapter"] = plug_in

_SPECS = {
    "vae": AutoencoderKL,
    "unet": UNet2DConditionModel,
    "image_encoder": CLIPVisionModel,
    "feature_extractor": CLIPImageProcessor,
    "adapter": DreamPoseAdapter,
    "scheduler": DDIMScheduler,
    "safety_checker": StableDiffusionSafetyChecker,
}
_CONFIGS = {
    name: parameter.default
    for name, parameter in inspect.signature(DreamPosePipeline.__init__).parameters.items()
    if name.startswith("default_") or name.endswith("_range")
}


def _input(name: str, kind: Any, text: str, default: Any = None, mellon: str | None = None) -> InputParam:
    """Describe an input of the user; `mellon` is its kind in the visual editor of that name.

    A number must have a default, since the editor's own is 0.
    """
    return InputParam(name, kind, default, description=text, metadata={"mellon": mellon})


_INPUTS = [
    _input("image", Image.Image | list, "A photo, or a list of B photos or of B lists of photos.", mellon="image"),
    _input("pose_maps", torch.Tensor | list, "DensePose IUV pictures, or U and V as `(F, 2, H, W)`; or B such."),
    _input("control_image", list, "`pose_maps` that `diffusers-cli run` reads from pictures.", mellon="image"),
    _input("control_video", list, "`pose_maps` that `diffusers-cli run` reads from a lossless video."),
    _input("photo_iuv", Image.Image, "IUV picture of the photo, to whose body poses are aligned.", mellon="image"),
    _input("height", int, "Height of the frames in pixels; by default the model's."),
    _input("width", int, "Width of the frames in pixels; by default the model's."),
    _input("batch_size", int, "Number of videos, B.", 1),
    _input("frame_indices", list[int], "Indices of the frames to render; all by default."),
    _input("num_inference_steps", int, "Denoising steps; by default the model's."),
    _input("generator", torch.Generator | list, "Fixes the result; a list has one per video."),
    _input("latents", torch.Tensor, "Unit noise to start from, instead of the noised photo."),
    _input("chunk_size", int, "Most frames at once: affects memory and speed only.", 8, mellon="number"),
    _input("step_generators", list, "For each video, the generator that each frame begins with."),
    _input("output_type", str, '`"pil"`, `"np"`, `"pt"` or `"latent"`.', "pil", mellon="textbox"),
]
_OUTPUTS = [
    OutputParam("photos", list, "B tensors `(P, 3, H, W)` in `[-1, 1]`: the photos, fitted in."),
    OutputParam("batch_size", int, "Number of videos, B."),
    OutputParam("fitted_pose_maps", torch.Tensor, "Pose maps at latent size, `(B, F, 2, h, w)`."),
    OutputParam("frame_indices", list[int], "Indices of the frames to render."),
    OutputParam("num_inference_steps", int, "Denoising steps."),
    OutputParam("timesteps", torch.Tensor, "Timesteps of the scheduler."),
    OutputParam("encoder_hidden_states", list, "B tensors `(P, T, D)`: what the UNet sees of the photos."),
    OutputParam("null_hidden_states", torch.Tensor, "What it sees without photo: `(1, T, D)`."),
    OutputParam("image_latents", list, "B tensors `(P, C, h, w)`: scaled latents of the photos."),
    OutputParam("latents", torch.Tensor, "B tensors `(1 or F, C, h, w)` to start from; denoised, `(B, F, C, h, w)`."),
    OutputParam("photo_indices", list, "For each video, the photo that each step sees."),
    OutputParam("step_generators", list, "For each video, the generator that each frame begins with."),
    OutputParam("videos", list, "B lists of F frames, or an array or tensor of them.", metadata={"mellon": "video"}),
    OutputParam("nsfw_content_detected", list, "B lists of F booleans; `None` without safety checker."),
]


def _inputs(*names: str) -> list[InputParam]:
    """Return inputs by name. A name with `!` is required, and is what another block makes, if one does."""
    inputs, made = ({param.name: param for param in params} for params in (_INPUTS, _OUTPUTS))
    chosen = []
    for name in names:
        source = (inputs | made)[name[:-1]] if name.endswith("!") else inputs[name]
        default = getattr(source, "default", None)
        options = {"description": source.description, "metadata": source.metadata, "required": name.endswith("!")}
        chosen.append(InputParam(source.name, source.type_hint, default, **options))
    return chosen


def _outputs(*names: str) -> list[OutputParam]:
    return [param for param in _OUTPUTS if param.name in names]


def _components(*names: str) -> list[ComponentSpec]:
    return [ComponentSpec(name, _SPECS[name]) for name in names]


def _configs(*names: str) -> list[ConfigSpec]:
    return [ConfigSpec(name, _CONFIGS[name]) for name in names]


def to_pipeline(modular: ModularPipeline) -> DreamPosePipeline:
    """Return a pipeline of the same components, not copies; blocks run its steps. Missing components are `None`."""
    components = {name: modular.components.get(name) for name in _SPECS}
    settings = {name: modular.config[name] for name in _CONFIGS if name in modular.config}
    return DreamPosePipeline(**components, **settings)


def to_modular(
    pipeline: DreamPosePipeline, components_manager: ComponentsManager | None = None, collection: str | None = None
) -> ModularPipeline:
    """Return a modular pipeline of [`DreamPoseBlocks`] with the same components, not copies, and the same settings."""
    modular = DreamPoseBlocks().init_pipeline(components_manager=components_manager, collection=collection)
    components = {name: part for name, part in pipeline.components.items() if part is not None}
    modular.update_components(**components, **{name: pipeline.config[name] for name in _CONFIGS})
    return modular


class DreamPoseGuidance(BaseGuidance):
    """Guidance by photo and pose (DreamPose, arXiv:2304.06025), of up to three predictions.

    They are those without photo and pose, with the photo, and with both. One with a weight of 0 is not computed.

    Args:
        image_guidance_scale (`float`, *optional*): How strongly the frames follow the photo; by default the model's.
        pose_guidance_scale (`float`, *optional*): How strongly they follow the poses; by default the model's.
        start, stop (`float`, *optional*, default to 0 and to the model's end of guidance):
            Guide the steps `i` of `n` with `start <= i / n < stop`.
        enabled (`bool`, *optional*, defaults to `True`): If `False`, both scales are 1: one prediction.
    """

    _input_predictions = ["pred_null", "pred_photo", "pred_photo_and_pose"]
    sees = [(False, False), (True, False), (True, True)]  # photo and pose, of each of these

    @register_to_config
    def __init__(
        self,
        image_guidance_scale: float | None = None,
        pose_guidance_scale: float | None = None,
        start: float = 0.0,
        stop: float | None = None,
        enabled: bool = True,
    ):
        super().__init__(start, 1.0 if stop is None else stop, enabled)
        self.image_guidance_scale, self.pose_guidance_scale = image_guidance_scale, pose_guidance_scale
        self.guidance_stop = stop
        self.defaults = {"image_guidance_scale": 1.0, "pose_guidance_scale": 1.0, "guidance_stop": 1.0}

    @property
    def settings(self) -> dict[str, float]:
        """Start, scales and stop by name; what was not given is a default, which the denoising block sets."""
        given = {name: getattr(self, name) for name in self.defaults}
        given = {name: value for name, value in given.items() if value is not None}
        return {"guidance_start": self._start} | self.defaults | given

    def branches(self) -> list[tuple[float, bool, bool]]:
        """Return the predictions of the current step: [`~DreamPosePipeline.guidance_branches`]."""
        start, *scales, stop = self.settings.values() if self._enabled else (0.0, 1.0, 1.0, 1.0)
        step, count = (self._step, self._num_inference_steps) if self._num_inference_steps else (0, 1)
        return plug_in.guidance_branches(*scales, step, count, start, stop)

    @property
    def num_conditions(self) -> int:
        return len(self.branches())

    @property
    def is_conditional(self) -> bool:
        return self.branches()[self._count_prepared - 1][1]

    def _rows(self) -> list[tuple[int, str]]:
        needed = [tuple(sees) for _, *sees in self.branches()]
        return [(row, name) for row, name in enumerate(self._input_predictions) if self.sees[row] in needed]

    def prepare_inputs(self, data: dict[str, tuple]) -> list[BlockState]:
        """Return the inputs of each prediction, of triples in the order of the three predictions."""
        return [self._prepare_batch(data, row, name) for row, name in self._rows()]

    def prepare_inputs_from_block_state(self, data: BlockState, input_fields: dict[str, tuple]) -> list[BlockState]:
        """Return the inputs of each prediction, whose names in `data` are triples in `input_fields`."""
        return [self._prepare_batch_from_block_state(input_fields, data, row, name) for row, name in self._rows()]

    def forward(self, **predictions: torch.Tensor) -> torch.Tensor:
        """Return the guided prediction."""
        seen = {self.sees[row]: predictions[name] for row, name in self._rows()}
        return plug_in.combine_predictions(seen, self.branches())


def _check_loaded(block: ModularPipelineBlocks, components: ModularPipeline) -> None:
    """Raise a `ValueError` unless the components of a block are there."""
    for name in (spec.name for spec in block.expected_components if spec.name != "safety_checker"):
        rule = f"`{name}` must be loaded: call `load_components()`, or give it to `update_components()`"
        plug_in._check(getattr(components, name, None) is not None, rule, None)


def _check_latents(latents: Any, num_axes: int) -> None:
    """Raise a `ValueError` unless latents are a tensor of finite numbers with so many axes."""
    is_tensor = isinstance(latents, torch.Tensor) and latents.ndim == num_axes and latents.numel() > 0
    rule = f"`latents` must be tensors of finite numbers with {num_axes} axes"
    plug_in._check(is_tensor and torch.isfinite(latents).all(), rule, plug_in._short(latents))


def _check_counts(num_videos: int, **values: Any) -> None:
    """Raise a `ValueError` unless each value has one entry per video."""
    for name, value in values.items():
        rule = f"`{name}` must have an entry for each of the {num_videos} videos"
        plug_in._check(len(value) == num_videos, rule, f"{len(value)}")


class _Step(ModularPipelineBlocks):
    """A block that runs steps of the pipeline."""

    model_name = "dreampose"
    description = property(lambda self: inspect.getdoc(self))

    @torch.no_grad()
    def __call__(self, components, state):
        values = self.get_block_state(state)
        _check_loaded(self, components)
        pipe = to_pipeline(components)
        self.run(pipe, pipe._execution_device, values)
        self.set_block_state(state, values)
        return components, state


def _frame_size(pipe: DreamPosePipeline, values: BlockState) -> tuple[int, int]:
    """Return height and width. Check them, and that the components fit each other, if all are there."""
    sizes = {name: getattr(values, name) for name in ("height", "width")}
    sizes = [pipe.config[f"default_{name}"] if size is None else size for name, size in sizes.items()]
    if all(isinstance(part, torch.nn.Module) for part in (pipe.vae, pipe.unet, pipe.image_encoder, pipe.adapter)):
        pipe.check_components()
        pipe.check_size(*sizes)
    return tuple(sizes)


class DreamPoseCheckStep(_Step):
    """Check what the last blocks take, before any model runs."""

    inputs = _inputs("chunk_size", "output_type")

    def run(self, pipe, device, values):
        plug_in.check_output_type(values.output_type)
        pipe.check_numbers(chunk_size=values.chunk_size)


class DreamPosePhotosStep(_Step):
    """Fit the photos into canvases of the size of the frames, whole and centred."""

    inputs = _inputs("image!", "height", "width")
    intermediate_outputs = _outputs("photos", "batch_size")
    expected_configs = _configs("default_height", "default_width")

    def run(self, pipe, device, values):
        values.photos = pipe.prepare_image(values.image, *_frame_size(pipe, values))
        values.batch_size = len(values.photos)


class DreamPosePosesStep(_Step):
    """Fit the poses in like the photo, and resize them to latent size; align them first if `photo_iuv` is given."""

    expected_components = _components("vae")  # for its scale
    expected_configs = _configs("default_height", "default_width")
    names = ("pose_maps", "control_image", "control_video")
    inputs = _inputs(*names, "photo_iuv", "height", "width", "batch_size", "frame_indices")
    intermediate_outputs = _outputs("fitted_pose_maps", "frame_indices")

    def run(self, pipe, device, values):
        given = [name for name in self.names if getattr(values, name) is not None]
        rule = "`pose_maps` must be given, under this name, as `control_image` or as `control_video`"
        plug_in._check(len(given) == 1, rule, f"{given or None}")
        poses = getattr(values, given[0])
        if values.photo_iuv is not None:
            poses = plug_in.align_pose_maps(poses, values.photo_iuv)
        maps = pipe.prepare_pose_maps(poses, *_frame_size(pipe, values), values.batch_size)
        values.frame_indices = pipe.check_video_inputs(*maps.shape[:2], None, values.frame_indices, None, None)
        values.fitted_pose_maps = maps


class DreamPoseSetTimestepsStep(_Step):
    """Set the timesteps of the scheduler, and check that it can denoise in so many steps."""

    expected_components = _components("scheduler")
    expected_configs = _configs("default_num_inference_steps")
    inputs = _inputs("num_inference_steps")
    intermediate_outputs = _outputs("timesteps", "num_inference_steps")

    def run(self, pipe, device, values):
        if values.num_inference_steps is None:
            values.num_inference_steps = pipe.config.default_num_inference_steps
        pipe.check_numbers(num_inference_steps=values.num_inference_steps)
        with pipe.hold_scheduler(values.num_inference_steps, device):
            values.timesteps = pipe.scheduler.timesteps


class DreamPoseEncodeStep(_Step):
    """Encode the photos, and the black picture that stands for no photo, into states and latents."""

    expected_components = _components("vae", "image_encoder", "feature_extractor", "adapter")
    expected_configs = _configs("image_range")
    inputs = _inputs("photos!")
    intermediate_outputs = _outputs("encoder_hidden_states", "null_hidden_states", "image_latents")

    def run(self, pipe, device, values):
        encoded = [pipe.encode_image(photos.to(device)) for photos in values.photos]
        values.encoder_hidden_states, values.image_latents = (list(parts) for parts in zip(*encoded))
        values.null_hidden_states = pipe.encode_null_image(*values.photos[0].shape[-2:], device)


class DreamPosePrepareLatentsStep(_Step):
    """Draw each video's random numbers: its start, the photo that each step sees, and the noise of the steps."""

    expected_components = _components("scheduler")
    inputs = _inputs("image_latents!", "fitted_pose_maps!", "timesteps!", "generator", "latents")
    intermediate_outputs = _outputs("latents", "photo_indices", "step_generators")

    def run(self, pipe, device, values):
        maps = values.fitted_pose_maps
        _check_counts(len(values.image_latents), fitted_pose_maps=maps)
        cell_shape, draws = tuple(values.image_latents[0].shape[1:]), (values.generator, values.latents)
        rule = f"`fitted_pose_maps` must have the size of `image_latents`, {cell_shape[1:]}, and values in [0, 1]"
        is_fit = tuple(maps.shape[-2:]) == cell_shape[1:] and maps.min() >= 0 and maps.max() <= 1
        plug_in._check(is_fit, rule, plug_in._short(maps))
        pipe.check_video_inputs(*maps.shape[:2], cell_shape, None, *reversed(draws))
        videos = [
            pipe.draw_video(b, image_latents, values.timesteps, *draws)
            for b, image_latents in enumerate(values.image_latents)
        ]
        values.latents, values.photo_indices, values.step_generators = (list(drawn) for drawn in zip(*videos))


class DreamPosePredictStep(ModularPipelineBlocks):
    """Predict the noise of a chunk of frames, `sample`, at the timestep `t`, as `noise_pred`."""

    model_name, description = _Step.model_name, _Step.description
    expected_components = _components("unet", "scheduler")
    inputs = _inputs("encoder_hidden_states!", "null_hidden_states!", "photo_indices!")

    def __call__(self, components, values, i, t):
        guider = components.guider
        guider.set_state(step=i, num_inference_steps=values.num_timesteps, timestep=t)
        batches = guider.prepare_inputs({"sees": tuple(guider.sees)})
        photo = values.photo_indices[values.video][i]
        inputs = values.windows, values.states[photo : photo + 1], values.null_states
        sees, unposed = [batch.sees for batch in batches], values.unposed if i == 0 else None
        predictions = values.pipe.predict_branches(values.sample, t, *inputs, sees, unposed)
        for batch in batches:
            batch.noise_pred = predictions[batch.sees]
        values.noise_pred = guider(batches)
        return components, values


class DreamPoseSchedulerStep(ModularPipelineBlocks):
    """Make one step of the scheduler from `sample` and `noise_pred`; the frames of a video share its noise."""

    model_name, description = _Step.model_name, _Step.description
    expected_components = _components("scheduler")
    intermediate_outputs = _outputs("latents")

    def __call__(self, components, values, i, t):
        step = components.scheduler.step(values.noise_pred, t, values.sample, **values.step_kwargs)
        values.sample = step.prev_sample
        return components, values


class DreamPoseDenoiseStep(LoopSequentialPipelineBlocks):
    """Denoise the videos in chunks of frames. For each timestep of each chunk, the blocks within run once.

    They share `sample` (the chunk's latents), `noise_pred`, `windows` (its pose windows), `step_kwargs` (of the
    scheduler's step), `video` (the index of the video), `states` and `null_states` (what the UNet sees of its photos
    and without photo), `num_timesteps`, `unposed` (predictions of the first step that all frames share) and
    `pipe` (a pipeline of the components).
    """

    model_name, description = _Step.model_name, _Step.description
    block_classes, block_names = [DreamPosePredictStep, DreamPoseSchedulerStep], ["predict", "step"]
    loop_expected_components = [
        *_components("unet", "scheduler"),
        ComponentSpec("guider", DreamPoseGuidance, config=FrozenDict({}), default_creation_method="from_config"),
    ]
    loop_expected_configs = _configs(
        *("default_image_guidance_scale", "default_pose_guidance_scale", "default_guidance_stop", "pose_range")
    )
    loop_inputs = _inputs(
        *("latents!", "fitted_pose_maps!", "timesteps!", "num_inference_steps!", "encoder_hidden_states!"),
        *("null_hidden_states!", "photo_indices!", "step_generators!", "frame_indices", "chunk_size"),
    )

    @torch.no_grad()
    def __call__(self, components, state):
        values = self.get_block_state(state)
        _check_loaded(self, components)
        pipe, guider = to_pipeline(components), components.guider
        values.pipe = pipe
        rule = "`guider` must guide by photo and pose, as DreamPoseGuidance does"
        plug_in._check(hasattr(guider, "branches"), rule, type(guider).__name__)
        guider.defaults = {name: pipe.config[f"default_{name}"] for name in guider.defaults}
        pipe.check_numbers(**guider.settings, chunk_size=values.chunk_size)
        pipe.check_numbers(num_inference_steps=values.num_inference_steps)
        maps, device, num_videos = values.fitted_pose_maps, pipe._execution_device, len(values.latents)
        names = ("fitted_pose_maps", "encoder_hidden_states", "photo_indices", "step_generators")
        _check_counts(num_videos, **{name: getattr(values, name) for name in names})
        for start in values.latents:
            _check_latents(start, 4)
        cell_shape = tuple(values.latents[0].shape[1:])
        indices = pipe.check_video_inputs(num_videos, maps.shape[1], cell_shape, values.frame_indices, None, None)
        chunks = plug_in.split_frames(indices, values.chunk_size)
        values.null_states = values.null_hidden_states.to(device, pipe.unet.dtype)
        with pipe.hold_scheduler(values.num_inference_steps, device) as values.num_timesteps:
            rule = "`timesteps` must be those that the scheduler sets for `num_inference_steps`"
            is_own = torch.equal(torch.as_tensor(values.timesteps).cpu(), pipe.scheduler.timesteps.cpu())
            plug_in._check(is_own, rule, plug_in._short(values.timesteps))
            with self.progress_bar(total=len(values.latents) * len(chunks) * values.num_timesteps) as progress_bar:
                videos = []
                for values.video, start in enumerate(values.latents):
                    values.states = values.encoder_hidden_states[values.video].to(device, pipe.unet.dtype)
                    values.unposed = pipe.shared_predictions(start)
                    inputs = start, maps[values.video], values.step_generators[values.video], device, progress_bar
                    parts = [self.denoise(components, values, chunk, *inputs)[:n].cpu() for chunk, n in chunks]
                    videos.append(torch.cat(parts))
        values.latents = torch.stack(videos)
        self.set_block_state(state, values)
        return components, state

    def denoise(self, components, values, chunk, start, maps, generator, device, progress_bar) -> torch.Tensor:
        """Return the denoised latents of the frames `chunk` of one video."""
        inputs = start, maps, chunk, generator, device
        values.sample, values.windows, values.step_kwargs = values.pipe.prepare_chunk(*inputs)
        for i, t in enumerate(values.pipe.set_timesteps(values.num_inference_steps, device)):
            components, values = self.loop_step(components, values, i=i, t=t)
            progress_bar.update()
        return values.sample


class DreamPoseDecodeStep(_Step):
    """Decode the latents into frames, in chunks; blacken those that the safety checker flags, if there is one."""

    expected_components = _components("vae", "feature_extractor", "safety_checker")
    expected_configs = _configs("image_range")
    inputs = _inputs("latents!", "chunk_size", "step_generators", "output_type")
    intermediate_outputs = _outputs("videos", "nsfw_content_detected")

    def run(self, pipe, device, values):
        DreamPoseCheckStep.run(self, pipe, device, values)
        _check_latents(values.latents, 5)
        num_videos, num_frames = values.latents.shape[:2]
        generators, chunks = values.step_generators, plug_in.split_frames(range(num_frames), values.chunk_size)

        def decoded():
            for b, (chunk, count) in itertools.product(range(num_videos), chunks):
                latents = values.latents[b, chunk[:count]].to(device)
                generator = None if generators is None else generators[b]
                yield b, chunk[0], *pipe.decode_chunk(latents, values.output_type, generator, device)

        values.videos, values.nsfw_content_detected = plug_in.collect_frames(decoded(), num_videos, num_frames)


def _structure(block: ModularPipelineBlocks) -> list[tuple]:
    """Return names and classes of the blocks within a block, in their order and to any depth."""
    return [(name, type(part), _structure(part)) for name, part in getattr(block, "sub_blocks", {}).items()]


class DreamPoseBlocks(SequentialPipelineBlocks):
    """Animate a photo of a person with a pose sequence, as proposed in DreamPose (arXiv:2304.06025).

    The frames are those of `DreamPosePipeline`, bit for bit. Scales and interval of guidance are those of the
    component `guider`, by default the model's:

        >>> from diffusers import ModularPipeline
        >>> pipe = ModularPipeline.from_pretrained("path/to/dreampose", trust_remote_code=True)
        >>> pipe.load_components()
        >>> pipe.update_components(guider=pipe.guider.new(image_guidance_scale=5.0))
        >>> frames = pipe(image=photo, pose_maps=poses, output="videos")[0]
    """

    model_name, description = _Step.model_name, _Step.description
    block_classes = [
        DreamPoseCheckStep,
        DreamPosePhotosStep,
        DreamPosePosesStep,
        DreamPoseSetTimestepsStep,
        DreamPoseEncodeStep,
        DreamPosePrepareLatentsStep,
        DreamPoseDenoiseStep,
        DreamPoseDecodeStep,
    ]
    block_names = ["check", "photos", "poses", "set_timesteps", "encode", "prepare_latents", "denoise", "decode"]
    # Kept in the class, since loading another model's copy of this file overwrites the file and the module's globals.
    _source = Path(__file__).read_bytes()

    def save_config(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs):
        """Write `modular_config.json` and the code; beside `model_index.json` also `modular_model_index.json`.

        `save_pretrained` calls this. `repo_id` names the Hub repository that the folder is for; without one, the index
        names the folder. It is written here, since the pipeline's own index needs the code of its adapter.
        """
        found, own = _structure(self), _structure(type(self)())
        rule = "`save_directory` is for the blocks of this file: other blocks must be saved from the file of their own"
        plug_in._check(found == own, rule, [name for name, *_ in found])
        repo_id = kwargs.get("repo_id")
        plug_in._check(repo_id or not push_to_hub, "`repo_id` must be given to push", repo_id)
        os.makedirs(save_directory, exist_ok=True)
        Path(save_directory, "modular_dreampose.py").write_bytes(self._source)
        Path(save_directory, "pipeline_dreampose.py").write_bytes(DreamPosePipeline._source)
        if Path(save_directory, DreamPosePipeline.config_name).exists():
            index = DreamPosePipeline.load_config(save_directory)
            index = {name: value for name, value in index.items() if value != [None, None]}
            name = str(repo_id or save_directory)
            modular = ModularPipeline(self, name, modular_config_dict=None, config_dict=index)
            # The class that transformers takes has another name with torchvision, but it loads by the pipeline's name.
            modular.config["feature_extractor"][2]["type_hint"] = index["feature_extractor"]
            modular.save_config(save_directory)
        super().save_config(str(save_directory), push_to_hub=push_to_hub, **kwargs)
