# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Downloading videos into a folder: several at a time, with retries, and resuming after an interruption.

FOLDER/ID.mp4           a complete video: all bytes arrived, and every frame could be decoded
FOLDER/ID.part          the beginning of a video; ID.part.version names the version of the remote file
FOLDER/manifest.json    ID -> url, bytes and sha256 of every video that ever arrived; later downloads must be equal
FOLDER/missing.json     ID -> reason why the video is missing
FOLDER/ID.rejected      a former ID.mp4 that was not a complete video or differed from the manifest
FOLDER/NAME.rejected    a former manifest.json or missing.json that somebody broke; the file was made anew
"""

import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request

import av
from huggingface_hub.utils import WeakFileLock
from tqdm.auto import tqdm

from training.data.limited_http import open_url
from training.engine.messages import one_line, shorten
from training.media.pictures import UnreadablePictures, open_video, pixel_aspect, shown_picture, video_stream
from training.media.settings_file import read_json, write_json


logger = logging.getLogger(__name__)

BASE_URL = "https://m.media-amazon.com/images/I"
_CHUNK_BYTES = 1 << 16
_OVERHEAD_BYTES = 1 << 20  # of an answer: headers, and sizes of chunks
_TRANSIENT_STATUS = (408, 416, 429)  # and all from 500


class _Failed(Exception):
    """A download that failed for good, with the reason."""


class _Interrupted(Exception):
    """A download that failed but may succeed on another attempt, with the reason."""


class _Stopped(Exception):
    """The whole run is stopping."""


@dataclass(frozen=True)
class VideoFacts:
    """Frames per second, size in pixels as a player shows it, and number of decoded frames of a video."""

    fps: float
    width: int
    height: int
    num_frames: int


@dataclass(frozen=True)
class DownloadReport:
    """Available `videos` (id -> file) and `missing` ones (id -> reason), both in the order of the request."""

    videos: dict[str, Path]
    missing: dict[str, str]


def probe_video(path: str | os.PathLike) -> VideoFacts:
    """Decode a whole mp4 video and return its facts.

    Headers also count frames that a cut or damaged file lacks, so all frames are decoded; later work on the frames
    costs far more. A decoder accepts a file with its index in front that was cut between two frames. So the number of
    packets is compared with the index too, ignoring edit lists, which can hide frames of a complete file.

    Raises:
        UnreadablePictures: If the file is not an mp4, is cut, has a frame that cannot be decoded, or has no frame or
            frame rate.
    """
    try:
        with open_video(path, "mp4", {"ignore_editlist": "1"}) as container:
            stream = video_stream(container)
            num_promised = stream.frames  # 0 without an index, for example in a fragmented file
            # The last packet, which only ends the stream, has no time stamp.
            num_packets = sum(p.dts is not None and not p.is_corrupt for p in container.demux(stream))
        with open_video(path, "mp4") as container:
            stream, num_frames, size = video_stream(container), 0, (0, 0)
            for frame in container.decode(stream):
                size = size if num_frames else shown_picture(frame, pixel_aspect(stream)).size
                num_frames += 1
            if num_packets < num_promised:
                reason = f"it is cut, with {num_packets} of {num_promised} frames"
            elif num_frames == 0:
                reason = "it has no frames"
            elif stream.average_rate is None:
                reason = "it has no frame rate"
            else:
                return VideoFacts(float(stream.average_rate), *size, num_frames)
    except (av.error.FFmpegError, OSError) as error:
        reason = error.strerror or str(error)
    except ValueError as error:  # for example `UnreadablePictures`
        reason = str(error)
    raise UnreadablePictures(f"A video must be a readable mp4, got {Path(path).name!r}: {reason}.")


def file_digest(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_videos(video_ids: Iterable[str], video_dir: str | os.PathLike) -> DownloadReport:
    """Find the videos that a folder already holds as `ID.mp4`, without opening them.

    Raises:
        ValueError: If `video_dir` is not a folder.
    """
    if not Path(video_dir).is_dir():
        raise ValueError(f"`video_dir` must be a folder, got {str(video_dir)!r}.")
    paths = {video_id: Path(video_dir, f"{video_id}.mp4") for video_id in video_ids}
    videos = {video_id: path for video_id, path in paths.items() if path.is_file()}
    return DownloadReport(videos, {video_id: "not in the folder" for video_id in paths if video_id not in videos})


def download_videos(
    video_ids: Iterable[str],
    folder: str | os.PathLike,
    num_workers: int = 8,
    retries: int = 4,
    base_url: str = BASE_URL,
    timeout: float = 30,
    backoff: float = 1,
    max_video_mb: float = 200,
    max_video_seconds: float = 600,
) -> DownloadReport:
    """Download the videos that a folder lacks.

    Complete videos are not requested again. Missing ones are tried again, and a partial one is continued if the server
    supports it. A process waits while another one works in the same folder. Whatever the server sends, a video that
    does not arrive is listed with the reason, and the others go on.

    Args:
        video_ids (`Iterable[str]`): Ids of letters, digits, `+`, `-` and `_`, used unchanged in the address.
        folder (`str` or `os.PathLike`): Target folder; the docstring of this module lists its files.
        num_workers (`int`, *optional*, defaults to 8): Number of simultaneous downloads.
        retries (`int`, *optional*, defaults to 4):
            Further attempts after errors that may pass: server errors, broken connections, incomplete bodies.
        base_url (`str`, *optional*): A video's address is `BASE_URL/ID.mp4`.
        timeout (`float`, *optional*, defaults to 30): Seconds without data after which an attempt fails.
        backoff (`float`, *optional*, defaults to 1): Seconds before the second attempt; doubled for each further one.
        max_video_mb (`float`, *optional*, defaults to 200): Megabytes above which a video is given up.
        max_video_seconds (`float`, *optional*, defaults to 600):
            Seconds, over all attempts, after which a video is given up. The next run continues it.
    Raises:
        ValueError: If an id has other characters, or a number is out of range.
    """
    video_ids = list(dict.fromkeys(video_ids))
    for video_id in video_ids:
        if not re.fullmatch(r"[\w+-]+", video_id, re.ASCII):
            raise ValueError(f"`video_ids` must hold letters, digits, `+`, `-` and `_` only, got {video_id!r}.")
    for name, value, least in (("num_workers", num_workers, 1), ("retries", retries, 0)):
        if value < least:
            raise ValueError(f"`{name}` must be at least {least}, got {value}.")
    for name, value in (("max_video_mb", max_video_mb), ("max_video_seconds", max_video_seconds)):
        if not value > 0:
            raise ValueError(f"`{name}` must be above 0, got {value}.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrived, failed, stop = {}, {}, threading.Event()
    with WeakFileLock(folder / ".lock"):
        for leftover in folder.glob(".*.partial"):  # from a killed run
            leftover.unlink()
        manifest = _read_list(folder / "manifest.json", _is_entry)
        missing = _read_list(folder / "missing.json", lambda reason: isinstance(reason, str))
        limits = (retries, timeout, backoff, max_video_mb, max_video_seconds)
        bar = tqdm(desc="videos", unit="B", unit_scale=True, total=0)
        # The pool's threads are daemons, so an interruption ends the run at once.
        with bar, ThreadPool(min(num_workers, len(video_ids) or 1)) as pool:
            fetch = _Fetcher(folder, base_url.rstrip("/"), *limits, dict(manifest), stop, bar)
            try:
                for video_id, entry, reason in pool.imap_unordered(fetch, video_ids):
                    if reason is None:
                        arrived[video_id] = entry
                    else:
                        failed[video_id] = reason
                    bar.set_postfix(there=len(arrived), missing=len(failed), of=len(video_ids))
                    _update_json(folder / "manifest.json", manifest, manifest | arrived)
                    remaining = {name: why for name, why in missing.items() if name not in arrived}
                    _update_json(folder / "missing.json", missing, remaining | failed)
            finally:
                stop.set()
    return DownloadReport(
        {video_id: folder / f"{video_id}.mp4" for video_id in video_ids if video_id in arrived},
        {video_id: failed[video_id] for video_id in video_ids if video_id in failed},
    )


def _read_list(path: Path, is_entry: Callable[[Any], bool]) -> dict:
    """Read `manifest.json` or `missing.json`. Put a broken one aside with a warning, and return its whole entries."""
    if not path.exists():
        return {}
    try:
        content = read_json(path, "folder")
        broken = [name for name, entry in content.items() if not is_entry(entry)]
        reason = f"{path} has broken entries: {shorten(broken)}."
    except ValueError as error:
        content, broken, reason = {}, [""], str(error)
    whole = {name: entry for name, entry in content.items() if name not in broken}
    if broken:
        aside = path.with_name(f"{path.name}.rejected")
        os.replace(path, aside)
        write_json(path, whole)
        logger.warning(f"{reason} It is made anew; the former file is now {aside.name}.")
    return whole


def _is_entry(entry: Any) -> bool:
    """Whether a value is a video's entry in `manifest.json`."""
    kinds = {"url": str, "bytes": int, "sha256": str}
    return isinstance(entry, dict) and all(isinstance(entry.get(key), kind) for key, kind in kinds.items())


