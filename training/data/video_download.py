# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Videos from the web into a folder: several at a time, again after a failure, on from where a run was stopped.

FOLDER/ID.mp4           a whole video: all its bytes came, and every frame could be decoded
FOLDER/ID.part          what has come of one so far; ID.part.version says of which version of the remote file
FOLDER/manifest.json    ID -> url, bytes and sha256 of every video that ever arrived; later downloads must equal it
FOLDER/missing.json     ID -> why there is no such video
FOLDER/ID.rejected      what stood there as ID.mp4 and was no whole video, or another than the manifest's
"""

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from multiprocessing.pool import ThreadPool
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import av
from huggingface_hub.utils import WeakFileLock
from tqdm.auto import tqdm

from training.media.pictures import UnreadablePictures
from training.media.settings_file import write_json


BASE_URL = "https://m.media-amazon.com/images/I"
_CHUNK_BYTES = 1 << 16
_TRANSIENT_STATUS = (408, 416, 429)  # and all from 500


class _Failed(Exception):
    """A download that is given up, with the reason."""


class _Interrupted(Exception):
    """A download that may succeed when it is tried again, with the reason."""


class _Stopped(Exception):
    """The whole run ends."""


@dataclass(frozen=True)
class VideoFacts:
    """What a video is: frames a second, size in pixels as it is stored, and how many frames it decodes to."""

    fps: float
    width: int
    height: int
    num_frames: int


@dataclass(frozen=True)
class DownloadReport:
    """What is there: `videos`, id -> file, and `missing`, id -> reason, both in the order that was asked for."""

    videos: dict[str, Path]
    missing: dict[str, str]


def probe_video(path: str | os.PathLike) -> VideoFacts:
    """Decode a whole mp4 video.

    All of it, because headers count frames that a cut or damaged file does not have; decoding costs little beside what
    is done with the frames later. A file whose index comes first may be cut where a frame ends, which no decoder
    minds. So every packet that the index promises must be there, edit lists ignored: by these fewer frames than
    packets may be shown, and are in a whole file.

    Args:
        path (`str` or `os.PathLike`): The file.
    Returns:
        `VideoFacts`: Its facts.
    Raises:
        UnreadablePictures: If it is no mp4, is cut, a frame cannot be decoded, or there is no frame or frame rate.
    """
    try:
        # Without the format FFmpeg would follow the addresses in a playlist that calls itself a video.
        with av.open(path, format="mp4", options={"ignore_editlist": "1"}) as container:
            stream = container.streams.video[0]
            num_promised = stream.frames  # 0 if there is no index, as in a file of fragments
            # The packet that ends a stream has no time.
            num_packets = sum(p.dts is not None and not p.is_corrupt for p in container.demux(stream))
        with av.open(path, format="mp4") as container:
            stream = container.streams.video[0]
            num_frames = sum(1 for _ in container.decode(stream))
            if num_packets < num_promised:
                reason = f"it is cut, with {num_packets} of {num_promised} frames"
            elif num_frames == 0:
                reason = "it has no frames"
            elif stream.average_rate is None:
                reason = "it has no frame rate"
            else:
                return VideoFacts(float(stream.average_rate), stream.width, stream.height, num_frames)
    except IndexError:
        reason = "it has no video stream"
    except (av.error.FFmpegError, OSError) as error:
        reason = error.strerror
    raise UnreadablePictures(f"A video must be a readable mp4, got {Path(path).name!r}: {reason}.")


def file_digest(path: str | os.PathLike) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_videos(video_ids: Iterable[str], video_dir: str | os.PathLike) -> DownloadReport:
    """Look for videos that are on disk already.

    Args:
        video_ids (`Iterable[str]`): Which.
        video_dir (`str` or `os.PathLike`): Holds them as `ID.mp4`.
    Returns:
        `DownloadReport`: Those that are there, unopened, and those that are not.
    Raises:
        ValueError: If `video_dir` is no folder.
    """
    if not Path(video_dir).is_dir():
        raise ValueError(f"`video_dir` must be a folder, got {str(video_dir)!r}, which is none.")
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
) -> DownloadReport:
    """Download the videos that a folder lacks.

    What is whole is not asked for again, what is missing is tried again, and what was stopped half way goes on there,
    if the server can. A process waits for another that works in the same folder.

    Args:
        video_ids (`Iterable[str]`): Which: letters, digits, `+`, `-` and `_`, put into the address as they are.
        folder (`str` or `os.PathLike`): Where they go; see the head of this module.
        num_workers (`int`, *optional*, defaults to 8): Downloads at a time.
        retries (`int`, *optional*, defaults to 4):
            Further attempts where another may succeed: the server's own errors, broken connections, bodies cut short.
        base_url (`str`, *optional*): A video's address is `BASE_URL/ID.mp4`.
        timeout (`float`, *optional*, defaults to 30): Seconds that a server may be silent.
        backoff (`float`, *optional*, defaults to 1): Seconds before the second attempt, doubled before each further.
    Returns:
        `DownloadReport`: The whole videos and the missing ones.
    Raises:
        ValueError: If an id could be no file's name, or a number is out of range.
    """
    video_ids = list(dict.fromkeys(video_ids))
    for video_id in video_ids:
        if not re.fullmatch(r"[\w+-]+", video_id, re.ASCII):
            raise ValueError(f"`video_ids` must hold letters, digits, `+`, `-` and `_` only, got {video_id!r}.")
    for name, value, least in (("num_workers", num_workers, 1), ("retries", retries, 0)):
        if value < least:
            raise ValueError(f"`{name}` must be at least {least}, got {value}.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrived, failed, stop = {}, {}, threading.Event()
    with WeakFileLock(folder / ".lock"), tqdm(desc="videos", unit="B", unit_scale=True, total=0) as bar:
        for leftover in folder.glob(".*.partial"):  # of a run that was killed
            leftover.unlink()
        manifest, missing = (_read_json(folder / name) for name in ("manifest.json", "missing.json"))
        fetch = _Fetcher(folder, base_url.rstrip("/"), retries, timeout, backoff, dict(manifest), stop, bar)
        # Its threads are daemons that nobody waits for: an interruption ends the run at once.
        with ThreadPool(min(num_workers, len(video_ids) or 1)) as pool:
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


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text()) if path.exists() else {}


def _update_json(path: Path, content: dict, new: dict) -> None:
    """Replace `content`, here and on disk, if `new` differs."""
    if new != content or not path.exists():
        content.clear()
        content.update(sorted(new.items()))
        write_json(path, content)


@dataclass(frozen=True)
class _Fetcher:
    """Brings one video at a time; called from several threads."""

    folder: Path
    base_url: str
    retries: int
    timeout: float
    backoff: float
    pins: dict[str, dict]
    stop: threading.Event
    bar: tqdm

    def __call__(self, video_id: str) -> tuple[str, dict | None, str | None]:
        """The id with its entry in the manifest, or with the reason why there is no video.

        An `ID.mp4` that is refused is put aside as `ID.rejected`, an earlier one of that name replaced: it may be the
        only copy, and its link dead.
        """
        path, part = self.folder / f"{video_id}.mp4", self.folder / f"{video_id}.part"
        url = f"{self.base_url}/{video_id}.mp4"
        if path.exists():
            try:
                return video_id, self._entry(video_id, url, path), None
            except _Failed:
                os.replace(path, path.with_suffix(".rejected"))
        try:
            self._persist(url, part)
            try:
                entry = self._entry(video_id, url, part)
                os.replace(part, path)
            finally:  # no beginning of the video either, if it is none or another
                _discard(part)
        except _Failed as failure:
            return video_id, None, str(failure)
        return video_id, entry, None

    def _entry(self, video_id: str, url: str, path: Path) -> dict:
        """Check a file against the manifest, or by decoding it if it is new there."""
        entry = {"url": url, "bytes": path.stat().st_size, "sha256": file_digest(path)}
        pin = self.pins.get(video_id)
        if pin is None:
            try:
                probe_video(path)
            except UnreadablePictures as error:
                raise _Failed(str(error)) from error
        elif pin["sha256"] != entry["sha256"]:
            raise _Failed(f"its sha256 is {entry['sha256']}, but {pin['sha256']} in manifest.json")
        return pin or entry

    def _persist(self, url: str, part: Path) -> None:
        """Fill the part file, in as many attempts as are allowed."""
        for attempt in range(self.retries + 1):
            if self.stop.wait(self.backoff * 2 ** (attempt - 1) if attempt else 0):
                raise _Stopped
            try:
                return self._transfer(url, part)
            except _Interrupted as interruption:
                reason = str(interruption)
        raise _Failed(f"{reason}, after {self.retries + 1} attempt(s)")

    def _transfer(self, url: str, part: Path) -> None:
        """Fill the part file in one attempt; on an interruption it keeps what came."""
        version_file = _version_file(part)
        size = part.stat().st_size if part.exists() else 0
        version = version_file.read_text() if size and version_file.exists() else ""
        # A server whose file is another by now answers `If-Range` with all of it instead of the rest.
        headers = {"Range": f"bytes={size}-", "If-Range": version} if version else {}
        with self._open(Request(url, headers=headers), part) as response:
            is_rest = response.status == 206
            if is_rest and not response.headers.get("Content-Range", "").startswith(f"bytes {size}-"):
                _discard(part)
                raise _Interrupted("the server sent another part than was asked for")
            length = response.headers.get("Content-Length")
            expected = None if length is None else int(length) + (size if is_rest else 0)
            self._advance(total=int(length or 0))
            with open(part, "ab" if is_rest else "wb", buffering=0) as file:
                if not is_rest:
                    version_file.write_text(_version(response))
                for chunk in self._chunks(response):
                    file.write(chunk)
                    self._advance(len(chunk))
        size = part.stat().st_size
        if expected not in (None, size):
            raise _Interrupted(f"{size} of {expected} bytes came")

    def _open(self, request: Request, part: Path) -> HTTPResponse:
        try:
            return urlopen(request, timeout=self.timeout)
        except HTTPError as error:
            error.close()
            reason = f"HTTP {error.code} {error.reason}"
            if error.code == 416:  # the remote file is no longer than the part, so the part is none of it
                _discard(part)
            if error.code < 500 and error.code not in _TRANSIENT_STATUS:
                raise _Failed(reason) from error
        except (OSError, HTTPException) as error:
            reason = str(error.reason if isinstance(error, URLError) else error)
        raise _Interrupted(reason)

    def _chunks(self, response: HTTPResponse) -> Iterator[bytes]:
        """The body; errors of the connection are told apart from those of the disk that it is written to."""
        while True:
            if self.stop.is_set():
                raise _Stopped
            try:
                chunk = response.read1(_CHUNK_BYTES)
            except (OSError, HTTPException) as error:
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


def _version(response: HTTPResponse) -> str:
    """What `If-Range` may name: a strong ETag or the date of the file; empty if there is neither."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified", "")


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _version_file(part).unlink(missing_ok=True)
