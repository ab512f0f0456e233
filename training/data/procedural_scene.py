# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Drawing one subject in one motion, with hems and hair that lag behind the body. Units as in `procedural_figure`."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from training.data.procedural_figure import BODY, CLOTH, HAIR, Canvas, Tube, head_paint, pattern_paint


@dataclass(frozen=True)
class Subject:
    """Looks of one person; lengths in figure heights, colours RGB in [0, 1]."""

    background: np.ndarray
    skin: np.ndarray
    hair: np.ndarray
    lips: np.ndarray
    shoes: np.ndarray
    hairline: float
    hair_length: float
    shoulder: float
    waist: float
    hip: float
    limb: float
    top_colors: np.ndarray
    top_pattern: str
    bottom_colors: np.ndarray
    bottom_pattern: str
    pattern_rows: float
    pattern_count: int
    sleeve: int  # 0 none, 1 short, 2 long
    bottom: str  # "trousers" | "shorts" | "skirt" | "dress"
    skirt_length: float
    skirt_flare: float
    # Lengths as multiples of those that all drawn subjects have.
    arm_length: float = 1.0
    leg_length: float = 1.0
    torso_length: float = 1.0


@dataclass(frozen=True)
class Motion:
    """Pose parameters of each frame, shape (F,) unless noted; angles in radians, `root_*` in figure heights."""

    yaw: np.ndarray
    root_x: np.ndarray
    root_y: np.ndarray
    arm_raise: np.ndarray  # (F, 2): right, left; sideways, 0 when hanging
    arm_swing: np.ndarray  # (F, 2): forward
    elbow: np.ndarray  # (F, 2)
    leg_swing: np.ndarray  # (F, 2)
    knee: np.ndarray  # (F, 2)
    pre_roll: int = 0  # leading frames that are simulated but not drawn

    def __len__(self):
        return len(self.yaw) - self.pre_roll


@dataclass(frozen=True)
class Frame:
    """One drawn frame: `image` [H,W,3], `iuv` [H,W,3] (V, U, I) and `layers` [H,W], all uint8."""

    image: np.ndarray
    iuv: np.ndarray
    layers: np.ndarray


def _pendulum(drive: np.ndarray, period: float, damping: float, substeps: int = 8) -> np.ndarray:
    """Return the displacement of a damped pendulum under `drive`, an acceleration (F,), by semi-implicit Euler."""
    omega, position, velocity, result = 2 * np.pi / period, 0.0, 0.0, []
    for acceleration in drive:
        for _ in range(substeps):
            velocity += (-(omega**2) * position - 2 * damping * omega * velocity - acceleration) / substeps
            position += velocity / substeps
        result.append(position)
    return np.array(result)


def simulate_loose(motion: Motion) -> dict[str, np.ndarray]:
    """Simulate the sideways displacement of hem and hair and the skirt's turn, shape (F + pre_roll,) each."""
    acceleration = np.gradient(np.gradient(motion.root_x))
    turning = np.gradient(np.gradient(motion.yaw))
    return {
        "hem": np.clip(4.2 * _pendulum(acceleration, 6.5, 0.45), -0.13, 0.13),
        "hem_turn": np.clip(2.5 * _pendulum(turning, 6.0, 0.5), -0.6, 0.6),
        "hair": np.clip(3.0 * _pendulum(acceleration, 5.5, 0.5) + 0.15 * _pendulum(turning, 5.5, 0.5), -0.09, 0.09),
    }


class _Skeleton:
    """Maps joints of one frame from body axes to camera axes: turned by `yaw` and moved by the root."""

    def __init__(self, motion: Motion, index: int):
        self.yaw = float(motion.yaw[index])
        self.root = np.array([motion.root_x[index], motion.root_y[index], 0.0])

    def place(self, x: float, y: float, z: float) -> np.ndarray:
        cos, sin = np.cos(self.yaw), np.sin(self.yaw)
        return np.array([x * cos + z * sin, y, -x * sin + z * cos]) + self.root


