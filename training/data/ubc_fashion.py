# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""UBC Fashion (Zablotskaia et al., DwNet, BMVC 2019) as a `datasets` builder: its videos, or their frames with IUV.

The project ships the published lists of ids, not the videos, for which no licence is stated. 500 are for training, of
which every 20th is held out here for validation, and 100 for testing; some links are dead.

    builder = UBCFashion(config_name="frames", densepose="model.pt")
    builder.download_and_prepare(num_proc=4)
    builder.as_dataset(split="train")
"""

import functools
import hashlib
import logging
import os
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path

import datasets
import torch

from training.data import clip_rows, video_download
from training.media import pictures
from training.media.pictures import UnreadablePictures
from training.poses import clip_poses, densepose, detections, estimator
from training.poses.clip_poses import ClipDropped, PoseSettings


logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
_MAIN_PROCESS = os.getpid()
VIDEO_FEATURES = datasets.Features(
    {
        "video_id": datasets.Value("string"),
        "split": datasets.Value("string"),
        "path": datasets.Value("string"),
        "fps": datasets.Value("float64"),
        "width": datasets.Value("int32"),
        "height": datasets.Value("int32"),
        "num_frames": datasets.Value("int32"),
    }
)


def read_video_ids(split: str) -> list[str]:
    """The ids of a split, which are disjoint, in the order of the published lists.

    Args:
        split (`str`): `"train"`, `"validation"` or `"test"`.
    Returns:
        `list[str]`: 475, 25 or 100 ids of 11 characters; `+` and `-` are part of them.
    Raises:
        ValueError: If there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"`split` must be one of {SPLITS}, got {split!r}.")
    return files("training.data").joinpath(f"ubc_fashion_{split}.txt").read_text().split()


@dataclass
class UBCFashionConfig(datasets.BuilderConfig):
    """Where the videos are, and for `frames` how their poses come about.

    Args:
        video_dir (`str` or `os.PathLike`, *optional*):
            Videos on disk, `ID.mp4`, from which nothing is downloaded. Without it they are downloaded into the
            builder's cache.
        densepose (`str` or `os.PathLike`, *optional*): As `DensePoseEstimator` takes it; `frames` needs one.
        device (`str`, *optional*, defaults to `"cpu"`): Where DensePose runs.
        person, max_gap, median: As in `PoseSettings`.
        base_url (`str`, *optional*): As in `download_videos`.
    """

    video_dir: str | None = None
    densepose: str | None = None
    device: str = "cpu"
    person: str = PoseSettings.person
    max_gap: int = PoseSettings.max_gap
    median: int = PoseSettings.median
    base_url: str = video_download.BASE_URL

    @property
    def pose_settings(self) -> PoseSettings:
        """Whom to follow, and what becomes of gaps and flicker."""
        return PoseSettings(self.person, self.max_gap, self.median)


class UBCFashion(datasets.GeneratorBasedBuilder):
    """UBC Fashion: `videos` has one row a video, `frames` one row a frame.

    What is missing, cannot be decoded or shows nobody is skipped with a warning.
    """

    BUILDER_CONFIG_CLASS = UBCFashionConfig
    BUILDER_CONFIGS = [UBCFashionConfig(name=name, version="1.0.0") for name in ("videos", "frames")]
    DEFAULT_CONFIG_NAME = "videos"

    @property
    def video_dir(self) -> Path:
        """The folder of the videos."""
        return Path(self.config.video_dir or Path(self._cache_downloaded_dir, "ubc_fashion")).resolve()

    def download_and_prepare(self, *args, **kwargs):
        """As in `datasets`, after the videos that are missing were downloaded."""
        self._download()
        # Which rows there are depends on which videos came: neither the place nor the sizes of before hold.
        self._cache_dir = self._output_dir = self._build_cache_dir()
        self.info.splits = None
        super().download_and_prepare(*args, **kwargs)

    def as_streaming_dataset(self, *args, **kwargs):
        """As in `datasets`, after the videos that are missing were downloaded."""
        self._download()
        return super().as_streaming_dataset(*args, **kwargs)

    def _download(self):
        if self.config.video_dir is None:
            video_ids = [video_id for split in SPLITS for video_id in read_video_ids(split)]
            video_download.download_videos(video_ids, self.video_dir, base_url=self.config.base_url)

    def _build_cache_dir(self):
        # `datasets` caches by the configuration alone. Other videos, another DensePose or other code give other rows.
        modules = [video_download]
        if self.config.name == "frames":
            modules = [pictures, clip_poses, clip_rows, densepose, detections, estimator]
        digest = hashlib.sha256(repr(self._sources()).encode())
        for file in (__file__, *(module.__file__ for module in modules)):
            digest.update(Path(file).read_bytes())
        self.hash = digest.hexdigest()[:16]
        return super()._build_cache_dir()

    def _sources(self) -> list:
        """What the rows come from: the videos by size and time, and DensePose with its settings."""
        videos = self._find_videos().videos.values() if self.video_dir.is_dir() or self.config.video_dir else ()
        sources = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in videos]
        if self.config.name == "frames":
            if self.config.densepose is None:
                raise ValueError("`densepose` must be a TorchScript DensePose for the frames, got None.")
            weights = estimator.find_densepose(self.config.densepose)
            sources += [video_download.file_digest(weights), self.config.pose_settings]
        return sources

    def _find_videos(self, splits: tuple[str, ...] = SPLITS) -> video_download.DownloadReport:
        video_ids = [video_id for split in splits for video_id in read_video_ids(split)]
        return video_download.find_videos(video_ids, self.video_dir)

    def _info(self):
        features = clip_rows.FEATURES if self.config.name == "frames" else VIDEO_FEATURES
        return datasets.DatasetInfo(description=__doc__, features=features)

    def _split_generators(self, dl_manager):
        reports = {split: self._find_videos((split,)) for split in SPLITS}
        num_missing = sum(len(report.missing) for report in reports.values())
        if not any(report.videos for report in reports.values()):
            raise ValueError(f"`video_dir` must hold videos named ID.mp4, got {str(self.video_dir)!r}, without any.")
        if num_missing:
            logger.warning(f"{num_missing} videos of UBC Fashion are not in {self.video_dir}.")
        return [
            datasets.SplitGenerator(name=split, gen_kwargs={"split": split, "video_ids": list(report.videos)})
            for split, report in reports.items()
            if report.videos
        ]

    def _generate_examples(self, split, video_ids):
        for video_id in video_ids:
            try:
                rows = self._rows(split, video_id)
            except (ClipDropped, UnreadablePictures) as error:
                logger.warning(f"Skipping the video {video_id}: {error}")
                continue
            for index, row in enumerate(rows):
                yield f"{video_id}-{index:06d}", row

    def _rows(self, split: str, video_id: str) -> list[dict]:
        path = self.video_dir / f"{video_id}.mp4"
        if self.config.name == "frames":
            if os.getpid() != _MAIN_PROCESS:
                # `num_proc` forks; a fork would wait for OpenMP's threads, which only the main process has.
                torch.set_num_threads(1)
            model = _load_estimator(str(self.config.densepose), self.config.device)
            rows, _ = clip_rows.clip_rows(path, video_id, split, model, self.config.pose_settings)
            return rows
        facts = asdict(video_download.probe_video(path))
        return [{"video_id": video_id, "split": split, "path": str(path), **facts}]


@functools.lru_cache(maxsize=1)
def _load_estimator(path: str, device: str) -> estimator.DensePoseEstimator:
    """Once a process: a stream asks for it at every clip."""
    return estimator.DensePoseEstimator(path, device)
