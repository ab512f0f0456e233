# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Proportions of a body: its limbs in a picture, and a driver's limbs redrawn in the widths and lengths of a photo's.

An IUV picture is uint8 `[H, W, 3]` as V, U, I. Places are (x, y) in pixels.
"""

from dataclasses import dataclass

import numpy as np

from pipeline_dreampose import match_pieces, surface_pieces


@dataclass(frozen=True)
class Limb:
    """A limb of DensePose's parts. `kind` is what a left and a right one share; `parent` is the limb it hangs on.

    `charts` says of each part where the limb starts (U of 0 or 1), where the person's left is (V of 0 or 1), and
    whether it is the back; `None` if unknown. The head has charts of its own.
    """

    kind: str
    parent: str | None
    charts: dict[int, tuple[int, int, bool] | None]


# From back to front where two limbs meet; a parent comes before its children. Charts as in DensePose's output.
LIMBS = {
    "torso": Limb("torso", None, {2: (0, 0, False), 1: (0, 0, True)}),
    "head": Limb("head", "torso", {23: None, 24: None}),
    "upper_leg_right": Limb("upper_leg", "torso", {9: (1, 1, False), 7: (0, 0, True)}),
    "upper_leg_left": Limb("upper_leg", "torso", {10: (1, 0, False), 8: (0, 1, True)}),
    "lower_leg_right": Limb("lower_leg", "upper_leg_right", {13: (0, 0, False), 11: (0, 0, True)}),
    "lower_leg_left": Limb("lower_leg", "upper_leg_left", {14: (0, 1, False), 12: (1, 1, True)}),
    "foot_right": Limb("foot", "lower_leg_right", {6: None}),
    "foot_left": Limb("foot", "lower_leg_left", {5: None}),
    "upper_arm_right": Limb("upper_arm", "torso", {16: (0, 0, False), 18: (0, 0, True)}),
    "upper_arm_left": Limb("upper_arm", "torso", {15: (0, 1, False), 17: (0, 1, True)}),
    "lower_arm_right": Limb("lower_arm", "upper_arm_right", {20: (1, 1, False), 22: (0, 0, True)}),
    "lower_arm_left": Limb("lower_arm", "upper_arm_left", {19: (1, 0, False), 21: (0, 1, True)}),
    "hand_right": Limb("hand", "lower_arm_right", {3: None}),
    "hand_left": Limb("hand", "lower_arm_left", {4: None}),
}
_LIMB_OF = {code: name for name, limb in LIMBS.items() for code in limb.charts}
_KNOTS = {"torso": 5}  # of the widths along a limb; others have one width
_LIMITS = 0.6, 1.65  # a ratio outside is a wrong match
# Limbs that start beside the axis of their parent, and the ratios by which they may move.
_APART = {"upper_leg": (0.8, 1.25), "upper_arm": _LIMITS}
_HOLD = 1.0  # square pixels across by which a limb is held to its place beside the axis
_DEPTH = 0.6  # of a torso, as a share of its width


@dataclass(frozen=True)
class Axis:
    """The line through the middle of a limb: from `start`, at its parent, by `vector`, both (x, y) in pixels.

    `radius` is half of the limb's width, in pixels.
    """

    start: np.ndarray
    vector: np.ndarray
    radius: float = 0.0

    @property
    def length(self) -> float:
        return float(np.hypot(*self.vector))

    @property
    def frame(self) -> np.ndarray:
        """Unit vectors along and across the limb, as rows."""
        x, y = self.vector / self.length
        return np.array([[x, y], [-y, x]])

    @property
    def end(self) -> np.ndarray:
        return self.start + self.vector

    def within(self, parent: "Axis") -> np.ndarray:
        """Return where this axis starts: how far beyond the nearer end of the parent's, and how far across, pixels."""
        origin = parent.start if (self.start - parent.start) @ parent.vector < parent.length**2 / 2 else parent.end
        return (self.start - origin) @ parent.frame.T


