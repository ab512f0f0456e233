# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Drawing a 2.5-D figure with numpy: picture, exact DensePose IUV and layers of one frame.

The body is a set of tubes with elliptical cross-sections between joints, seen by an orthographic camera. A formula
gives the visible surface point of a tube at every pixel, so depth, texture and UV are exact.

Legend: lengths are in units of the figure's height, `x` to the person's left, `y` down, `z` to the front; `X Y Z` are
the same after turning the body by `yaw` (`Z` towards the camera). `phi` is the azimuth on a tube's surface (0 front,
pi/2 the person's left), `t` in [0, 1] the position along it. `N` is the number of pixels covered by a tube.
"""

from dataclasses import dataclass
from typing import Callable

import numpy as np


FIGURE_HEIGHT = 0.9  # share of the picture's height
BACKGROUND, BODY, CLOTH, HAIR = 0, 1, 2, 3
"""Codes of the `layers` picture: background; skin and tight clothing; loose cloth; loose hair."""

_IS_LEG = np.isin(np.arange(25), [7, 8, 9, 10, 11, 12, 13, 14])

# Front and back chart of each tube, read from DensePose's output on fashion videos: (part, whether U grows from the
# tube's start to its end, whether V grows towards the person's left).
_CHARTS = {
    "torso": ((2, True, False), (1, True, False)),
    "upper_leg_right": ((9, False, True), (7, True, False)),
    "upper_leg_left": ((10, False, False), (8, True, True)),
    "lower_leg_right": ((13, True, False), (11, False, False)),
    "lower_leg_left": ((14, True, True), (12, False, True)),
    "upper_arm_right": ((16, True, False), (18, True, False)),
    "upper_arm_left": ((15, True, True), (17, True, True)),
    "lower_arm_right": ((20, False, True), (22, True, False)),
    "lower_arm_left": ((19, False, False), (21, True, True)),
}
_WHOLE_PARTS = {"hand_right": 3, "hand_left": 4, "foot_left": 5, "foot_right": 6}


@dataclass(frozen=True)
class Tube:
    """A tube from `start` to `end` ((X, Y, Z), camera axes) with half-axes `side` and `depth` at each end.

    `cap` is the length of the round ends relative to the radius; `paint(phi, t)` returns RGB in [0, 1], shape (N, 3).
    `profile` optionally replaces the two ends by (t, side, depth) knots.
    """

    name: str
    start: np.ndarray
    end: np.ndarray
    side: tuple[float, float]
    depth: tuple[float, float]
    yaw: float
    paint: Callable[[np.ndarray, np.ndarray], np.ndarray]
    cap: float = 1.0
    profile: tuple[tuple[float, ...], ...] | None = None


def chart_coordinates(name: str, phi: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return DensePose's part I (uint8) and U, V in [0, 1] of surface points, each of shape (N,), like `phi` and `t`.

    `name` is the tube: a key of `_CHARTS`, `"head"`, `"neck"`, a hand or a foot. `phi` may hold any number of turns.
    """
    phi = np.mod(phi + np.pi, 2 * np.pi) - np.pi
    if name in ("head", "neck"):
        left = phi >= 0
        u = np.where(left, phi / np.pi, 1 + phi / np.pi)
        v = 0.12 + 0.88 * (1 - t) if name == "head" else 0.12 * (1 - t)
        return np.where(left, 24, 23).astype(np.uint8), u, v
    if name in _WHOLE_PARTS:
        return np.full(phi.shape, _WHOLE_PARTS[name], np.uint8), (phi + np.pi) / (2 * np.pi), t
    front = np.abs(phi) <= np.pi / 2
    towards_left = np.where(front, phi / np.pi + 0.5, np.mod(1.5 - phi / np.pi, 2.0))
    part, u, v = (np.empty(phi.shape) for _ in range(3))
    for chosen, (index, u_with_t, v_with_left) in zip((front, ~front), _CHARTS[name]):
        part[chosen] = index
        u[chosen] = t[chosen] if u_with_t else 1 - t[chosen]
        v[chosen] = towards_left[chosen] if v_with_left else 1 - towards_left[chosen]
    return part.astype(np.uint8), u, v