def _update_json(path: Path, content: dict, new: dict) -> None:
    """Replace `content`, in memory and on disk, if `new` differs."""
    if new != content or not path.exists():
        content.clear()
        content.update(sorted(new.items()))
        write_json(path, content)


@dataclass(frozen=True)
class _Fetcher:
    """Downloads one video per call; several threads call it."""

    folder: Path
    base_url: str
    retries: int
    timeout: float
    backoff: float
    max_mb: float
    max_seconds: float
    pins: dict[str, dict]
    stop: threading.Event
    bar: tqdm

    def __call__(self, video_id: str) -> tuple[str, dict | None, str | None]:
        """Return the id with its entry in the manifest, or with the reason why the video is missing.

        A refused `ID.mp4` is renamed to `ID.rejected`, replacing an earlier one, since it may be the only copy if the
        link is dead.
        """
        path, part = self.folder / f"{video_id}.mp4", self.folder / f"{video_id}.part"
        url = f"{self.base_url}/{video_id}.mp4"
        if path.is_file():
            try:
                return video_id, self._entry(video_id, url, path), None
            except (_Failed, UnreadablePictures):
                os.replace(path, path.with_suffix(".rejected"))
        try:
            self._persist(url, part)
            try:
                entry = self._entry(video_id, url, part)
                os.replace(part, path)
            finally:  # a refused file is not a beginning of the video either
                _discard(part)
        except (_Failed, UnreadablePictures) as failure:
            return video_id, None, one_line(failure, 500)
        return video_id, entry, None

    def _entry(self, video_id: str, url: str, path: Path) -> dict:
        """Check a file against the manifest, or decode it if the manifest lacks it; return its entry."""
        entry = {"url": url, "bytes": path.stat().st_size, "sha256": file_digest(path)}
        pin = self.pins.get(video_id)
        if pin is None:
            probe_video(path)
        elif pin["sha256"] != entry["sha256"]:
            raise _Failed(f"its sha256 is {entry['sha256']}, but {pin['sha256']} in manifest.json")
        return pin or entry

    def _persist(self, url: str, part: Path) -> None:
        """Download the part file, with retries."""
        deadline = time.monotonic() + self.max_seconds
        for attempt in range(self.retries + 1):
            if self.stop.wait(self.backoff * 2 ** (attempt - 1) if attempt else 0):
                raise _Stopped
            try:
                return self._transfer(url, part, deadline)
            except _Interrupted as interruption:
                reason = str(interruption)
            if time.monotonic() >= deadline:
                raise _Failed(f"it did not arrive within {self.max_seconds:g} seconds: {reason}")
        raise _Failed(f"{reason}, after {self.retries + 1} attempt(s)")

    def _transfer(self, url: str, part: Path, deadline: float) -> None:
        """Download the part file in one attempt; an interrupted attempt keeps the bytes that arrived."""
        size = part.stat().st_size if part.exists() else 0
        version = _read_version(part) if size else ""
        # If the remote file has changed, `If-Range` makes the server send the whole file instead of the rest.
        headers = {"Range": f"bytes={size}-", "If-Range": version} if version else {}
        with self._open(Request(url, headers=headers), part, deadline) as response:
            is_rest = response.status == 206
            if is_rest and not (version and response.headers.get("Content-Range", "").startswith(f"bytes {size}-")):
                _discard(part)
                raise _Interrupted("the server sent another part than requested")
            size = size if is_rest else 0
            expected = _whole_size(response, size)
            self._advance(total=max((expected or 0) - size, 0))
            with open(part, "ab" if is_rest else "wb", buffering=0) as file:
                if not is_rest:
                    _write_version(part, response)
                self._check_size(expected or 0, part)
                for chunk in self._chunks(response):
                    size += len(chunk)
                    self._check_size(size, part)
                    file.write(chunk)
                    self._advance(len(chunk))
        if expected not in (None, size):
            raise _Interrupted(f"{size} of {expected} bytes arrived")

    def _check_size(self, num_bytes: int, part: Path) -> None:
        if num_bytes > self.max_mb * 1e6:
            _discard(part)
            raise _Failed(f"it has more than {self.max_mb:g} MB, the limit of `max_video_mb`")

    def _open(self, request: Request, part: Path, deadline: float) -> HTTPResponse:
        try:
            return open_url(request, self.timeout, deadline, self.max_mb * 1e6 + _OVERHEAD_BYTES)
        except HTTPError as error:
            error.close()
            reason = f"HTTP {error.code} {error.reason}"
            if error.code == 416:  # the remote file ends before the part does, so it is another file
                _discard(part)
            if error.code < 500 and error.code not in _TRANSIENT_STATUS:
                raise _Failed(reason) from error
        except OSError as error:
            reason = str(error.reason if isinstance(error, URLError) else error)
        except Exception as error:  # what `urllib` raises for odd answers has no common class
            reason = f"the server's answer cannot be used: {error}"
        raise _Interrupted(reason)

    def _chunks(self, response: HTTPResponse) -> Iterator[bytes]:
        """Yield the body; only errors of the connection, not of the disk, become `_Interrupted`."""
        while True:
            if self.stop.is_set():
                raise _Stopped
            try:
                chunk = response.read1(_CHUNK_BYTES)
            except (OSError, HTTPException, ValueError) as error:
                raise _Interrupted(str(error) or type(error).__name__) from error
            if not chunk:
                return
            yield chunk

    def _advance(self, num_bytes: int = 0, total: int = 0) -> None:
        with self.bar.get_lock():
            self.bar.total += total
            self.bar.update(num_bytes)


