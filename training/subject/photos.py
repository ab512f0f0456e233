# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""A subject's photos, as rows of a prepared data set, and the pairs of them that stage 2 trains on.

A photo has no neighbours in time: each is a video of one frame, so that its pose window is its own pose repeated.
"""

import os
from pathlib import Path

import datasets
import torch
from PIL import Image, ImageOps

from pipeline_dreampose import iuv_to_pose_map
from training.data.frame_pairs import FramePairs, LatentShape, sample_generator
from training.data.frame_stream import FEATURES
from training.data.pair_settings import PairSettings
from training.media.settings_file import partial_path
from training.poses.detections import PERSON_RULES, follow_person, paste
from training.poses.estimator import DensePoseEstimator


PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
IUV_ENDING = "_iuv"
# Positions of a run are below it: from here on lie the draws between the subject and the prior.
_PRIOR_POSITIONS = 2**62


def find_photos(instance_data_dir: str | os.PathLike) -> list[Path]:
    """The photos in a folder, `<stem>.jpg`, `.png` and so on, sorted by name; none is read yet.

    Args:
        instance_data_dir (`str` or `os.PathLike`): The folder.
    Raises:
        ValueError: If there is none, two of one stem, or an IUV picture of none; names the file.
    """
    folder = Path(instance_data_dir)
    if not folder.is_dir():
        raise ValueError(f"`instance_data_dir` must be a folder of photos, got {str(folder)!r}.")
    pictures = sorted(path for path in folder.iterdir() if path.suffix.lower() in PHOTO_SUFFIXES)
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
    """Where a photo's IUV picture lies."""
    return photo.with_name(f"{photo.stem}{IUV_ENDING}.png")


def load_photos(instance_data_dir: str | os.PathLike) -> datasets.Dataset:
    """Read a folder of photos, each with its IUV picture `<stem>_iuv.png` beside it.

    Args:
        instance_data_dir (`str` or `os.PathLike`): The folder.
    Returns:
        `datasets.Dataset`: One row a photo, sorted by name: a video of one frame whose id is the stem.
    Raises:
        ValueError: As [`find_photos`], or if a photo or its IUV picture is missing, unreadable or of another size;
            names the file.
    """
    return datasets.Dataset.from_list([_read_row(path) for path in find_photos(instance_data_dir)], features=FEATURES)


def open_photo(path: Path) -> Image.Image:
    """A picture, turned as its EXIF says: so `datasets` reads it too."""
    try:
        return ImageOps.exif_transpose(Image.open(path))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"`instance_data_dir` must hold readable pictures, got {path}: {error}.") from error


class SubjectPairs(FramePairs):
    """Training samples of one subject, with the items of [`FramePairs`]: the target is any of its photos, and so is
    the reference, or it is the first one, as `reference_frames` has it.

    Each of the two shows a random part of its photo, by a draw of its own, as `min_crop_scale` has it; the poses are
    the target's, by the target's draw. With a single photo, reference and target are two parts of it, or the same
    picture where `min_crop_scale` is 1.

    Args:
        dataset (`datasets.Dataset`): From [`load_photos`].
        shape, seed, settings: As `FramePairs` has them.
        prior (`FramePairs`, *optional*): Samples of other subjects, so that what the model knows of them stays.
        prior_prob (`float`, *optional*, defaults to 0.0): Share of samples that are the prior's.
    """

    def __init__(
        self,
        dataset,
        shape: LatentShape,
        seed: int,
        settings: PairSettings,
        prior: FramePairs | None = None,
        prior_prob: float = 0.0,
    ):
        super().__init__(dataset, shape, seed, settings)
        self.prior, self.prior_prob = prior, prior_prob

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        if self.prior is not None:
            draw = torch.rand((), generator=sample_generator(self.seed, _PRIOR_POSITIONS + position))
            if draw < self.prior_prob:
                sample = self.prior[position]
                sample.pop("num_bad_rows", None)  # which a subject's samples have not
                return sample
        return super().__getitem__(position)

    def read_sample(self, row: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """The sample with a photo as its target.

        Args:
            row (`int`): Of the photo.
            generator (`torch.Generator`): Of all draws: another photo or the same, noise, timestep, two crops.
        Returns:
            `dict[str, torch.Tensor]`: As in the docstring of `FramePairs`.
        """
        choice = int(torch.randint(len(self), (), generator=generator))
        reference = 0 if self.settings.reference_frames == "first" else choice
        draws = self.draw(generator)
        # Drawn last: a crop changes no other draw.
        return self.read_crops(reference, row, generator) | draws

    def read_crops(self, reference: int, target: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """What a sample holds of two photos, each seen as one draw has it."""
        crops = torch.rand(2, 3, generator=generator).tolist() if self.settings.min_crop_scale < 1 else [None, None]
        return self.read_reference(reference, crops[0]) | self.read_target(target, crops[1])

    def targets_alone(self) -> "SubjectPairs":
        """The same targets, the prior's too."""
        alone = super().targets_alone()
        alone.prior = None if self.prior is None else self.prior.targets_alone()
        return alone


def _read_row(path: Path) -> dict:
    iuv_path = iuv_path_of(path)
    if not iuv_path.is_file():
        raise ValueError(f"`instance_data_dir` must hold the IUV picture of each photo, got no {iuv_path}.")
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


def make_iuv_pictures(
    instance_data_dir: str | os.PathLike,
    densepose: str | os.PathLike,
    device: str | torch.device = "cpu",
    person: str = PERSON_RULES[0],
) -> list[Path]:
    """Write `<stem>_iuv.png` beside each photo that has none; those that are there are kept.

    Args:
        instance_data_dir (`str` or `os.PathLike`): Folder of the photos.
        densepose (`str` or `os.PathLike`): TorchScript DensePose, here or on the Hub; not loaded if none is missing.
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`): Where it runs.
        person (`str`, *optional*, defaults to `"largest"`): Whose of several people, one of `PERSON_RULES`.
    Returns:
        `list[Path]`: What was written.
    Raises:
        ValueError: If there is no photo, one cannot be read, `densepose` is no DensePose, or it finds nobody in some
            photos, all of which are named; the others' pictures are written.
    """
    missing = [photo for photo in find_photos(instance_data_dir) if not iuv_path_of(photo).is_file()]
    estimator = DensePoseEstimator(densepose, device) if missing else None
    written, empty = [], []
    for photo in missing:
        image = open_photo(photo)
        (detection,) = follow_person([estimator(image)], image.height, image.width, person)
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