def _surface(tube: Tube, X: np.ndarray, Y: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the visible surface of a tube at points of the picture: (inside mask, phi, t, Z, shade), in X's shape."""
    axis = tube.end[:2] - tube.start[:2]
    length = float(np.hypot(*axis))
    along_axis = axis / length if length > 1e-6 else np.array([0.0, 1.0])
    along = (X - tube.start[0]) * along_axis[0] + (Y - tube.start[1]) * along_axis[1]
    across = (X - tube.start[0]) * along_axis[1] - (Y - tube.start[1]) * along_axis[0]
    inner = np.clip(along, 0.0, length)
    t_inner = inner / max(length, 1e-6)
    if tube.profile is None:
        side = tube.side[0] + (tube.side[1] - tube.side[0]) * t_inner
        depth = tube.depth[0] + (tube.depth[1] - tube.depth[0]) * t_inner
    else:
        side, depth = (np.interp(t_inner, tube.profile[0], knots) for knots in tube.profile[1:])
    cos, sin = np.cos(tube.yaw), np.sin(tube.yaw)
    width = np.sqrt((side * cos) ** 2 + (depth * sin) ** 2)
    beyond = (along - inner) / (tube.cap * width)
    squeeze = np.sqrt(np.clip(1 - beyond**2, 0, None))
    ratio = across / np.maximum(width * squeeze, 1e-9)
    inside = np.abs(ratio) < 1
    ratio = np.clip(ratio, -1, 1)
    phi = np.arcsin(ratio) - np.arctan2(depth * sin, side * cos)
    Z = tube.start[2] + (tube.end[2] - tube.start[2]) * t_inner
    Z = Z + squeeze * (-side * np.sin(phi) * sin + depth * np.cos(phi) * cos)
    ends = tube.cap * (tube.side[0] + tube.side[1]) / 2
    t = np.clip((along + ends) / (length + 2 * ends), 0, 1)
    shade = 0.72 + 0.28 * np.sqrt(1 - ratio**2) * squeeze
    return inside, phi, t, Z, shade


class Canvas:
    """Depth-buffered drawing of tubes on a `background`, RGB in [0, 1], of `height` x `width` pixels.

    Each pixel has `supersampling` x `supersampling` samples, an odd number, so that its centre is a sample, from which
    IUV comes unmixed.
    """

    def __init__(self, height, width, background, supersampling=3):
        if supersampling % 2 == 0:
            raise ValueError(
                f"`supersampling` must be odd, so that a sample lies in each centre, but is {supersampling}."
            )
        self.supersampling, shape = supersampling, (height * supersampling, width * supersampling)
        step = 1 / (FIGURE_HEIGHT * shape[0])
        self.Y = (np.arange(shape[0]) + 0.5) * step - (1 / FIGURE_HEIGHT - 1) / 2
        self.X = (np.arange(shape[1]) + 0.5 - shape[1] / 2) * step
        self.rgb = np.broadcast_to(background, (*shape, 3)).astype(np.float32).copy()
        self.Z = np.full(shape, -np.inf)
        self.layer = np.zeros(shape, np.uint8)
        self.iuv = np.zeros((*shape, 3), np.uint8)

    def draw(self, tube: Tube, layer: int, shaded: bool = True, texture_turn: float = 0.0) -> None:
        """Draw a tube where it is nearest. Loose layers leave IUV unchanged, and cloth always hides the legs.

        `texture_turn` (radians) turns a loose tube's texture relative to the body.
        """
        reach = max(1.0, tube.cap) * max(tube.side + tube.depth)
        low, high = np.minimum(tube.start, tube.end)[:2] - reach, np.maximum(tube.start, tube.end)[:2] + reach
        columns = slice(*np.searchsorted(self.X, (low[0], high[0])))
        rows = slice(*np.searchsorted(self.Y, (low[1], high[1])))
        X, Y = np.meshgrid(self.X[columns], self.Y[rows])
        if X.size == 0:
            return
        inside, phi, t, Z, shade = _surface(tube, X, Y)
        visible = inside & (Z > self.Z[rows, columns])
        if layer == CLOTH:
            visible |= inside & _IS_LEG[self.iuv[rows, columns, 2]] & (self.layer[rows, columns] == BODY)
        phi, t = phi[visible], t[visible]
        color = tube.paint(phi + texture_turn, t)
        self.rgb[rows, columns][visible] = color * shade[visible, None] if shaded else color
        self.Z[rows, columns][visible] = Z[visible]
        self.layer[rows, columns][visible] = layer
        if layer == BODY:
            part, u, v = chart_coordinates(tube.name, phi, t)
            # U and V of a body start at 1, since 0 means nobody in a pose map.
            uv = np.clip(np.rint(np.stack([v, u], -1) * 255), 1, 255).astype(np.uint8)
            self.iuv[rows, columns][visible] = np.concatenate([uv, part[:, None]], -1)

    def finish(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the picture (mean of the samples) [H,W,3], IUV (V, U, I) [H,W,3] and layers [H,W], all uint8."""
        s = self.supersampling
        height, width = self.layer.shape[0] // s, self.layer.shape[1] // s
        image = self.rgb.reshape(height, s, width, s, 3).mean((1, 3))
        centre = self.layer[s // 2 :: s, s // 2 :: s]
        touched = self.layer.reshape(height, s, width, s).max((1, 3))
        layers = np.where(centre > 0, centre, touched)
        return np.rint(image * 255).astype(np.uint8), self.iuv[s // 2 :: s, s // 2 :: s].copy(), layers


def pattern_paint(kind: str, colors: np.ndarray, count: int, rows: float) -> Callable:
    """Return the `paint` function of a texture that is fixed to the surface, in two `colors` (2, 3), RGB in [0, 1].

    There are `count` stripes or cells around the tube, even, so that the pattern closes at the back, and `rows` of
    them along it.
    """

    def paint(phi, t):
        around, along = phi / (2 * np.pi) * count, t * rows
        if kind == "plain":
            second = np.zeros(phi.shape, bool)
        elif kind == "horizontal":
            second = np.mod(along, 2) >= 1
        elif kind == "vertical":
            second = np.mod(around + 0.5, 2) >= 1
        elif kind == "checks":
            second = (np.mod(around + 0.5, 2) >= 1) ^ (np.mod(along, 2) >= 1)
        elif kind == "dots":
            second = (np.mod(around / 2 + 0.5, 1) - 0.5) ** 2 + (np.mod(along / 2, 1) - 0.5) ** 2 < 0.09
        else:
            raise ValueError(f"`kind` must be plain, horizontal, vertical, checks or dots, but is {kind!r}.")
        return np.where(second[:, None], colors[1], colors[0])

    return paint


def head_paint(skin: np.ndarray, hair: np.ndarray, lips: np.ndarray, hairline: float) -> Callable:
    """Return the `paint` function of a head: eyes and mouth in front; hair on top, at the sides and at the back."""

    def paint(phi, t):
        phi = np.mod(phi + np.pi, 2 * np.pi) - np.pi
        color = np.where(((np.abs(phi) > 1.15) | (t < hairline))[:, None], hair, skin)
        eyes = (np.abs(np.abs(phi) - 0.45) < 0.2) & (np.abs(t - 0.5) < 0.06)
        mouth = (np.abs(phi) < 0.33) & (np.abs(t - 0.76) < 0.045)
        color = np.where(eyes[:, None], np.float64(0.12), color)
        return np.where(mouth[:, None], lips, color)

    return paint
