"""The data set's argument in errors, as each command names it."""

import pytest

from tests.tiny_components import get_dummy_pipeline
from training.data.pair_settings import PairSettings
from training.engine.errors import naming_data_set
from training.metrics.clips import load_clips
from training.subject.photos import open_pairs


def test_only_an_error_about_the_data_set_is_renamed():
    for start in ("The data set", "`dataset`"):
        with pytest.raises(ValueError, match="^`train_data` must be whole: `dataset`$"), naming_data_set("train_data"):
            raise ValueError(f"{start} must be whole: `dataset`")
    with pytest.raises(ValueError, match="^`seed` and The data set$"), naming_data_set("train_data"):
        raise ValueError("`seed` and The data set")


def test_evaluation_and_the_prior_of_stage_2_name_their_argument():
    rule = "must be a folder of parquet files or an id on the Hub, got 'a/b/c'"
    with pytest.raises(ValueError, match=f"^`dataset` {rule}"):
        load_clips("a/b/c", "test", 1, 1)
    with pytest.raises(ValueError, match=f"^`prior_dataset` {rule}"):
        open_pairs(get_dummy_pipeline(), None, 0, PairSettings(), "a/b/c", 0.5)
