"""Settings of samples: values out of range are refused."""

import pytest

from training.data.pair_settings import PairSettings


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"reference_frames": "last"}, "`reference_frames` must be one of any, first, got 'last'"),
        ({"fit": "stretch"}, "`fit` must be one of whole, crop, got 'stretch'"),
        ({"bad_rows": "keep"}, "`bad_rows` must be one of raise, skip, got 'keep'"),
        ({"pose_radius": -1}, "`pose_radius` must be at least 0, got -1"),
        ({"min_crop_scale": 0.0}, r"`min_crop_scale` must be within \(0, 1\], got 0.0"),
        ({"max_reference_distance": -1}, "`max_reference_distance` must be at least 0, .* got -1 with any"),
        (
            {"max_reference_distance": 3, "reference_frames": "first"},
            "`max_reference_distance` must be .* requires `reference_frames` any, got 3 with first",
        ),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        PairSettings(**settings)
