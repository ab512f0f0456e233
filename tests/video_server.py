"""A video server on loopback that can fail in many ways.

with VideoServer({"id": video_bytes()}) as server:
    server.faults["id"] = ["cut", 500]     # faults of the first two answers; `itertools.repeat(500)` for all
    download_videos(["id"], folder, base_url=server.base_url)
"""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
from PIL import Image

from training.media.pictures import write_video


def video_bytes(seed=0, num_frames=6, size=(32, 48), fps=30):
    """Return a small mp4 of noise, which hardly compresses."""
    pixels = np.random.default_rng(seed).integers(0, 256, (num_frames, size[1], size[0], 3), dtype=np.uint8)
    with TemporaryDirectory() as folder:
        write_video([Image.fromarray(frame) for frame in pixels], Path(folder, "video.mp4"), fps)
        return Path(folder, "video.mp4").read_bytes()


def write_sound(path, codec):
    """Write a file with a sound and no pictures."""
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=44100)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


class VideoServer:
    """Server of `videos` (id -> bytes) with `faults` (id -> the next faults); `requests` lists `(path, Range)`.

    A fault is an HTTP status or one of these. `"cut"`: sends half of the content; `"anonymous cut"`: the same without
    an ETag; `"html"`: sends a web page; `"whole"`: ignores Range; `"shifted"`: announces another range than requested;
    `"stall"`: sends half, then waits for `released`; `"refuse"`: sends nothing; `"short"`: sends half of the requested
    bytes as if no more had been asked for; a function: sends the bytes that it yields, headers included.
    """

    def __init__(self, videos):
        self.videos, self.faults, self.requests = dict(videos), {}, []
        self.stalled, self.released = threading.Event(), threading.Event()
        self.at_once, self.most_at_once, self.lock = 0, 0, threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"videos": self}))
        self.server.daemon_threads = True
        self.base_url = f"http://127.0.0.1:{self.server.server_port}/I"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=[0.02], daemon=True).start()
        return self

    def __exit__(self, *_):
        self.released.set()
        self.server.shutdown()
        self.server.server_close()

    def next_fault(self, video_id):
        """Return the next fault of a video, `None` if there is none left."""
        with self.lock:
            faults = self.faults[video_id] = iter(self.faults.get(video_id, ()))
            return next(faults, None)

    def ranges(self, video_id):
        """Return the Range headers of all requests for a video."""
        return [asked for path, asked in self.requests if path == f"/I/{video_id}.mp4"]


class _Handler(BaseHTTPRequestHandler):
    videos = None

    def log_message(self, *_):
        pass

    def do_GET(self):
        with self.videos.lock:
            self.videos.requests.append((self.path, self.headers.get("Range")))
            self.videos.at_once += 1
            self.videos.most_at_once = max(self.videos.most_at_once, self.videos.at_once)
        try:
            self.answer(self.path.removeprefix("/I/").removesuffix(".mp4"))
        except ConnectionError:
            pass  # the client was killed
        finally:
            with self.videos.lock:
                self.videos.at_once -= 1

    def answer(self, video_id):
        fault = self.videos.next_fault(video_id)
        content = self.videos.videos.get(video_id)
        if isinstance(fault, int) or content is None:
            return self.send_error(fault or 404)
        if fault == "refuse":
            return
        if callable(fault):
            for part in fault():
                self.wfile.write(part)
            return
        if fault == "html":
            content = b"<html><body>Are you a robot?</body></html>"
        tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        start = 0
        if (asked := self.headers.get("Range")) and fault != "whole" and self.headers["If-Range"] == tag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= len(content):
            return self.send_error(416)
        body = content[start : (start + len(content)) // 2 if fault == "short" else None]
        self.send_response(206 if start or fault == "short" else 200)
        if start or fault == "short":
            first = start + (fault == "shifted")
            self.send_header("Content-Range", f"bytes {first}-{start + len(body) - 1}/{len(content)}")
        if fault != "anonymous cut":
            self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault not in ("cut", "anonymous cut", "stall"):
            self.wfile.write(body)
            return
        self.wfile.write(body[: len(body) // 2])
        if fault == "stall":
            self.videos.stalled.set()
            self.videos.released.wait(60)
