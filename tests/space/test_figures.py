"""Drawn figures of the page."""

import numpy as np
import pytest

from model_card.space import figures
from training.data.procedural_fashion import ProceduralFashionConfig


FIRST = next(iter(figures.PERSONS))


def test_persons_and_motions_are_those_of_the_test_split():
    """At least six of each, none twice; each photo is the first frame of its test clip, which shows its person."""
    for choices in (figures.PERSONS, figures.MOTIONS):
        assert len(choices) >= 6 and len(set(choices.values())) == len(choices)
    for name, number in figures.PERSONS.items():
        (frame,) = ProceduralFashionConfig().clip("test", number, number, [0])
        assert np.array_equal(figures.photo(name), frame.image)
    for name in figures.MOTIONS:
        moves = [np.asarray(pose) for pose in figures.poses(FIRST, name)]
        assert any((moves[0] != other).any() for other in moves[1:])


def heights_of_hands(pose):
    """Return the mean rows of the right and the left hand: parts 3 and 4."""
    return [np.nonzero(np.asarray(pose)[..., 2] == part)[0].mean() for part in (3, 4)]


def test_the_sliders_raise_their_own_arm_and_turn_the_body():
    hanging = figures.still_pose(FIRST, 0, 10, 10, 0)
    raised = figures.still_pose(FIRST, 0, 140, 10, 0)
    (right, left), (still_right, raised_left) = heights_of_hands(hanging), heights_of_hands(raised)
    assert raised_left < left - 20 and still_right == right
    front, back = 2, 1  # parts of the torso
    seen = [set(np.unique(np.asarray(figures.still_pose(FIRST, turn, 10, 10, 0))[..., 2])) for turn in (0, 180)]
    assert front in seen[0] and back not in seen[0] and back in seen[1] and front not in seen[1]


@pytest.mark.parametrize("angle", [float("nan"), 1e9, "a", None])
def test_an_angle_that_is_none_is_refused(angle):
    with pytest.raises(ValueError, match="`elbows` must be an angle"):
        figures.still_pose(FIRST, 0, 0, 0, angle)


@pytest.mark.parametrize("name", ["nobody", None, ["Striped jumper"]])
def test_an_unknown_person_is_refused(name):
    with pytest.raises(ValueError, match="`person` must be one of Striped jumper, "):
        figures.still_pose(name, 0, 0, 0, 0)
