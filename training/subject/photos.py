# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""A subject's photos: reading them, making missing IUV pictures with DensePose, and the training pairs of stage 2.

Each photo is a video of one frame, so its pose window repeats its own pose.
"""

import os
from dataclasses import replace
from pathlib import Path

import datasets
import torch
from accelerate import Accelerator
from PIL import Image

from pipeline_dreampose import DreamPosePipeline, iuv_to_pose_map, to_rgb
from training.data.frame_pairs import FramePairs, LatentShape, decode_safely, sample_generator
from training.data.frame_stream import FEATURES
from training.data.pair_settings import PairSettings
from training.data.samples import open_samples
from training.engine.errors import naming_data_set
from training.media.pictures import UnreadablePictures, list_files, open_picture, upright
from training.media.settings_file import partial_path
from training.poses.clip_settings import PERSON_RULES
from training.poses.detections import follow_person, paste
from training.poses.estimator import DensePoseEstimator


PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
IUV_ENDING = "_iuv"
TEXTURED_SHARE = 0.75  # of the subject's samples, if there are textured clips; the other ones show its photos
# The positions of a run's samples are smaller. From here on: the draws that choose between the subject and the prior.
_PRIOR_POSITIONS = 2**62


def find_photos(instance_data_dir: str | os.PathLike) -> list[Path]:
    """List the photos in a folder, `<stem>.jpg`, `.png` and so on, sorted by name, without opening them.

    Raises:
        ValueError: If there is no photo, two photos share a stem, or an IUV picture has no photo; names the file.
    """
    folder = Path(instance_data_dir)
    if not os.fspath(instance_data_dir) or not folder.is_dir():  # `Path("")` is the current folder
        raise ValueError(f"`instance_data_dir` must be a folder of photos, got {os.fspath(instance_data_dir)!r}.")
    pictures = sorted(list_files(folder, PHOTO_SUFFIXES))
    photos = [path for path in pictures if not path.stem.endswith(IUV_ENDING)]
    if not photos:
        raise ValueError(f"`instance_data_dir` must hold a photo ({', '.join(PHOTO_SUFFIXES)}), got {str(folder)!r}.")
    by_stem = {path.stem: path for path in photos}
    for path in photos:
        if by_stem[path.stem] != path:
            names = f"{path.name} and {by_stem[path.stem].name}"
            raise ValueError(f"`instance_data_dir` must hold one photo for each IUV picture, got {names} in {folder}.")
    for path in pictures:
        if path.stem.endswith(IUV_ENDING) and path.stem.removesuffix(IUV_ENDING) not in by_stem:
            raise ValueError(f"`instance_data_dir` must hold the photo of each IUV picture, got none for {path}.")
    return photos


def iuv_path_of(photo: Path) -> Path:
    """Return the path of a photo's IUV picture."""
    return photo.with_name(f"{photo.stem}{IUV_ENDING}.png")


def open_photo(path: Path) -> Image.Image:
    """Read a picture and rotate it by its EXIF orientation."""
    try:
        with open_picture(path) as image:
            return upright(image)
    except UnreadablePictures as error:
        raise ValueError(f"`instance_data_dir` must hold readable pictures, got {path}: {error}.") from error


def _read_row(path: Path) -> dict:
    iuv_path = iuv_path_of(path)
    if not iuv_path.is_file():
        raise ValueError(
            f"`instance_data_dir` must hold the IUV picture of each photo, got no {iuv_path}: `--densepose` makes it."
        )
    photo, iuv = open_photo(path), open_photo(iuv_path)
    if photo.size != iuv.size:
        raise ValueError(
            f"`instance_data_dir` must hold IUV pictures of their photos' sizes, got {iuv.size} of {iuv_path} for"
            f" {photo.size}."
        )
    try:
        iuv_to_pose_map(iuv)
    except ValueError as error:
        raise ValueError(f"`instance_data_dir` must hold IUV pictures, got {iuv_path}: {error}") from error
    files = {"image": path, "iuv": iuv_path}
    contents = {name: {"bytes": file.read_bytes(), "path": None} for name, file in files.items()}
    return {"video_id": path.stem, "frame_index": 0, **contents}


def load_photos(instance_data_dir: str | os.PathLike) -> datasets.Dataset:
    """Load a folder of photos and their IUV pictures `<stem>_iuv.png`, one row per photo, sorted by name.

    Raises:
        ValueError: As in [`find_photos`], or if a photo or its IUV picture is missing, unreadable or of another size.
    """
    rows = [_read_row(path) for path in find_photos(instance_data_dir)]
    return decode_safely(datasets.Dataset.from_list(rows, features=FEATURES))