def _surface(limb: Limb, code: int, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how far along a limb points of one part lie, in [0, 1], and their angle around it: 0 in front, pi/2 on
    the person's left."""
    if limb.kind == "head":
        return v, (u if code == 24 else u - 1) * np.pi
    start, left, is_back = limb.charts[code]
    towards_left = np.abs(1 - left - v)
    return np.abs(u - start), (1.5 - towards_left if is_back else towards_left - 0.5) * np.pi


def find_axes(iuv: np.ndarray) -> dict[str, Axis]:
    """Find the axes of the limbs that a picture shows well enough.

    A limb is taken for a tube: a point's place is its place along the axis and, across, the sine and cosine of its
    angle. So half a limb that another one hides does not move the axis.
    """
    axes, (y, x) = {}, np.nonzero(iuv[..., 2])
    points, places = iuv[y, x], np.stack([x, y], -1) + 0.5
    for name, limb in LIMBS.items():
        if limb.kind in ("hand", "foot"):
            continue
        rows = [np.zeros((0, 5))]
        for code in limb.charts:
            of_part = points[:, 2] == code
            along, angle = _surface(limb, code, *(points[of_part, 1::-1].T / 255))
            rows.append(np.column_stack([places[of_part], along, np.sin(angle), np.cos(angle)]))
        rows = np.concatenate(rows)
        if len(rows) < 8 or np.ptp(rows[:, 2]) < 0.35:
            continue
        design = np.concatenate([np.ones((len(rows), 1)), rows[:, 2:]], -1)
        hold = np.diag([0, 0, 0.01, 0.1]) * len(rows)  # the cosine varies little in a view from the front
        start, vector, *sides = np.linalg.solve(design.T @ design + hold, design.T @ rows[:, :2])
        if np.hypot(*vector) > 0.25 * len(rows) ** 0.5:  # else it points at the camera
            radius = np.hypot(*(np.stack(sides) @ [-vector[1], vector[0]])) / np.hypot(*vector)
            axes[name] = Axis(start, vector, float(radius))
    return axes


def facing(iuv: np.ndarray) -> float:
    """Return how far a body faces the camera or turns its back on it: 1 if it does, 0 if it shows its side."""
    angles = [
        _surface(LIMBS["torso"], code, *np.moveaxis(iuv[iuv[..., 2] == code][:, 1::-1] / 255, -1, 0))[1]
        for code in LIMBS["torso"].charts
    ]
    angles = np.concatenate(angles)
    return float(abs(np.cos(np.angle(np.exp(1j * angles).mean())))) if angles.size else 1.0


def _hats(along: np.ndarray, count: int) -> np.ndarray:
    """Return the weights of `count` knots, spread evenly over [0, 1], at positions `along`: `[N, count]`."""
    if count == 1:
        return np.ones((along.size, 1))
    return np.clip(1 - np.abs(np.clip(along, 0, 1)[:, None] * (count - 1) - np.arange(count)), 0, None)


@dataclass
class Proportions:
    """What makes a driver's body the photo's, by kind of limb.

    `lengths` and `widths` are ratios, those of widths at knots along the limb. A limb starts `across` times as far
    from its parent's axis, and `along` of the photo's pixels farther along it.
    """

    lengths: dict[str, float]
    widths: dict[str, np.ndarray]
    across: dict[str, float]
    along: dict[str, float]

    def then(self, rest: "Proportions") -> "Proportions":
        """Add what is left to change, measured after these were applied."""

        def multiply(name):
            mine, other = getattr(self, name), getattr(rest, name)
            limits = _APART if name == "across" else {}
            return {
                kind: np.clip(mine.get(kind, 1.0) * other.get(kind, 1.0), *limits.get(kind, _LIMITS))
                for kind in {**mine, **other}
            }

        ratios = {name: multiply(name) for name in ("lengths", "widths", "across")}
        along = {kind: self.along.get(kind, 0.0) + rest.along.get(kind, 0.0) for kind in {**self.along, **rest.along}}
        return Proportions(**ratios, along=along)


def compare(frames: list[np.ndarray], weights: np.ndarray, photo: np.ndarray, scale: float) -> Proportions:
    """Compare the photo's body with a driver's, whose frames are enlarged by `scale`; frames count by `weights`."""
    photo_axes, photo_pieces = find_axes(photo), _pieces(photo)
    lengths, normal, roots, along = {}, {}, {}, {}
    for iuv, weight in zip(frames, weights, strict=True):
        axes = find_axes(iuv)
        part, here, there, _, pixels = match_pieces(_pieces(iuv), photo_pieces)
        for name in axes.keys() & photo_axes.keys():
            limb, axis, other = LIMBS[name], axes[name], photo_axes[name]
            ratio = np.log(other.length / (scale * axis.length))
            lengths.setdefault(limb.kind, []).append((weight * min(axis.length, other.length) ** 2, ratio))
            of_limb = np.isin(part, list(limb.charts))
            local, aim = (here[of_limb] - axis.start) @ axis.frame.T, (there[of_limb] - other.start) @ other.frame.T
            hats = _hats(local[:, 0] / axis.length, _KNOTS.get(limb.kind, 1))
            design, w = hats * local[:, 1:] * scale, (weight * pixels[of_limb])[:, None]
            sums = normal.setdefault(limb.kind, [0, 0])
            sums[0], sums[1] = sums[0] + (w * design).T @ design, sums[1] + (w * design).T @ aim[:, 1]
            if limb.parent in axes and limb.parent in photo_axes:
                a, b = (axis.within(axes[limb.parent]) * scale, other.within(photo_axes[limb.parent]))
                roots.setdefault(limb.kind, []).append((weight * (a[1] ** 2 + _HOLD), weight * (a[1] * b[1] + _HOLD)))
                along.setdefault(limb.kind, []).append((weight, b[0] - a[0]))
    return Proportions(
        {kind: float(np.clip(np.exp(_mean(values)), *_LIMITS)) for kind, values in lengths.items()},
        {kind: _solve(*sums) for kind, sums in normal.items()},
        {
            kind: float(np.clip(np.divide(*np.sum(v, 0)[::-1]), *_LIMITS))
            for kind, v in roots.items()
            if kind in _APART
        },
        {kind: _mean(values) for kind, values in along.items()},
    )


def _pieces(iuv: np.ndarray) -> np.ndarray:
    return surface_pieces(iuv[..., 2], iuv[..., 1] / 255, iuv[..., 0] / 255)


def _mean(values: list[tuple[float, float]]) -> float:
    weights, ratios = zip(*values)
    return float(np.average(ratios, weights=weights))


def _solve(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Solve the normal equations of ratios, held a little to one ratio for all knots, and that one to 1."""
    total, ones = matrix.sum(), np.ones(len(matrix))
    one = (vector.sum() + 0.02 * total + 1e-9) / (1.02 * total + 1e-9)
    hold = 0.05 * np.trace(matrix) / len(matrix) + 1e-9
    return np.clip(np.linalg.solve(matrix + hold * np.eye(len(matrix)), vector + hold * one * ones), *_LIMITS)


@dataclass(frozen=True)
class Piece:
    """How one limb of one frame is redrawn: from `axis` in the frame to `start`, with ratios of length and widths."""

    axis: Axis
    start: np.ndarray
    length: float
    widths: np.ndarray

    def forward(self, point: np.ndarray) -> np.ndarray:
        along, across = (point - self.axis.start) @ self.axis.frame.T
        width = (_hats(np.array([along / self.axis.length]), len(self.widths)) @ self.widths)[0]
        return self.start + np.array([along * self.length, across * width]) @ self.axis.frame

    def backward(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return how far along and across the axis, in pixels of the frame, points of the new picture lie."""
        (cos, sin), x, y = self.axis.frame[0], x - self.start[0], y - self.start[1]
        along = (x * cos + y * sin) / self.length
        knots = np.linspace(0, self.axis.length, len(self.widths))
        return along, (y * cos - x * sin) / np.interp(along, knots, self.widths)

    def reach(self, spans: list[np.ndarray], height: int, width: int) -> tuple[slice, slice]:
        """Return the rows and columns of the new picture that show boxes of the frame, each the lowest and the highest
        (x, y), and the limb's own tube."""
        corners = np.array([(x, y) for span in spans for x in span[:, 0] for y in span[:, 1]])
        local = (corners - self.axis.start) @ self.axis.frame.T
        local = np.concatenate([local, [[0, -self.axis.radius], [self.axis.length, self.axis.radius]]])
        (a, c), (b, d) = (side * [self.length, self.widths.max()] for side in (local.min(0), local.max(0)))
        places = self.start + np.array([(a, c), (a, d), (b, c), (b, d)]) @ self.axis.frame
        low, high = np.clip([np.floor(places.min(0)), np.ceil(places.max(0))], 0, [width, height]).astype(int)
        return slice(low[1], high[1]), slice(low[0], high[0])


def plan(iuv: np.ndarray, proportions: Proportions, scale: float, shift: np.ndarray) -> dict[str, Piece]:
    """Plan how the limbs of a frame are redrawn, from the torso outwards; `shift` (x, y) is for the hips.

    A limb that is hardly to be seen follows its parent.
    """
    axes, pieces = find_axes(iuv), {}
    if "torso" not in axes:
        return {}
    for name, limb in LIMBS.items():
        shown = np.isin(iuv[..., 2], list(limb.charts))
        if not shown.any():
            continue
        parent = pieces.get(limb.parent, pieces.get("torso"))
        kind = {"hand": "lower_arm"}.get(limb.kind, limb.kind)
        widths = proportions.widths.get(kind, np.ones(1))
        if name == "torso":
            widths = _turned(widths, facing(iuv))
            length = scale * proportions.lengths.get(kind, 1.0)
            start = scale * axes[name].end + shift - length * axes[name].vector
            pieces[name] = Piece(axes[name], start, length, widths * scale)
        elif name in axes and limb.parent in axes:
            start = _joint(axes[name], parent, scale, proportions, kind)
            length = scale * proportions.lengths.get(kind, 1.0)
            pieces[name] = Piece(axes[name], start, length, widths * scale)
        else:
            y, x = np.nonzero(shown)
            nearest = np.argmin(np.square(x - parent.axis.end[0]) + np.square(y - parent.axis.end[1]))
            joint = np.array([x[nearest] + 0.5, y[nearest] + 0.5])
            axis = Axis(joint, parent.axis.vector)
            pieces[name] = Piece(axis, parent.forward(joint), scale * float(widths.mean()), widths * scale)
    return pieces


def _turned(widths: np.ndarray, facing: float) -> np.ndarray:
    """Return the ratios of a torso's widths in a turned body, whose depth is the driver's own."""
    depth = _DEPTH**2 * (1 - facing**2)
    return np.sqrt((np.square(widths * facing) + depth) / (facing**2 + depth))


def _joint(axis: Axis, parent: Piece, scale: float, proportions: Proportions, kind: str) -> np.ndarray:
    """Return where a limb starts in the new picture."""
    along, across = axis.within(parent.axis) * scale
    starts_at_end = (axis.start - parent.axis.start) @ parent.axis.vector >= parent.axis.length**2 / 2
    along += proportions.along.get(kind, 0.0) + starts_at_end * parent.length * parent.axis.length
    across *= proportions.across.get(kind, 1.0)
    return parent.start + np.array([along, across]) @ parent.axis.frame


def redraw(iuv: np.ndarray, pieces: dict[str, Piece], height: int, width: int, complete: bool = True) -> np.ndarray:
    """Redraw a frame limb by limb into `height` x `width` pixels.

    `complete` draws what another limb hides in the frame but not in the new picture, in the nearest values of the
    hidden limb, and closes joints that come apart.
    """
    padded, names, spans = np.pad(iuv, [(1, 1), (1, 1), (0, 0)]), list(LIMBS), _spans(iuv)
    limb_of = np.full(256, -1, np.int8)
    limb_of[list(_LIMB_OF)] = [names.index(name) for name in _LIMB_OF.values()]
    result, behind = np.zeros((2, height, width, 3), np.uint8)
    looked = {name: np.full((height, width), -1, np.int8) for name in pieces}
    for name, piece in pieces.items():
        near = [spans[other] for other in spans if name in (other, LIMBS[other].parent) or other == LIMBS[name].parent]
        box = piece.reach(near, height, width)
        along, across = piece.backward(np.arange(width)[box[1]] + 0.5, np.arange(height)[box[0], None] + 0.5)
        at = (piece.axis.start[k] + along * piece.axis.frame[0, k] + across * piece.axis.frame[1, k] for k in (0, 1))
        columns, rows = (np.clip(np.floor(k).astype(int) + 1, 0, side - 1) for k, side in zip(at, padded.shape[1::-1]))
        found = padded[rows, columns]
        looked[name][box] = limb_of[found[..., 2]]
        own = looked[name][box] == names.index(name)
        result[box][own] = found[own]
        inside = (along > 0) & (along < piece.axis.length) & (np.abs(across) < piece.axis.radius)
        hidden = inside & ~own & (looked[name][box] >= 0)
        if complete and hidden.any():
            found[~own] = 0
            own = _fill(found, hidden)[..., 2] > 0
            behind[box][own] = found[own]
    if not complete:
        return result
    result = np.where(result[..., 2:] > 0, result, behind)
    return _fill(result, _gaps(looked) & (result[..., 2] == 0))


def _gaps(looked: dict[str, np.ndarray]) -> np.ndarray:
    """Return the pixels `[H, W]` between a limb and its parent that each leaves to the other, and those in the torso.

    `looked` has for each limb the numbers of the limbs that lie in the frame where its pixels come from.
    """
    names, gap = list(LIMBS), np.zeros_like(next(iter(looked.values())), bool)
    for name, limbs in looked.items():
        parent = LIMBS[name].parent
        if parent in looked:
            gap |= (limbs == names.index(parent)) & (looked[parent] == names.index(name))
    inside = looked["torso"] == names.index("torso")
    between = np.logical_or.accumulate(inside, 1) & np.logical_or.accumulate(inside[:, ::-1], 1)[:, ::-1]
    return gap | between & (looked["torso"] >= 0) & ~inside


def _spans(iuv: np.ndarray) -> dict[str, np.ndarray]:
    """Return the lowest and highest x and y, `[2, 2]`, of the limbs that a picture shows."""
    y, x = np.nonzero(iuv[..., 2])
    parts, places = iuv[y, x, 2], np.stack([x, y], -1)
    shown = {name: places[np.isin(parts, list(limb.charts))] for name, limb in LIMBS.items()}
    return {name: np.stack([of.min(0), of.max(0) + 1]) for name, of in shown.items() if len(of)}


def _fill(iuv: np.ndarray, gap: np.ndarray) -> np.ndarray:
    """Fill the pixels of `gap` in place with their nearest neighbours, ring by ring, and return the picture."""
    if not gap.any():
        return iuv
    whole, box = iuv, tuple(slice(max(places.min() - 1, 0), places.max() + 2) for places in np.nonzero(gap))
    iuv, gap = iuv[box], gap[box]
    while gap.any():
        before = gap.sum()
        padded, empty = np.pad(iuv, [(1, 1), (1, 1), (0, 0)]), gap.copy()
        for rows, columns in ((slice(1, -1), slice(None, -2)), (slice(1, -1), slice(2, None)),
                              (slice(None, -2), slice(1, -1)), (slice(2, None), slice(1, -1))):  # fmt: skip
            neighbour = padded[rows, columns]
            take = empty & gap & (neighbour[..., 2] > 0)
            iuv[take] = neighbour[take]
            gap = gap & ~take
        if gap.sum() == before:
            break
    return whole
