"""The page as an interface: what its clients get, and what they cannot have."""

import importlib
import json
import re
import time
import urllib.error
import urllib.request
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from PIL import Image

from tests.launch import ROOT
from tests.space.again import run_again
from tests.space.conftest import LORA
from tests.space.test_uploads import write_video
from training.media import animation
from training.media.pictures import enlarge, iterate_pictures, write_frames


gradio_client = pytest.importorskip("gradio_client", reason="gradio is not installed; run `make page-test`")
pytestmark = pytest.mark.slow

SAMPLE = ROOT / "model_card" / "sample"
POSES = sorted((SAMPLE / "poses").glob("*.png"))
LONG = (None, "Full", 15, 2, 2, 0)
NAMES = ["photo", "poses", "photo_iuv", "model", "steps", "photo_scale", "pose_scale", "seed", "subject", "dance"]
CLIENT = {"verbose": False, "httpx_kwargs": {"timeout": 60}}  # a cancelled call is answered after its chunk
SHORT = (None, "Full", 2, 2, 2, 0)


@pytest.fixture(scope="module")
def client(server, tmp_path_factory):
    return gradio_client.Client(server.address, download_files=tmp_path_factory.mktemp("downloads"), **CLIENT)


def material(photo=SAMPLE / "photo.png", poses=POSES[:4]):
    return gradio_client.handle_file(str(photo)), [gradio_client.handle_file(str(pose)) for pose in poses]


def wait_until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_the_snippet_of_the_document_makes_the_sample_video(server, monkeypatch):
    (snippet,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "page.md").read_text(), re.DOTALL)
    assert "http://127.0.0.1:7860" in snippet
    monkeypatch.chdir(ROOT)
    names = {}
    exec(snippet.replace("http://127.0.0.1:7860", server.address), names)
    assert len(list(iterate_pictures(names["video"]))) == len(POSES)
    assert "animate.py --model model_card/tiny" in names["code"]
    with ZipFile(names["archive"]) as archive:
        assert {"dreampose/photo.png", "dreampose/video.mp4", "dreampose/again.py"} <= set(archive.namelist())
        assert len([name for name in archive.namelist() if name.startswith("dreampose/poses/")]) >= len(POSES)
    wait_until(lambda: not server.results())  # all that the page keeps are the files it handed out


def test_two_visitors_get_each_their_own_video(server, client, tmp_path):
    other = gradio_client.Client(server.address, download_files=tmp_path, **CLIENT)
    Image.open(SAMPLE / "photo.png").convert("L").save(tmp_path / "grey.png")
    jobs = [
        client.submit(*material(), *SHORT, api_name="/animate"),
        other.submit(*material(tmp_path / "grey.png", POSES[:3]), *SHORT, api_name="/animate"),
    ]
    videos = [list(iterate_pictures(job.result(60)[1])) for job in jobs]
    assert [len(video) for video in videos] == [4, 3]
    colours = [np.ptp(np.asarray(video[0], int)[100:200], axis=-1).mean() for video in videos]
    assert colours[0] > 2 * colours[1]  # the second visitor's figure is grey, up to what the model adds


def test_a_cancelled_video_frees_the_device(server, client):
    wait_until(lambda: not server.results())
    job = client.submit(*material(poses=POSES), *LONG, api_name="/animate")
    wait_until(job.outputs, 60)
    assert server.results()
    job.cancel()
    began = time.monotonic()
    assert client.predict(*material(), *SHORT, api_name="/animate")[1]
    assert time.monotonic() - began < 30
    wait_until(lambda: not server.results())


def test_errors_are_sentences(client, tmp_path):
    (tmp_path / "photo.png").write_text("no picture")
    with pytest.raises(Exception, match="`photo` must be a readable picture"):
        client.predict(*material(tmp_path / "photo.png"), *SHORT, api_name="/animate")
    with pytest.raises(Exception, match="`poses` must hold part codes"):
        client.predict(*material(poses=[SAMPLE / "photo.png"]), *SHORT, api_name="/animate")
    with pytest.raises(Exception, match="(?i)101 is greater than maximum value 100"):
        client.predict(*material(), None, "Full", 101, 2, 2, 0, api_name="/animate")


def test_the_code_of_a_subject_s_video_makes_exactly_this_video(server, client, tmp_path):
    """The subject comes from the Hub, without a token, and none of its files stays."""
    server.hub.requests.clear()
    few = None, "Few steps", 1, 1, 1, 5
    plain, ours = (client.predict(*material(), *few, name, api_name="/animate") for name in ("", "someone/anna"))
    videos = [list(iterate_pictures(answer[1])) for answer in (plain, ours)]
    assert any((np.asarray(a) != np.asarray(b)).any() for a, b in zip(*videos))
    assert {path.rpartition("/")[2] for path in server.hub.paths()} == {LORA}
    assert not list(server.folder.rglob("*.safetensors"))
    clone = run_again(ours[3], tmp_path / "clone", **server.hub.environment, HF_HOME=str(tmp_path / "home"))
    frames = [Image.open(clone / f"{index}.png") for index in range(4)]
    scale = animation.default_scale(frames[0].height)
    write_frames((enlarge(frame, scale) for frame in frames), clone / "again.mp4", 12)
    for again in ("video.mp4", "again.mp4"):
        made = list(iterate_pictures(clone / again))
        assert len(made) == 4 and all(np.array_equal(a, b) for a, b in zip(made, videos[1]))