def _version_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.version")


def _write_version(part: Path, response: HTTPResponse) -> None:
    """Keep a value for `If-Range`: a strong ETag or the file's date, or an empty string without either."""
    tag = response.headers.get("ETag", "")
    version = tag if tag.startswith('"') else response.headers.get("Last-Modified", "")
    _version_file(part).write_text(version, encoding="latin-1")


def _read_version(part: Path) -> str:
    """Return the value that `_write_version` kept, or an empty string if there is none that can be sent."""
    file = _version_file(part)
    version = file.read_text(encoding="latin-1") if file.exists() else ""
    return version if version.isascii() and version.isprintable() else ""


def _whole_size(response: HTTPResponse, start: int) -> int | None:
    """Return the size of the whole video whose bytes from `start` on are sent, or `None` if no header says it."""
    lengths = response.headers.get_all("Content-Length", [])
    if len(lengths) > 1 or not all(re.fullmatch("[0-9]{1,18}", length) for length in lengths):
        raise _Interrupted(f"the server sent `Content-Length: {one_line(', '.join(lengths), 60)}`")
    # The server may send less than the requested rest.
    whole = re.search("/([0-9]{1,18})$", response.headers.get("Content-Range", "")) if response.status == 206 else None
    if whole:
        return int(whole[1])
    return start + int(lengths[0]) if lengths else None


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _version_file(part).unlink(missing_ok=True)