def make_iuv_pictures(
    instance_data_dir: str | os.PathLike,
    densepose: str | os.PathLike,
    device: str | torch.device = "cpu",
    person: str = PERSON_RULES[0],
) -> list[Path]:
    """Write `<stem>_iuv.png` for each photo that has none; existing ones are kept.

    Args:
        instance_data_dir (`str` or `os.PathLike`): Folder of the photos.
        densepose (`str` or `os.PathLike`): TorchScript DensePose, a file or on the Hub; loaded only if needed.
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`): Device of DensePose.
        person (`str`, *optional*, defaults to `"largest"`): Which of several people to take, one of `PERSON_RULES`.
    Returns:
        `list[Path]`: The files that were written.
    Raises:
        ValueError: If there is no photo, one is unreadable, `densepose` is not a DensePose, or it finds nobody in some
            photos. The last error names all of them, after the other photos' pictures are written.
    """
    missing = [photo for photo in find_photos(instance_data_dir) if not iuv_path_of(photo).is_file()]
    estimator = DensePoseEstimator(densepose, device) if missing else None
    written, empty = [], []
    for photo in missing:
        image = open_photo(photo)
        (detection,) = follow_person([estimator(to_rgb(image))], image.height, image.width, person)
        if detection is None:
            empty.append(str(photo))
            continue
        path = iuv_path_of(photo)
        partial = partial_path(path)
        Image.fromarray(paste(detection, image.height, image.width)).save(partial, "PNG")
        os.replace(partial, path)
        written.append(path)
    if empty:
        raise ValueError(f"`instance_data_dir` must hold photos of a person; DensePose finds nobody in {empty}.")
    return written


def open_photos(
    accelerator: Accelerator, instance_data_dir: str | os.PathLike, densepose: str | None, person: str
) -> datasets.Dataset:
    """Load the photos. With a `densepose`, the main process first makes the missing IUV pictures.

    `densepose` and `person` are those of [`make_iuv_pictures`].
    """
    if densepose is not None:
        with accelerator.main_process_first():
            for path in make_iuv_pictures(instance_data_dir, densepose, accelerator.device, person):
                print(f"Wrote {path}.")
    return load_photos(instance_data_dir)


class SubjectPairs(FramePairs):
    """Training samples of one subject, with the items of [`FramePairs`].

    The target is any photo. The reference is any photo, or the first if `reference_frames` is `"first"`. If
    `min_crop_scale` is below 1, reference and target each show a random crop of their photo, drawn separately, and the
    poses follow the target's crop. A single photo then gives pairs of two crops of it.

    Args:
        dataset (`datasets.Dataset`): From [`load_photos`].
        shape, seed, settings: See `FramePairs`.
        prior (`FramePairs`, *optional*): Samples of other subjects, so that the model does not forget them.
        prior_prob (`float`, *optional*, defaults to 0.0): Share of samples from the prior.
        textured (`FramePairs`, *optional*): Samples of textured clips, `TEXTURED_SHARE` of those of the subject. They
            need a prior.
    """

    def __init__(
        self,
        dataset,
        shape: LatentShape,
        seed: int,
        settings: PairSettings,
        prior: FramePairs | None = None,
        prior_prob: float = 0.0,
        textured: FramePairs | None = None,
    ):
        super().__init__(dataset, shape, seed, settings)
        self.prior, self.prior_prob, self.textured = prior, prior_prob, textured

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        if self.prior is not None:
            draw = torch.rand((), generator=sample_generator(self.seed, _PRIOR_POSITIONS + position))
            if draw < self.prior_prob:
                sample = self.prior[position]
                sample.pop("num_bad_rows", None)  # samples of a subject do not have it
                return sample
            if self.textured is not None and draw < self.prior_prob + (1 - self.prior_prob) * TEXTURED_SHARE:
                return self.textured[position]
        return super().__getitem__(position)

    def read_sample(self, row: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Read the sample with the photo of `row` as its target; `generator` makes all its random draws."""
        choice = int(torch.randint(len(self), (), generator=generator))
        reference = 0 if self.settings.reference_frames == "first" else choice
        draws = self.draw(generator)
        # Crops are drawn last, so that they change no other draw.
        return self.read_crops(reference, row, generator) | draws

    def read_crops(self, reference: int, target: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Read a random crop of the reference photo and one of the target photo, or both whole."""
        crops = torch.rand(2, 3, generator=generator).tolist() if self.settings.min_crop_scale < 1 else [None, None]
        return self.read_reference(reference, crops[0]) | self.read_target(target, crops[1])

    def targets_alone(self) -> "SubjectPairs":
        """Return samples of photos and prior with the same targets, and no references or poses."""
        alone = super().targets_alone()
        alone.textured = None  # a decoder does not learn from frames that it made itself
        alone.prior = None if self.prior is None else self.prior.targets_alone()
        return alone


def open_pairs(
    pipeline: DreamPosePipeline,
    photos: datasets.Dataset,
    seed: int,
    settings: PairSettings,
    prior_dataset: str | None,
    prior_prob: float,
) -> SubjectPairs:
    """Build the samples of both phases at the pipeline's default size.

    Args:
        pipeline (`DreamPosePipeline`): The pipeline to train.
        photos (`datasets.Dataset`): From [`open_photos`].
        seed (`int`): Seed of all random draws.
        settings (`PairSettings`): How photos become samples. Pictures of the prior are never cropped, and its bad rows
            are skipped.
        prior_dataset (`str`, *optional*): Prepared data set of other subjects.
        prior_prob (`float`): Its share of the samples.
    """
    shape = LatentShape.of(pipeline.vae, pipeline.config.default_height, pipeline.config.default_width)
    prior = None
    if prior_dataset is not None:
        whole = replace(settings, min_crop_scale=1.0, bad_rows="skip")
        with naming_data_set("prior_dataset"):
            prior = open_samples(prior_dataset, shape, seed, whole, keeps_poses=False)
    return SubjectPairs(photos, shape, seed, settings, prior, prior_prob)