def _direction(side: int, outward: float, forward: float) -> np.ndarray:
    """Return the unit vector of a limb, which hangs down at angles (0, 0); `side` is -1 for the person's right."""
    return np.array([side * np.sin(outward), np.cos(outward) * np.cos(forward), np.cos(outward) * np.sin(forward)])


def _limb_tubes(subject: Subject, motion: Motion, index: int, skeleton: _Skeleton) -> list[Tube]:
    """Return arms with hands and legs with feet as tubes."""
    skin = pattern_paint("plain", np.stack([subject.skin] * 2), 2, 1)
    top = pattern_paint(subject.top_pattern, subject.top_colors, 4, subject.pattern_rows * 0.5)
    sleeves = [top if subject.sleeve > k else skin for k in (0, 1)]
    trousers = pattern_paint(subject.bottom_pattern, subject.bottom_colors, 4, subject.pattern_rows * 0.7)
    is_covered = subject.bottom in ("trousers", "shorts"), subject.bottom == "trousers"
    legs = [trousers if covered else skin for covered in is_covered]
    shoes = pattern_paint("plain", np.stack([subject.shoes] * 2), 2, 1)
    arm, leg, lower = subject.arm_length, subject.leg_length, 0.285 * (subject.torso_length - 1)
    tubes = []
    for k, (side, hand) in enumerate(((-1, "right"), (1, "left"))):
        raise_, swing, bend = motion.arm_raise[index, k], motion.arm_swing[index, k], motion.elbow[index, k]
        shoulder = np.array([side * (subject.shoulder - 0.005), 0.215, 0.0])
        elbow = shoulder + arm * 0.155 * _direction(side, raise_, swing)
        wrist = elbow + arm * 0.135 * _direction(side, raise_ + bend * 0.5, swing + bend * 0.5)
        tip = wrist + 0.035 * _direction(side, raise_ + bend * 0.5, swing + bend * 0.5)
        hip = np.array([side * 0.055, 0.475 + lower, 0.0])
        knee = hip + leg * 0.24 * _direction(side, 0.03, motion.leg_swing[index, k])
        ankle = knee + leg * 0.225 * _direction(side, 0.02, motion.leg_swing[index, k] - motion.knee[index, k])
        toe = ankle + np.array([side * 0.012, 0.015, 0.06])
        r = subject.limb
        for name, start, end, width, paint in (
            ("upper_arm", shoulder, elbow, (0.04 * r, 0.034 * r), sleeves[0]),
            ("lower_arm", elbow, wrist, (0.033 * r, 0.025 * r), sleeves[1]),
            ("hand", wrist, tip, (0.026 * r, 0.024 * r), skin),
            ("upper_leg", hip, knee, (0.062 * r, 0.046 * r), legs[0]),
            ("lower_leg", knee, ankle, (0.046 * r, 0.032 * r), legs[1]),
            ("foot", ankle, toe, (0.034, 0.03), shoes),
        ):
            joints = skeleton.place(*start), skeleton.place(*end)
            tubes.append(Tube(f"{name}_{hand}", *joints, width, width, skeleton.yaw, paint))
    return tubes


