"""Running `animate.py` in process: the frames that it writes into the video, and a kill while it renders."""

import pytest

import animate
from training.media import animation


class Killed(Exception):
    """What ends a run in the middle."""


def animate_frames(words):
    """Run the command and return the frames that it wrote into the video, before they were enlarged."""
    frames, render = [], animation.render_frames

    def recorded(*arguments, **options):
        for frame in render(*arguments, **options):
            frames.append(frame)
            yield frame

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(animation, "render_frames", recorded)
        animate.main(animate.parse_args([str(word) for word in words]))
    return frames
