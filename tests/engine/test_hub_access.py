import huggingface_hub
import pytest

from training.engine import hub_access
from training.engine.hub_access import check_reachable, why_unreachable


RULE = "be a pipeline's folder or a Hub id"


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def test_a_missing_model_without_a_connection_is_one_sentence():
    with pytest.raises(ValueError) as refused:
        check_reachable("model", "some/one", RULE)
    start = "`model` must be a pipeline's folder or a Hub id, got 'some/one': there is no such folder"
    assert str(refused.value) == f"{start}, and the Hub cannot be reached."


@pytest.mark.parametrize("name", ["a/b/c", "", "../a", "x" * 300, "a\0b", "x" * 5000])
def test_a_name_that_is_no_id_needs_no_connection(name, monkeypatch):
    monkeypatch.setattr(hub_access, "get_session", lambda: pytest.fail("the Hub was asked"))
    with pytest.raises(
        ValueError,
        match=f"got '{name[:1]}.*': there is no such folder, and it is no id on the Hub",
    ):
        check_reachable("model", name, RULE)


def test_folders_and_the_cache_are_used_without_a_connection(tmp_path):
    check_reachable("model", tmp_path, RULE)
    (tmp_path / "cache" / "models--some--one").mkdir(parents=True)
    check_reachable("model", "some/one", RULE)
    assert why_unreachable("some/one", "dataset") == "there is no such folder, and the Hub cannot be reached"
    (tmp_path / "cache" / "datasets--some--one").mkdir()
    assert why_unreachable("some/one", "dataset") is None
