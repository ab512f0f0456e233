# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""UBC Fashion (Zablotskaia et al., DwNet, BMVC 2019) as a `datasets` builder of its videos, or their frames with IUV.

The project ships the published lists of ids, not the videos, which have no stated licence. 100 are for testing and 500
for training, of which every 20th is the validation split here. Some links are dead.

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

from training.data import clip_frames, clip_rows, video_download
from training.data.row_settings import RowSettings
from training.media import pictures
from training.media.pictures import UnreadablePictures
from training.poses import clip_poses, clip_settings, detections, estimator, flicker, gaps
from training.poses.clip_poses import ClipDropped
from training.poses.clip_settings import PoseSettings


logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
_MAIN_PROCESS = os.getpid()
VIDEO_FEATURES = datasets.Features(
    dict.fromkeys(("video_id", "split", "path"), datasets.Value("string"))
    | {"fps": datasets.Value("float64")}
    | dict.fromkeys(("width", "height", "num_frames"), datasets.Value("int32"))
)


def read_video_ids(split: str) -> list[str]:
    """Return the ids of a split in the order of the published lists; `+` and `-` are part of their 11 characters.

    Raises:
        ValueError: If `split` is not `"train"` (475 ids), `"validation"` (25) or `"test"` (100).
    """
    if split not in SPLITS:
        raise ValueError(f"`split` must be one of {SPLITS}, got {split!r}.")
    return files("training.data").joinpath(f"ubc_fashion_{split}.txt").read_text().split()


@dataclass
class UBCFashionConfig(datasets.BuilderConfig):
    """Folder of the videos, and for `frames` how to make their poses.

    Args:
        video_dir (`str` or `os.PathLike`, *optional*):
            Folder of videos named `ID.mp4`. Without it, the builder downloads them into its cache.
        densepose (`str` or `os.PathLike`, *optional*): `path` of `DensePoseEstimator`; `frames` needs it.
        device (`str`, *optional*, defaults to `"cpu"`): Device of DensePose.
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
        """The settings of the poses."""
        return PoseSettings(self.person, self.max_gap, self.median)


class UBCFashion(datasets.GeneratorBasedBuilder):
    """UBC Fashion: `videos` has one row per video, `frames` one row per frame.

    The builder warns of videos that are missing, cannot be decoded or show nobody, and skips them.
    """

    BUILDER_CONFIG_CLASS = UBCFashionConfig
    BUILDER_CONFIGS = [UBCFashionConfig(name=name, version="1.0.0") for name in ("videos", "frames")]
    DEFAULT_CONFIG_NAME = "videos"

    @property
    def video_dir(self) -> Path:
        """Folder of the videos."""
        return Path(self.config.video_dir or Path(self._cache_downloaded_dir, "ubc_fashion")).resolve()

    def download_and_prepare(self, *args, **kwargs):
        """Download missing videos, then do as in `datasets`."""
        self._download()
        # The rows depend on which videos arrived, so the cache folder and the sizes of the splits may have changed.
        self._cache_dir = self._output_dir = self._build_cache_dir()
        self.info.splits = None
        super().download_and_prepare(*args, **kwargs)

    def as_streaming_dataset(self, *args, **kwargs):
        """Download missing videos, then do as in `datasets`."""
        self._download()
        return super().as_streaming_dataset(*args, **kwargs)

    def _download(self):
        if self.config.video_dir is None:
            video_ids = [video_id for split in SPLITS for video_id in read_video_ids(split)]
            video_download.download_videos(video_ids, self.video_dir, base_url=self.config.base_url)

    def _build_cache_dir(self):
        # `datasets` caches by configuration only, but videos, DensePose and code change the rows too.
        modules = [video_download]
        if self.config.name == "frames":
            modules = [pictures, clip_frames, clip_rows, clip_poses, clip_settings, detections, estimator]
            modules += [flicker, gaps]
        digest = hashlib.sha256(repr(self._sources()).encode())
        for file in (__file__, *(module.__file__ for module in modules)):
            digest.update(Path(file).read_bytes())
        self.hash = digest.hexdigest()[:16]
        return super()._build_cache_dir()

    def _sources(self) -> list:
        """Return everything that the rows depend on: videos with size and time, and DensePose with its settings."""
        videos = self._find_videos().videos.values() if self.video_dir.is_dir() or self.config.video_dir else ()
        sources = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in videos]
        if self.config.name == "frames":
            if self.config.densepose is None:
                raise ValueError("`densepose` must be a TorchScript DensePose for `frames`, got None.")
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
                # A fork (`num_proc`) would wait for OpenMP's threads, which only the main process has.
                torch.set_num_threads(1)
            model = _load_estimator(str(self.config.densepose), self.config.device)
            settings = RowSettings(self.config.pose_settings)
            return clip_rows.clip_rows(path, video_id, split, model, settings).rows
        facts = asdict(video_download.probe_video(path))
        return [{"video_id": video_id, "split": split, "path": str(path), **facts}]


@functools.lru_cache(maxsize=1)
def _load_estimator(path: str, device: str) -> estimator.DensePoseEstimator:
    """Load DensePose once per process; a stream asks for it at every clip."""
    return estimator.DensePoseEstimator(path, device)
