# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""The page's drawn persons and motions, none of which the small model has seen in training."""

import functools

import numpy as np
from PIL import Image

from training.data.procedural_fashion import ProceduralFashionConfig
from training.data.procedural_scene import Motion, render_clip


# Numbers of the test split, which shares no person and no motion with the training split.
PERSONS = {
    "Striped jumper": 0,
    "Striped dress": 1,
    "Pink dress": 3,
    "Red trousers": 4,
    "Blue skirt": 5,
    "Teal dress": 6,
    "Green skirt": 9,
    "Red dress": 10,
}
MOTIONS = {"Sway": 1, "Raise one arm": 0, "Raise both arms": 5, "Turn round": 2, "Walk round": 6, "Turn and wave": 10}
FPS = 12  # of all that the page shows and writes
_CONFIG = ProceduralFashionConfig()
SIZE = _CONFIG.height, _CONFIG.width  # of the drawings in pixels, and of a model's frames that knows them


def check_choice(name: str, value: object, choices: dict[str, int]) -> int:
    """Return the number of a person or motion. Raise a `ValueError` that names the choices if there is none."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {value!r}.")
    return choices[value]


@functools.cache
def photo(person: str) -> Image.Image:
    """Return the photo of a person, who faces the camera."""
    number = check_choice("person", person, PERSONS)
    return Image.fromarray(_CONFIG.clip("test", number, number, [0])[0].image)


@functools.cache
def poses(person: str, motion: str) -> list[Image.Image]:
    """Return the IUV pictures of a person's body in a motion."""
    numbers = check_choice("person", person, PERSONS), check_choice("motion", motion, MOTIONS)
    return [Image.fromarray(frame.iuv) for frame in _CONFIG.clip("test", *numbers)]


def still_pose(person: str, turn: float, left_arm: float, right_arm: float, elbows: float) -> Image.Image:
    """Return the IUV picture of a person's body with these angles in degrees, 0 for a body that faces the camera.

    Raises:
        ValueError: If there is no such person, or an angle is not a number within a full turn.
    """
    number = check_choice("person", person, PERSONS)
    angles = {"turn": turn, "left_arm": left_arm, "right_arm": right_arm, "elbows": elbows}
    for name, value in angles.items():
        if not isinstance(value, (int, float)) or not -360 <= value <= 360:
            raise ValueError(f"`{name}` must be an angle from -360 to 360 degrees, got {value!r}.")
    yaw, left, right, bend = np.radians(list(angles.values()))
    still, both = np.zeros(2), np.zeros((2, 2))  # two frames, since loose cloth follows their differences
    motion = Motion(
        yaw=still + yaw, root_x=still, root_y=still, arm_raise=both + [right, left], arm_swing=both, elbow=both + bend,
        leg_swing=both, knee=both,
    )  # fmt: skip
    (frame,) = render_clip(_CONFIG.subject("test", number), motion, _CONFIG.height, _CONFIG.width, [0])
    return Image.fromarray(frame.iuv)