@pytest.mark.parametrize(
    "subject, message",
    [
        ("someone/fast", "`subject` must be a subject, got a few-step LoRA"),
        ("someone/pickled", "got someone/pickled, which has no pytorch_lora_weights.safetensors"),
        ("someone/nobody", "got someone/nobody, which has no pytorch_lora_weights.safetensors"),
        ("model_card/tiny", "got model_card/tiny, which has no pytorch_lora_weights.safetensors"),
    ],
)
def test_what_is_no_subject_is_refused(client, subject, message):
    with pytest.raises(Exception, match=message):
        client.predict(*material(), *SHORT, subject, api_name="/animate")


def test_a_dance_moves_the_photo_s_person_where_the_owner_has_a_densepose(client, tmp_path):
    """The fake DensePose sees a body in IUV pictures alone, so that one is the photo."""
    write_video(tmp_path / "dance.mkv", [Image.open(path).convert("RGB") for path in POSES[:3]])
    photo, dance = (gradio_client.handle_file(str(path)) for path in (POSES[0], tmp_path / "dance.mkv"))
    answer = client.predict(photo=photo, poses=None, dance=dance, steps=1, api_name="/animate")
    assert len(list(iterate_pictures(answer[1]))) == 3
    with ZipFile(answer[3]) as archive:
        assert len([name for name in archive.namelist() if name.startswith("dreampose/poses/")]) >= 3


def test_a_page_that_a_visitor_uploads_is_saved_and_not_shown_by_browsers(server):
    head = 'Content-Disposition: form-data; name="files"; filename="a.html"'
    body = f"--x\r\n{head}\r\n\r\n<script>1</script>\r\n--x--\r\n".encode()
    header = {"Content-Type": "multipart/form-data; boundary=x"}
    request = urllib.request.Request(f"{server.address}/gradio_api/upload", body, header)
    with urllib.request.urlopen(request, timeout=10) as answer:
        (path,) = json.load(answer)
    with urllib.request.urlopen(f"{server.address}/gradio_api/file={path}", timeout=10) as answer:
        assert answer.headers["Content-Disposition"].startswith("attachment")


def test_only_the_animation_is_an_interface(client):
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    names = [parameter["parameter_name"] for parameter in endpoints["/animate"]["parameters"]]
    assert len(endpoints) == 1 and names == NAMES


def test_the_animation_is_a_described_tool_of_the_mcp_server(server):
    with urllib.request.urlopen(f"{server.address}/gradio_api/mcp/schema", timeout=10) as answer:
        (tool,) = json.load(answer)
    assert tool["name"].endswith("animate") and "one photo and a sequence of DensePose poses" in tool["description"]
    arguments = tool["inputSchema"]["properties"]
    assert list(arguments) == NAMES and all(argument["description"] for argument in arguments.values())


def call_by_hand(address, data):
    """Call the animation without Gradio's client, which sends its own files; return the answer's events."""
    body = json.dumps({"data": data}).encode()
    request = urllib.request.Request(f"{address}/gradio_api/call/animate", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{address}/gradio_api/call/animate/{event}", timeout=60) as answer:
        return answer.read().decode()


OWN_FILES = [ROOT / "setup.cfg", ROOT / "model_card/space/app.py", ROOT / "docs/pictures/densepose_iuv.png"]


@pytest.mark.parametrize("path", ["/etc/passwd", "page.log", *OWN_FILES], ids=str)
def test_no_other_file_can_be_read(server, path):
    """Neither by its address, nor by an address that leaves an allowed folder, nor as if it had been uploaded."""
    path = str(server.folder / path)  # an absolute path stays as it is
    assert Path(path).is_file()
    up = "/".join([".."] * 20)
    for address in (path, f"{SAMPLE}/{up}{path}", f"{SAMPLE}/" + "%2e%2e/" * 20 + path[1:], f"file://{path}"):
        for route in ("gradio_api/file=", "file="):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"{server.address}/{route}{address}", timeout=10)
            assert refused.value.code in (403, 404)
    stolen = {"path": path, "meta": {"_type": "gradio.FileData"}}
    for data in ([stolen, [stolen]], [{**stolen, "url": f"file://{path}"}, []]):
        events = call_by_hand(server.address, [*data, *SHORT, "", None])
        assert "event: error" in events and "event: complete" not in events and "readable" not in events


def test_a_model_of_people_has_no_live_figures():
    """It does not know the drawn ones, and may need minutes for them, so that the page would open late."""
    app = importlib.import_module("model_card.space.app")
    studio = app.Studio(str(ROOT / "model_card" / "tiny"), "cpu")
    tabs = []
    for height in (160, 80):
        studio.pipeline(studio.has_few).register_to_config(default_height=height)
        blocks = app.build_page(studio)
        tabs.append([block.label for block in blocks.blocks.values() if isinstance(block, app.gr.Tab)])
    assert tabs == [["Live", "Your own"], ["Your own"]]


def test_an_upload_that_is_too_large_is_refused(server, client, tmp_path):
    (tmp_path / "photo.png").write_bytes(bytes(20_000_001))
    with pytest.raises(Exception, match="(?i)size|large|413"):
        client.predict(*material(tmp_path / "photo.png"), *SHORT, api_name="/animate")
