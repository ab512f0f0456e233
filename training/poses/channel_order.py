# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Channel order of IUV pictures: which of R, G and B holds V, U and I. Options import it, so it imports no torch."""

from collections.abc import Sequence

import numpy as np


# The position of V, U and I in R, G and B. DensePose's IUV files and the TikTok data set's are V, U, I. A program that
# swaps red and blue writes I, U, V.
CHANNEL_ORDERS = {"vui": (0, 1, 2), "iuv": (2, 1, 0)}
NUM_CODES = 25  # part codes 0..24
_CHANNELS = ("red", "green", "blue")


def find_channel_order(frames: Sequence[np.ndarray], stated: str | None = None) -> tuple[str, str | None]:
    """Find the channel that holds the part codes, using all frames of a clip. A `stated` order decides if it fits.

    Returns:
        `tuple[str, str | None]`: A key of `CHANNEL_ORDERS`; if the pictures fit both and none is stated, `"vui"` with
            a notice.
    Raises:
        ValueError: If no channel can hold part codes, or the channel of the `stated` order cannot. Pictures of part
            colours, for example, have lost U and V.
    """
    from pipeline_dreampose import why_not_iuv

    highest = np.max([frame.max(axis=(0, 1)) for frame in frames], axis=0)
    fitting = [name for name, (_, _, parts) in CHANNEL_ORDERS.items() if highest[parts] < NUM_CODES]
    if stated in fitting or len(fitting) == 1:
        order = stated or fitting[0]
        if order not in fitting:
            channel = CHANNEL_ORDERS[order][2]
            raise ValueError(
                f"`channel_order` must fit the pictures, got {order!r}, for which the {_CHANNELS[channel]} channel"
                f" must hold part codes 0..{NUM_CODES - 1}, but it goes up to {highest[channel]}: {fitting[0]!r} fits."
            )
        return order, None
    if fitting:
        return fitting[0], f"both channel orders fit the pictures; {fitting[0]} is taken"
    for index, frame in enumerate(frames):
        if min(frame[..., 0].max(), frame[..., 2].max()) >= NUM_CODES:
            raise ValueError(
                f"`poses` must hold part codes 0..{NUM_CODES - 1} in the red or the blue channel, got up to "
                f"{frame[..., 0].max()} and {frame[..., 2].max()} in frame {index}. {why_not_iuv(frame)}"
            )
    raise ValueError("`poses` must have one channel order, got frames of V, U, I and frames of I, U, V.")
