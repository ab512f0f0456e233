# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""The sound of a clip: reading a part of it, and writing it into a video. Samples are float32 `[2, N]` in [-1, 1]."""

import itertools
from fractions import Fraction

import av
import numpy as np


SAMPLE_RATE = 48000
_BLOCK = 1024  # samples that AAC encodes together
_GAP = SAMPLE_RATE // 25


def check_sound(container: av.container.InputContainer, argument: str, path: object) -> None:
    """Raise a `ValueError` that names the `argument` if an opened video has no sound that can be decoded."""
    streams = container.streams.audio
    if not streams or streams[0].codec_context is None:
        reason = "no sound" if not streams else "sound in a codec that FFmpeg does not know"
        raise ValueError(f"`sound` must be given with a `{argument}` that has sound, got {str(path)!r} with {reason}.")


def read_sound(container: av.container.InputContainer, start: float, duration: float) -> np.ndarray:
    """Read the sound of an opened video as stereo, from `start` on, for `duration`, both in seconds.

    Time 0 is that of the video's first frame. Where the video has no sound, the samples are 0.
    """
    video = container.streams.video[0]
    start += float((video.start_time or 0) * video.time_base)
    samples = np.zeros((2, round(duration * SAMPLE_RATE)), np.float32)
    resampler = av.AudioResampler(format="fltp", layout="stereo", rate=SAMPLE_RATE)
    place = None
    for frame in itertools.chain(container.decode(audio=0), [None]):  # None: what the resampler still holds
        for part in resampler.resample(frame):
            if place is None or part.time is not None:
                stated = round(((part.time or 0) - start) * SAMPLE_RATE)
                # Some containers round times to milliseconds, so only a gap moves the sound.
                place = stated if place is None or abs(stated - place) > _GAP else place
            first, last = max(place, 0), min(place + part.samples, samples.shape[1])
            if first < last:
                samples[:, first:last] = part.to_ndarray()[:, first - place : last - place]
            place += part.samples
            if place >= samples.shape[1]:
                return samples
    return samples


class SoundWriter:
    """Writes samples as AAC into a video that is being written, a piece at a time."""

    def __init__(self, container: av.container.OutputContainer, samples: np.ndarray):
        self.container, self.samples, self.place = container, samples, 0
        self.stream = container.add_stream("aac", rate=SAMPLE_RATE, layout="stereo")
        self.stream.options = {"flags": "+bitexact"}

    def write_until(self, seconds: float) -> None:
        """Write the samples from the last call's end to `seconds`, in whole blocks of the codec."""
        end = min(round(seconds * SAMPLE_RATE), self.samples.shape[1])
        while self.place < end:
            block = np.ascontiguousarray(self.samples[:, self.place : self.place + _BLOCK])
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="stereo")
            frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, self.place, Fraction(1, SAMPLE_RATE)
            self.container.mux(self.stream.encode(frame))
            self.place += block.shape[1]

    def close(self) -> None:
        """Write the rest."""
        self.write_until(self.samples.shape[1] / SAMPLE_RATE)
        self.container.mux(self.stream.encode())