def _trunk_tubes(subject: Subject, skeleton: _Skeleton) -> list[Tube]:
    """Return torso, neck and head as tubes."""
    count, rows = subject.pattern_count, subject.pattern_rows
    top = pattern_paint(subject.top_pattern, subject.top_colors, count, rows)
    if subject.bottom in ("trousers", "shorts"):
        bottom = pattern_paint(subject.bottom_pattern, subject.bottom_colors, count, rows)
        upper, top = top, lambda phi, t: np.where((t > 0.72)[:, None], bottom(phi, t), upper(phi, t))
    knots = (0, 0.12, 0.35, 0.6, 0.85, 1)
    shoulder, waist, hip = subject.shoulder, subject.waist, subject.hip
    side = (shoulder * 0.75, shoulder, shoulder * 0.9, waist, hip, hip * 0.9)
    depth = (0.05, 0.06, 0.07, 0.058, 0.075, 0.07)
    top_of_torso, end = skeleton.place(0, 0.19, 0), skeleton.place(0, 0.2 + 0.285 * subject.torso_length, 0)
    torso = Tube(
        "torso", top_of_torso, end, (side[0], side[-1]), (0.05, 0.07), skeleton.yaw, top, cap=0.3,
        profile=(knots, side, depth),
    )  # fmt: skip
    skin = pattern_paint("plain", np.stack([subject.skin] * 2), 2, 1)
    neck = Tube(
        "neck", skeleton.place(0, 0.13, 0), skeleton.place(0, 0.185, 0), (0.034,) * 2, (0.034,) * 2, skeleton.yaw, skin
    )
    face = head_paint(subject.skin, subject.hair, subject.lips, subject.hairline)
    head = Tube(
        "head", skeleton.place(0, 0.066, 0.005), skeleton.place(0, 0.095, 0.008), (0.062, 0.056), (0.068, 0.062),
        skeleton.yaw, face,
    )  # fmt: skip
    return [neck, torso, head]


def _loose_tubes(subject: Subject, skeleton: _Skeleton, hem: float, hair: float) -> list[tuple[Tube, int]]:
    """Return skirt and long hair as tubes whose lower ends are moved sideways by `hem` and `hair`."""
    tubes = []
    if subject.bottom in ("skirt", "dress"):
        count, rows = subject.pattern_count, subject.pattern_rows
        paint = pattern_paint(subject.bottom_pattern, subject.bottom_colors, count, rows)
        end = skeleton.place(0, 0.4 + subject.skirt_length, 0) + np.array([hem, -0.4 * abs(hem), 0])
        bottom = subject.hip + subject.skirt_flare
        ends = (subject.waist + 0.012, bottom), (0.075, bottom * 0.8)
        middle = (subject.hip + 0.014 + subject.skirt_flare * 0.2, 0.092)
        profile = ((0, 0.3, 1), *((a, m, b) for (a, b), m in zip(ends, middle)))
        tube = Tube("skirt", skeleton.place(0, 0.4, 0), end, *ends, skeleton.yaw, paint, cap=0.12, profile=profile)
        tubes.append((tube, CLOTH))
    if subject.hair_length > 0:
        paint = pattern_paint("plain", np.stack([subject.hair] * 2), 2, 1)
        end = skeleton.place(0, 0.07 + subject.hair_length, -0.075) + np.array([hair, 0, 0])
        tube = Tube(
            "hair", skeleton.place(0, 0.07, -0.02), end, (0.07, 0.055), (0.058, 0.03), skeleton.yaw, paint, cap=0.6
        )
        tubes.append((tube, HAIR))
    return tubes


def render_clip(
    subject: Subject,
    motion: Motion,
    height: int,
    width: int,
    frame_indices: Iterable[int] | None = None,
    shaded: bool = True,
) -> list[Frame]:
    """Draw a subject's clip, or only the frames `frame_indices` (each 0 <= index < len(motion)).

    With `shaded=False` there is no light, and a colour is exactly that of the texture.
    """
    loose, frames = simulate_loose(motion), []
    for index in range(len(motion)) if frame_indices is None else frame_indices:
        if not 0 <= index < len(motion):
            raise ValueError(f"`frame_indices` must lie in [0, {len(motion)}), but hold {index}.")
        index += motion.pre_roll
        skeleton = _Skeleton(motion, index)
        canvas = Canvas(height, width, subject.background)
        for tube in (*_limb_tubes(subject, motion, index, skeleton), *_trunk_tubes(subject, skeleton)):
            canvas.draw(tube, BODY, shaded)
        for tube, layer in _loose_tubes(subject, skeleton, loose["hem"][index], loose["hair"][index]):
            canvas.draw(tube, layer, shaded, -loose["hem_turn"][index] if layer == CLOTH else 0.0)
        frames.append(Frame(*canvas.finish()))
    return frames
