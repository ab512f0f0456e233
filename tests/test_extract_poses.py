"""Making poses for `animate.py` from a clip, with a DensePose that the tests script themselves."""

import functools
import sys
from typing import Tuple

import numpy as np
import pytest
import torch
from huggingface_hub import hf_hub_download
from PIL import Image
from torch import nn

from tests.densepose_exports import ChannelsFirstExport, DictExport, TupleExport, charts
from tests.hub_server import Hub
from training import extract_poses
from training.data.procedural_fashion import ProceduralFashionConfig
from training.media.pictures import write_video
from training.poses import estimator
from training.poses.detections import Detection
from training.poses.estimator import DensePoseEstimator
from training.poses.pose_files import read_poses


HEIGHT, WIDTH = 80, 64


@pytest.fixture(scope="module")
def drawn():
    """Frames of a drawn clip: pictures and their IUV."""
    return ProceduralFashionConfig(name="figure", height=HEIGHT, width=WIDTH, num_frames=6).clip(
        "test", 0, 0, [0, 2, 4]
    )


@pytest.fixture(scope="module", params=[DictExport, ChannelsFirstExport, TupleExport])
def densepose(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("densepose") / "model.pt"
    torch.jit.script(request.param()).save(path)
    return path


def inside(iuv):
    """Empty an IUV picture outside the box that the exports return."""
    result = np.zeros_like(iuv)
    result[2:78, 4:60] = iuv[2:78, 4:60]
    return result


def run(*words):
    extract_poses.main(extract_poses.parse_args([str(word) for word in words]))


def test_from_pixels_to_iuv(densepose, drawn, tmp_path):
    (tmp_path / "frames").mkdir()
    for index, frame in enumerate(drawn):
        Image.fromarray(frame.iuv).save(tmp_path / "frames" / f"{index}.png")
    run("--input", tmp_path / "frames", "--densepose", densepose, "--output_dir", tmp_path / "poses")
    poses = read_poses(tmp_path / "poses")
    assert len(poses) == len(drawn)
    for pose, frame in zip(poses, drawn, strict=True):
        assert np.abs(np.asarray(pose).astype(int) - inside(frame.iuv)).max() <= 1
        np.testing.assert_array_equal(np.asarray(pose)[..., 2], inside(frame.iuv)[..., 2])


def test_a_video_is_read_and_gaps_are_filled(tmp_path, drawn, capsys):
    torch.jit.script(TupleExport()).save(tmp_path / "model.pt")
    black = Image.new("RGB", (WIDTH, HEIGHT))
    # A video codec changes part codes, so the person is one plain part.
    body = Image.new("RGB", (WIDTH, HEIGHT), (120, 120, 10))
    write_video([black, body, body, black, body], tmp_path / "dance.mp4")
    words = ["--input", tmp_path / "dance.mp4", "--densepose", tmp_path / "model.pt", "--output_dir", tmp_path / "out"]
    run(*words)
    assert "filled from neighbouring frames: [0, 3]" in capsys.readouterr().out
    assert len(read_poses(tmp_path / "out")) == 5
    with pytest.raises(ValueError, match="`max_gap` must be at least 1 for the gap at frame 0, got 0"):
        run(*words, "--max_gap", 0)


def test_iuv_pictures_in_another_channel_order_are_reordered(tmp_path, drawn, capsys):
    (tmp_path / "turned").mkdir()
    for index, frame in enumerate(drawn):
        Image.fromarray(np.ascontiguousarray(frame.iuv[..., ::-1])).save(tmp_path / "turned" / f"{index}.png")
    run("--input", tmp_path / "turned", "--output_dir", tmp_path / "poses")
    for pose, frame in zip(read_poses(tmp_path / "poses"), drawn, strict=True):
        np.testing.assert_array_equal(pose, frame.iuv)
    assert "3 IUV frames" in capsys.readouterr().out
    with pytest.raises(ValueError, match="`channel_order` must fit the pictures, got 'vui', .* 'iuv' fits"):
        run("--input", tmp_path / "turned", "--output_dir", tmp_path / "stated", "--channel_order", "vui")
    assert not (tmp_path / "stated").exists()


@pytest.mark.parametrize("order", ["vui", "iuv"])
def test_a_stated_channel_order_decides_where_both_fit(tmp_path, order):
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[1, 1] = 7, 200, 3
    save_frames(tmp_path / "iuv", {"0": pixels})
    run("--input", tmp_path / "iuv", "--output_dir", tmp_path / "poses", "--channel_order", order)
    expected = pixels if order == "vui" else pixels[..., ::-1]
    np.testing.assert_array_equal(read_poses(tmp_path / "poses")[0], expected)


def test_the_input_is_never_overwritten(tmp_path, drawn):
    Image.fromarray(drawn[0].iuv).save(tmp_path / "00000.png")
    (tmp_path / "dance.mp4").touch()
    for source in (tmp_path, tmp_path / "dance.mp4"):
        with pytest.raises(ValueError, match="`output_dir` must spare what is read, but .* writes over"):
            run("--input", source, "--output_dir", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000.png", "dance.mp4"]


def test_maps_without_parts_stay_maps(tmp_path):
    (tmp_path / "release").mkdir()
    maps = np.random.default_rng(0).random((2, 2, 5, 4))
    for number, array in enumerate(maps):
        np.save(tmp_path / "release" / f"frame_{number}_densepose.npy", array)
    run("--input", tmp_path / "release", "--output_dir", tmp_path / "poses")
    np.testing.assert_array_equal(read_poses(tmp_path / "poses" / "poses.npy").numpy(), maps.astype(np.float32))
    for words, name in ((["--median", "1"], "median"), (["--channel_order", "iuv"], "channel_order")):
        with pytest.raises(ValueError, match=f"`{name}` must not be given for maps of U and V without part codes"):
            run("--input", tmp_path / "release", *words, "--output_dir", tmp_path / "calm")
    run("--input", tmp_path / "release", "--output_dir", tmp_path / "poses")  # the same command may run again
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "poses.npy").write_bytes(b"the user's")
    with pytest.raises(ValueError, match="`output_dir` must replace only files of earlier runs, got .*poses.npy'"):
        run("--input", tmp_path / "release", "--output_dir", tmp_path / "own")
    assert (tmp_path / "own" / "poses.npy").read_bytes() == b"the user's"


def save_frames(folder, frames):
    folder.mkdir()
    for name, iuv in frames.items():
        Image.fromarray(iuv).save(folder / f"{name}.png")


def test_numbers_that_a_folder_leaves_out_are_filled_up_to_the_largest_gap(tmp_path, drawn, capsys):
    save_frames(tmp_path / "iuv", {f"frame{n}_IUV": drawn[n % 3].iuv for n in (0, 1, 5)})
    words = ["--input", tmp_path / "iuv", "--output_dir", tmp_path / "poses"]
    with pytest.raises(
        ValueError, match=r"up to `max_gap` \(2\) in a row.* got no frames 2..4 after 'frame1_IUV.png'"
    ):
        run(*words, "--max_gap", 2)
    assert not (tmp_path / "poses").exists()
    run(*words, "--max_gap", 3)
    expected = [drawn[n % 3].iuv for n in (0, 1, 1, 1, 5, 5)]
    np.testing.assert_array_equal(read_poses(tmp_path / "poses"), expected)


def test_numbers_that_a_clip_leaves_out_show_nobody(tmp_path, drawn, capsys):
    torch.jit.script(TupleExport()).save(tmp_path / "model.pt")
    save_frames(tmp_path / "clip", dict.fromkeys((0, 1, 3), drawn[0].iuv))
    words = ["--input", tmp_path / "clip", "--densepose", tmp_path / "model.pt", "--output_dir", tmp_path / "poses"]
    with pytest.raises(ValueError, match="`input` must be consecutive frames, .* got no frames 2..2 after '1.png'"):
        run(*words, "--max_gap", 0)
    run(*words)
    assert "filled from neighbouring frames: [2]" in capsys.readouterr().out
    assert len(read_poses(tmp_path / "poses")) == 4


def test_a_size_that_is_too_small_for_the_people_is_refused(tmp_path, monkeypatch):
    person = Detection((10, 5, 50, 75), np.full((70, 40, 3), 9, np.uint8), 1.0)
    monkeypatch.setattr(
        "training.poses.clip_poses.read_dump", lambda path, max_gap: [("0.png", [person]), ("1.png", [])]
    )
    words = ["--input", "dump.pkl", "--output_dir", tmp_path / "poses"]
    with pytest.raises(ValueError, match=r"`size` must be at least \[75, 50\], since .*, got \[64, 80\]"):
        run(*words, "--size", 64, 80)
    with pytest.raises(ValueError, match=r"`size` must have up to 89478485 pixels, got \[20000, 20000\]"):
        run(*words, "--size", 20000, 20000)
    run(*words, "--size", 80, 64)
    for pose in read_poses(tmp_path / "poses"):  # the second frame was filled
        np.testing.assert_array_equal(np.asarray(pose)[5:75, 10:50], person.iuv)


class NumberExport(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image


class HalfExport(TupleExport):
    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.ones(1, dtype=torch.float16))

    def forward(
        self, image: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        coarse, fine, u, v = charts(image.permute(1, 2, 0).float()[2:78, 4:60])
        # This fails if the weights are in half precision and the picture is not.
        kernel = self.one[None, :, None, None].expand(u.shape[1], 1, 1, 1)
        u = nn.functional.conv2d(u, kernel, groups=u.shape[1])
        return torch.tensor([[4.0, 2.0, 60.0, 78.0]]), coarse, fine, u, v


def test_a_model_in_half_precision_runs_on_a_cpu(drawn, tmp_path):
    torch.jit.script(HalfExport()).save(tmp_path / "half.pt")
    (person,) = DensePoseEstimator(tmp_path / "half.pt")(Image.fromarray(drawn[0].iuv))
    np.testing.assert_array_equal(person.iuv[..., 2], drawn[0].iuv[2:78, 4:60, 2])


def test_a_model_can_be_on_the_hub(densepose, drawn, tmp_path, monkeypatch):
    with Hub() as hub:
        hub.commit("models/someone/densepose", {"exports/model.pt": densepose.read_bytes()})
        download = functools.partial(hf_hub_download, endpoint=hub.endpoint, cache_dir=tmp_path)
        monkeypatch.setattr(estimator, "hf_hub_download", download)
        monkeypatch.setattr(estimator, "check_reachable", lambda *_: None)
        people = DensePoseEstimator("someone/densepose/exports/model.pt")(Image.fromarray(drawn[0].iuv))
        with pytest.raises(ValueError, match="`densepose` must be .* got 'someone/densepose/none.pt': .*404"):
            DensePoseEstimator("someone/densepose/none.pt")
    assert [person.box for person in people] == [(4, 2, 60, 78)]


def test_torchvision_is_imported_where_it_is_installed(densepose, tmp_path, monkeypatch):
    """Exports use its operators, which importing it registers. The project does not require it."""
    (tmp_path / "torchvision.py").write_text("")
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    DensePoseEstimator(densepose)
    assert "torchvision" in sys.modules


def test_a_missing_operator_of_torchvision_says_how_to_install_it(densepose, monkeypatch):
    def load(*_, **__):
        raise RuntimeError("Unknown builtin op: torchvision::nms.")

    monkeypatch.setattr(torch.jit, "load", load)
    with pytest.raises(
        ValueError, match="is not: Unknown .* `make densepose` installs the torchvision that fits torch"
    ):
        DensePoseEstimator(densepose)


def test_messages_name_the_options_as_they_are_typed(tmp_path, drawn):
    save_frames(tmp_path / "colours", {"0": np.full((4, 4, 3), 90, np.uint8)})
    (tmp_path / "dump.pkl").write_bytes(b"no dump")
    torch.jit.script(TupleExport()).save(tmp_path / "model.pt")
    save_frames(tmp_path / "empty", {"0": np.zeros((HEIGHT, WIDTH, 3), np.uint8)})
    for words, message in (
        (["--input", tmp_path / "none"], "`input` must be a folder of IUV pictures, .* which does not exist"),
        (["--input", tmp_path / "colours"], "`input` must hold part codes"),
        (["--input", tmp_path / "dump.pkl", "--size", 4, 4], "`input` must be"),
        (
            ["--input", tmp_path / "empty", "--densepose", tmp_path / "model.pt"],
            "`input` must show a person",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            run(*words, "--output_dir", tmp_path / "o")


def test_a_name_that_is_too_long_is_named_like_one_that_does_not_exist(tmp_path):
    long = "x" * 300
    for words, message in (
        (["--input", long], "`input` must be a folder of IUV pictures, .* which does not exist"),
        (["--input", f"{long}.pkl", "--size", 4, 4], "`input` must be a file, .* which does not exist"),
        (["--input", "a.mp4", "--densepose", long], "`densepose` must be a TorchScript file, .* which does not exist"),
    ):
        with pytest.raises(ValueError, match=message):
            run(*words, "--output_dir", tmp_path / "o")
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(ValueError, match="`densepose` must be a TorchScript file, .*folder.pt', which is not a file"):
        DensePoseEstimator(tmp_path / "folder.pt")


def test_bad_input_is_one_clear_error(tmp_path, capsys):
    with pytest.raises(ValueError, match="`densepose` must be a TorchScript file, .* got .*missing.pt'"):
        DensePoseEstimator(tmp_path / "missing.pt")
    (tmp_path / "text.pt").write_text("no model")
    with pytest.raises(ValueError, match="`densepose` must be a TorchScript DensePose; .*text.pt' is not"):
        DensePoseEstimator(tmp_path / "text.pt")
    torch.jit.script(NumberExport()).save(tmp_path / "number.pt")
    with pytest.raises(ValueError, match="`densepose` must return a dict or a tuple .* but returns Tensor"):
        DensePoseEstimator(tmp_path / "number.pt")
    torch.jit.script(DictExport()).save(tmp_path / "model.pt")
    with pytest.raises(ValueError, match="`input` must be a folder or a readable video, got .*text.pt"):
        words = ["--input", tmp_path / "text.pt", "--densepose", tmp_path / "model.pt", "--output_dir", tmp_path / "o"]
        run(*words)
    for words, message in (
        (["--input", "a.pkl"], "`--size HEIGHT WIDTH` must be given for a dump, which does not store it: a.pkl"),
        (["--input", "a.pkl", "--size", "0", "4"], "`--size` must be at least 1 pixel, got [0, 4]"),
        (["--input", "a", "--max_gap", "-1"], "`max_gap` must be at least 0, got -1"),
        (["--input", "a", "--person", "first"], "invalid choice: 'first'"),
        (["--input", "a", "--person", "score"], "`--person` must be given only with `--densepose` or a dump"),
        (["--input", "a", "--person", "largest"], "`--person` must be given only with `--densepose` or a dump"),
        (["--input", "a", "--size", "4", "4"], "`--size` must be given only with a dump (.pkl) as `--input`, got [4"),
        (["--input", "a", "--device", "cpu"], "`--device` must be given only with `--densepose`, got 'cpu'"),
        (
            ["--input", "a.pkl", "--size", "4", "4", "--densepose", "m"],
            "`--densepose` must be given only with a video or a folder of pictures as `--input`, got 'm'",
        ),
        (
            ["--input", "a", "--max_gap", "2"],
            "`--max_gap` must be given only with `--densepose`, a dump",
        ),
        (
            ["--input", "a", "--densepose", "m", "--channel_order", "vui"],
            "`--channel_order` must be given only with IUV pictures as `--input`, got 'vui'",
        ),
    ):
        with pytest.raises(SystemExit):
            extract_poses.parse_args([*words, "--output_dir", "o"])
        assert message in capsys.readouterr().err
