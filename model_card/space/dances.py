# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Poses in a visitor's ordinary video, and in the photo, by a DensePose that the page's owner trusts."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from model_card.space.figures import FPS
from training.engine.messages import naming_arguments
from training.media.pictures import UnreadablePictures, iterate_pictures
from training.media.timing import frame_rate
from training.poses.clip_poses import ClipDropped, follow_through_clip
from training.poses.clip_settings import PoseSettings
from training.poses.detection_cache import file_digest
from training.poses.detections import Detection
from training.poses.estimator import DensePoseEstimator


LARGEST = 640  # pixels of the longer side of a picture that DensePose sees


class DanceReader:
    """Finds the poses of one person, of whom it takes about `FPS` frames for each second.

    Args:
        densepose (`str`): As in [`find_densepose`].
        device (`str`): Where DensePose runs.
    """

    def __init__(self, densepose: str, device: str):
        self._estimator = DensePoseEstimator(densepose, device)
        self._last = None, []  # a clip's digest and what was found, since a preview comes before the video

    @staticmethod
    def _every(video: Path) -> int:
        return max(1, round((frame_rate(video, "dance") or FPS) / FPS))

    def frame_rate(self, video: Path) -> float:
        """Return how many of the poses belong to a second of the video."""
        return (frame_rate(video, "dance") or FPS) / self._every(video)

    def detect(self, video: Path, most: int) -> Iterator[tuple[tuple[int, int], list[Detection]]]:
        """Yield the size of each frame, as DensePose saw it, and the people in it.

        Raises:
            ValueError: If the video cannot be read, changes its size, or would have more than `most` poses.
        """
        key, found = file_digest(video), []
        if key == self._last[0]:
            yield from self._last[1]
            return
        with naming_arguments(input="dance", image="dance"), _saying_what_a_visitor_can_give():
            for index, picture in enumerate(itertools.islice(iterate_pictures(video), 0, None, self._every(video))):
                if index == most:
                    raise ValueError(f"`dance` must have at most {most / FPS:g} seconds. Cut it, or make it shorter.")
                picture = _small(picture)
                if found and picture.size != found[0][0]:
                    raise ValueError(f"`dance` must have frames of one size, got {found[0][0]} and {picture.size}.")
                found.append((picture.size, self._estimator(picture)))
                yield found[-1]
        self._last = key, found

    def follow(self, found: list[tuple[tuple[int, int], list[Detection]]]) -> list[Image.Image]:
        """Return the IUV pictures of the largest person in all that [`detect`] found."""
        if not found:
            raise ValueError("`dance` must have at least one frame, got none.")
        width, height = found[0][0]
        try:
            clip = follow_through_clip([people for _, people in found], height, width, PoseSettings())
        except ClipDropped as error:
            raise ValueError(
                f"`dance` must show a person, but for more than {PoseSettings.max_gap} frames in a row DensePose finds"
                " nobody: cut these frames, or film the whole body."
            ) from error
        return [Image.fromarray(iuv) for iuv in clip]

    def find_in_photo(self, photo: Image.Image) -> Image.Image:
        """Return the IUV picture of the photo's largest person."""
        picture = _small(photo)
        try:
            return self.follow([(picture.size, self._estimator(picture))])[0]
        except ValueError as error:
            raise ValueError(
                "`photo` must show a person whom DensePose finds: take one that shows the whole body, or give its IUV"
                " picture."
            ) from error


@contextmanager
def _saying_what_a_visitor_can_give() -> Iterator[None]:
    try:
        yield
    except UnreadablePictures as error:
        raise ValueError(str(error).replace("a folder or a readable", "a readable")) from error


def _small(picture: Image.Image) -> Image.Image:
    smaller = picture.copy()
    smaller.thumbnail((LARGEST, LARGEST))
    return smaller
