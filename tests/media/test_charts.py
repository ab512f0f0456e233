"""Heat maps and line charts: numbers appear at the right place and in the right colour."""

import numpy as np
import pytest

from training.media import charts


def test_a_heat_map_colours_its_cells_by_their_numbers():
    drawn = charts.heat_map([[1.0, 2.0], [3.0, None]], ["a", "b"], ["x", "y"], digits=1)
    corners = [drawn.getpixel((drawn.width - dx, drawn.height - dy)) for dy in (90, 44) for dx in (170, 84)]
    assert corners == [(68, 1, 84), (33, 145, 140), (253, 231, 37), (160, 160, 160)]
    cell = np.asarray(drawn)[-44:, -170:-86]
    assert (cell == (0, 0, 0)).all(axis=-1).any(), "black figures on yellow"
    cell = np.asarray(drawn)[-90:-46, -170:-86]
    assert (cell == (255, 255, 255)).all(axis=-1).any(), "white figures on violet"
    assert charts.heat_map([[1.0, 1.0]], ["a", "b"], ["x"]).getpixel((drawn.width - 84, drawn.height - 48))
    with pytest.raises(ValueError, match="`values` must hold a number"):
        charts.heat_map([[None]], ["a"], ["x"])


def columns_of(picture, color):
    """Return the mean row of a colour's pixels, by column."""
    rows, columns = np.nonzero((np.asarray(picture)[48:] == color).all(axis=-1))
    return {int(column): rows[columns == column].mean() + 48 for column in np.unique(columns)}


def test_curves_go_through_their_points():
    """The axes run from 0 to 10 and from 0 to 4, on 56..540 by 48..292 pixels."""
    drawn = charts.line_chart({"rising": [(0, 0), (10, 4)], "plain": [(0, 1), (10, 1)]}, "title")
    assert drawn.size == (560, 320)
    rising, plain = columns_of(drawn, (31, 119, 180)), columns_of(drawn, (214, 39, 40))
    for column in (100, 298, 500):
        assert rising[column] == pytest.approx(292 - (column - 56) / 484 * 244, abs=1.5)
        assert plain[column] == pytest.approx(292 - 244 / 4, abs=1.5)
    names = np.asarray(drawn)[26:42]
    assert all((names == color).all(axis=-1).any() for color in ((31, 119, 180), (214, 39, 40))), "named in its colour"


@pytest.mark.parametrize(
    "low, high, ticks",
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0.013, 0.021, [0.012, 0.014, 0.016, 0.018, 0.02, 0.022]),
        (-3, 2, [-3, -2, -1, 0, 1, 2]),
        (5, 5, [5, 10]),
        (0, 0, [0, 1]),
    ],
)
def test_axes_have_round_numbers(low, high, ticks):
    assert charts._ticks(low, high) == ticks


def test_what_cannot_be_drawn_is_refused():
    for curves in ({}, {"empty": []}, {str(number): [(0, 0)] for number in range(7)}):
        with pytest.raises(ValueError, match="`curves` must hold 1 to 6 curves of points, got lengths"):
            charts.line_chart(curves, "title")
