"""Pushes of both stages and of the small model: cards, commits, repeated pushes, errors, and every way to load the
pushed repositories.
"""

import hashlib
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE as SUBJECT_FILE
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from PIL import Image
from safetensors import safe_open

from modular_dreampose import DreamPoseBlocks
from pipeline_dreampose import DreamPosePipeline
from tests.hub_server import TOKEN, Hub, card_errors
from tests.launch import ROOT
from tests.test_loading import HIDDEN_LIBRARIES, files_of, run_fresh
from tests.tiny_components import get_dummy_inputs, get_dummy_pipeline, save_photo
from training import push_model
from training.data.procedural_fashion import ProceduralFashionConfig
from training.hub.blocks import BLOCKS_FILES
from training.hub.card_writer import find_hub_id, public_settings, write_base_card
from training.hub.loras import OWN_FAST
from training.hub.repositories import (
    PushError,
    card_patterns,
    explain_push,
    find_commit,
    pipeline_patterns,
    push_folder,
)
from training.subject.results import CAPTION


OTHER_TOKEN = "hf_ofsomebodyelse"
SENT_LATER, CUT = "models/someone/sent-later", "models/someone/cut"
PUSHED = "models/someone/pushed"
ALICE, BASE, TINY = "models/someone/alice", "models/someone/base", "models/someone/dreampose-tiny"
PARTS = ("adapter", "feature_extractor", "image_encoder", "scheduler", "unet", "vae")
WEIGHTS = [f"{part}/diffusion_pytorch_model.safetensors" for part in ("adapter", "unet", "vae")]
LARGE_FILES = [*WEIGHTS, "image_encoder/model.safetensors", "sample.png"]

OPTIONS = {
    "pretrained_model_name_or_path": "CompVis/stable-diffusion-v1-4",
    "revision": "ebb811dd71cdc38a204ecbdd6ac5d580f529fd8c",
    "train_data": "someone/frames",
    "height": 640,
    "max_grad_norm": 1.0,
    "snr_gamma": None,
    "streaming": True,
    "lr_scheduler": "constant",
    "unet_channels": [8, 16],
}
# Each reveals a machine or a secret.
HIDDEN = {
    "output_dir": "output",
    "latent_cache_dir": "/scratch/zoe/latents",
    "image_encoder_name_or_path": "/home/zoe/clip",
    "resume_from_checkpoint": "latest",
    "hub_model_id": "someone/pushed",
    "tracker": "ab12" * 10,
    "note": "C:\\Users\\zoe",
    "hub_token": TOKEN,
    "wandb_api_key": 1234,
    "other": TOKEN,
    "paths": ["/home/zoe"],
}

PUSHES = """
import gc
import hashlib
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from huggingface_hub import HfApi, ModelCard

from training import finetune
from training import push_model
from training.hub.repositories import make_repo, push_folder, try_make_repo, try_push

work, other_token = Path(sys.argv[1]), sys.argv[2]
token, subject_words, tiny_words = os.environ["HF_TOKEN"], json.loads(sys.argv[3]), json.loads(sys.argv[4])
folder = work / "output"
facts = {"weights": []}
gc.freeze()  # every run collects garbage, which takes longer than its steps where all libraries are looked through


def refusal(name, call, *args, **kwargs):
    try:
        facts[name] = f"was done: {call(*args, **kwargs)}"
    except ValueError as error:
        facts[name] = f"{type(error).__name__}: {error}"


def read_card(name):
    card = ModelCard.load(name)
    card.validate()
    facts[f"card of {name}"] = card.data.to_dict()


def push_pipelines():
    try_push(folder, "someone/sent-later")
    facts["made"] = make_repo("pushed")
    facts["address"] = push_folder(folder, "pushed", commit_message="The first")
    path = folder / "adapter" / "diffusion_pytorch_model.safetensors"
    path.write_bytes((work / "changed.safetensors").read_bytes())
    push_folder(folder, "someone/pushed", commit_message="The second")
    push_folder(folder, "someone/pushed", commit_message="Nothing")
    read_card("someone/pushed")

    push_folder(folder, "someone/open", private=False)
    facts["open"] = HfApi().model_info("someone/open").private
    facts["made_open"] = make_repo("someone/open")

    refusal("full", push_folder, folder, "someone/full")
    refusal("large", push_folder, folder, "someone/large")
    refusal("foreign", make_repo, "other/model")
    refusal("foreign_new", push_folder, folder, "other/new")
    refusal("no_id", make_repo, "a/b/c")

    push_model.main(push_model.parse_args(tiny_words))
    read_card("someone/dreampose-tiny")


def push_twice():
    refusal("cut", push_folder, work / "cut", "someone/cut")
    facts["retried"] = push_folder(work / "cut", "someone/cut")


def fine_tune(name, *more):
    finetune.main(finetune.parse_args([*subject_words, "--hub_model_id", name, *more]))
    weights = (work / "subject" / "pytorch_lora_weights.safetensors").read_bytes()
    facts["weights"].append(hashlib.sha256(weights).hexdigest())


# The client waits 23 seconds before it gives a broken connection up, twice here: the rest is done meanwhile.
with ThreadPoolExecutor() as pool:
    running = [pool.submit(push_pipelines), pool.submit(push_twice)]
    for name in ("broken", "failing", "crowded", "denied"):
        fine_tune(name)
        fine_tune(name)
    for pushes in running:
        pushes.result()

os.environ["HF_TOKEN"] = other_token
refusal("wrong_token", push_folder, folder, "someone/pushed")
refusal("wrong_token_new", make_repo, "someone/new")
facts["tried"] = try_make_repo("someone/new")
fine_tune("mistaken")
os.environ["HF_TOKEN"] = token
fine_tune("mistaken")

fine_tune("alice", "--hub_sample")
fine_tune("someone/alice", "--hub_sample", "--hub_license", "mit")  # changes the card alone
fine_tune("alice", "--hub_sample", "--max_train_steps", "2")
read_card("someone/alice")
(work / "facts.json").write_text(json.dumps(facts))
"""

LOADING = """
from diffusers import ModularPipeline
from huggingface_hub import snapshot_download

load = DiffusionPipeline.from_pretrained
for name in ("pushed", "alice", "dreampose-tiny"):
    exec((work / f"snippet of {name}.py").read_text(), {})
    facts[f"frames of {name}"] = Image.open("video.gif").n_frames
    Path("video.gif").unlink()
commits = json.loads((work / "commits.json").read_text())
run("pushed", load("someone/pushed", **trust))
run("first", load("someone/pushed", revision=commits["pushed"], **trust))
run("custom", load("someone/pushed", custom_pipeline="someone/pushed", cache_dir=str(work / "cache"), **trust))
parts = {name: getattr(pipe, name) for pipe in [load("someone/pushed", **trust)] for name in pipe.components}
pipe = load("someone/bare", custom_pipeline="someone/pushed", **parts, **trust)
facts["code"] = type(pipe).__module__
snapshot_download("someone/pushed")
run("tiny", load("someone/dreampose-tiny", **trust), num_inference_steps=1)
tiny = {"custom_pipeline": "someone/dreampose-tiny", "cache_dir": str(work / "tiny_cache")}
run("tiny_custom", load("someone/dreampose-tiny", **tiny, **trust), num_inference_steps=1)
blocks = ModularPipeline.from_pretrained("someone/dreampose-tiny", **trust)
blocks.load_components()
noise = {"generator": torch.Generator().manual_seed(0)}
np.save(work / "tiny_blocks.npy", blocks(**inputs, **noise, num_inference_steps=1, output="videos"))
pipe = load("someone/base", revision=commits["base"], **trust)
run("base", pipe)
for name, revision in (("alice", "main"), ("first_alice", commits["alice"])):
    pipe.load_lora_weights("someone/alice", revision=revision)
    run(name, pipe)
    pipe.unload_lora_weights()
(work / "loading_facts.json").write_text(json.dumps(facts))
"""

OFFLINE = """
from huggingface_hub import snapshot_download

local = {"local_files_only": True}
snapshot = snapshot_download("someone/pushed", **local)
run("snapshot", DiffusionPipeline.from_pretrained(snapshot, **trust))
sys.path.insert(0, snapshot)
from pipeline_dreampose import DreamPosePipeline
run("offline", DreamPosePipeline.from_pretrained("someone/pushed", **local))
commits = json.loads((work / "commits.json").read_text())
pipe = DreamPosePipeline.from_pretrained("someone/base", revision=commits["base"], **local)
pipe.load_lora_weights("someone/alice", **local)
run("offline_alice", pipe)
(work / "loading_facts.json").write_text(json.dumps(facts))
"""


def digests(folder):
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def oid(folder, name):
    return hashlib.sha256((folder / name).read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Write the output of a run with its card, files that must not be pushed, and inputs for the card's code."""
    work = tmp_path_factory.mktemp("work")
    output = work / "output"
    get_dummy_pipeline().save_pretrained(output)
    for name in ("checkpoint-000002/model.safetensors", ".tmp-checkpoint-000004/x", "logs/events", "validation/a.png"):
        (output / name).parent.mkdir(parents=True)
        (output / name).write_text(TOKEN)
    (output / "options.yaml").write_text(f"output_dir: {output}")
    (output / "log.jsonl").write_text("{}")
    inputs = get_dummy_inputs()
    inputs["image"].save(work / "strip.png")
    write_base_card(
        output,
        repo_id="someone/pushed",
        base_model=OPTIONS["pretrained_model_name_or_path"],
        revision=OPTIONS["revision"],
        dataset="someone/frames",
        options_yaml=yaml.safe_dump(OPTIONS | HIDDEN, sort_keys=False),
        figures={"l1": 0.0312, "psnr": 21.5, "ssim": 0.87, "temporal_error": float("nan")},
        picture=work / "strip.png",
        num_steps=12345,
        num_samples=16,
    )
    get_dummy_pipeline(seed=1).adapter.save_pretrained(work / "other")
    (work / "other" / "diffusion_pytorch_model.safetensors").rename(work / "changed.safetensors")
    inputs["image"].save(work / "photo.png")
    shutil.copytree(output, work / "cut")
    shutil.copytree(ROOT / "model_card" / "tiny", work / "tree" / "model_card" / "tiny")
    get_dummy_pipeline(seed=2).save_pretrained(work / "base")
    (work / "base" / "README.md").write_text("---\nlicense: creativeml-openrail-m\n---\n")
    for number, frame in enumerate(ProceduralFashionConfig(height=80, width=64).clip("test", 0, 0, [0, 8])):
        save_photo(work / "photos", f"{number}", Image.fromarray(frame.image), Image.fromarray(frame.iuv))
    (work / "empty" / "poses").mkdir(parents=True)
    inputs["image"].save(work / "empty" / "photo.png")
    for i, iuv in enumerate(inputs["pose_maps"]):
        iuv.save(work / f"iuv_{i}.png")
        iuv.save(work / "empty" / "poses" / f"{i}.png")
    return work


@pytest.fixture(scope="module")
def hub(work):
    with Hub() as hub:
        unet = oid(work / "output", "unet/diffusion_pytorch_model.safetensors")
        hub.faults += [
            ["PUT", f"{SENT_LATER}/{unet}", 500, 6],  # the client tries six times
            ["PUT", f"{CUT}/{unet}", None, 6],
            ["PUT", "models/someone/full/", 507, 99],
            ["POST", "someone/large.git/info/lfs", 413, 99],
            ["PUT", "models/someone/failing/", 500, 6],
            ["PUT", "models/someone/crowded/", 507, 1],
            ["GET", "models/someone/denied/auth-check/write", 403, 2],  # at the start and at the end of a run
            ["PUT", "models/someone/broken/", None, 6],
        ]
        hub.commit("models/other/model", {"config.json": b"{}"})
        hub.commit(BASE, files_of(work / "base"))
        yield hub


def subject_words(base, photos, output_dir, *more):
    """Return the arguments of a short run of stage 2; a second run with them only pushes the result again."""
    return [
        "--pretrained_model_name_or_path", str(base), "--instance_data_dir", str(photos), "--output_dir",
        str(output_dir), "--max_train_steps", "1", "--decoder_max_train_steps", "0", "--train_batch_size", "2",
        "--gradient_accumulation_steps", "1", "--learning_rate", "1e-2", "--rank", "2", "--checkpointing_steps", "1",
        "--sample_inference_steps", "1", "--resume_from_checkpoint", "latest", "--push_to_hub", *more,
    ]  # fmt: skip


def tiny_words():
    """Return the arguments that `make hub-tiny` passes to the entry point."""
    command = ["make", "--no-print-directory", "--dry-run", "hub-tiny", "HUB_ID=dreampose-tiny"]
    lines = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    python, script, *words = shlex.split(lines[-1])
    assert (Path(python).name, script) == ("python", "training/push_model.py")
    return words


def send_later(message, folder, work, hub):
    """Run the command in a message."""
    command = shlex.split(message.split("later: ")[1])
    assert command[:2] == ["hf", "upload"] and command[3] == str(folder) and "--private" in command
    environment = os.environ | hub.environment | {"HF_HOME": str(work / "home"), "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
    command[0] = str(Path(sys.executable).parent / "hf")
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr[-3000:]
    assert TOKEN not in process.stdout + process.stderr


@pytest.fixture(scope="module")
def pushes(work, hub):
    """Run `PUSHES` in a process; return its facts, with everything that it printed as `output`."""
    before = digests(work / "output")
    environment = os.environ | hub.environment | {"HF_HOME": str(work / "home"), "PYTHONPATH": str(ROOT)}
    words = subject_words("someone/base", work / "photos", work / "subject", "--revision", hub.resolve(BASE)[0])
    command = [sys.executable, "-c", PUSHES, str(work), OTHER_TOKEN, json.dumps(words), json.dumps(tiny_words())]
    process = subprocess.run(command, cwd=work / "tree", env=environment, capture_output=True, text=True, timeout=300)
    output = process.stdout + process.stderr
    assert process.returncode == 0, output[-4000:]
    after = digests(work / "output")
    changed = {str(path.relative_to(work / "output")) for path in after if after[path] != before.get(path)}
    assert changed == {"pipeline.py", "adapter/diffusion_pytorch_model.safetensors"} and before.keys() < after.keys()
    return json.loads((work / "facts.json").read_text()) | {"output": output}


@pytest.mark.slow
def test_the_pushed_files(work, hub, pushes):
    files = hub.files(PUSHED)
    output = work / "output"
    names = {str(path.relative_to(output)) for part in PARTS for path in (output / part).iterdir()}
    names |= {"README.md", "model_index.json", "pipeline.py", "pipeline_dreampose.py", "sample.png"}
    assert files.keys() == names | {".gitattributes"}
    assert all(files[name] == (output / name).read_bytes() for name in names)
    assert files["pipeline.py"] == files["pipeline_dreampose.py"]
    assert (pushes["made"], pushes["address"]) == ("someone/pushed", f"{hub.endpoint}/someone/pushed")
    assert PUSHED in hub.private and pushes["tried"] is None and "models/someone/new" not in hub.commits
    assert pushes["open"] is False and pushes["made_open"] == "someone/open"
    assert "someone/open is public and stays public" in pushes["output"]


@pytest.mark.slow
def test_a_push_is_one_commit_and_sends_what_is_new(hub, pushes):
    assert len(hub.commits[PUSHED]) == 3  # the new repository and two pushes; the third push changed nothing
    sent = [path for path in hub.paths("PUT") if f"/{PUSHED}/" in path]
    assert len(sent) == len(set(sent)) == len(LARGE_FILES) + 1
    (_, first), (_, second) = hub.commits[PUSHED][1:]
    assert {name for name in second if first[name] != second[name]} == {WEIGHTS[0]}


@pytest.mark.slow
def test_the_command_in_the_message_completes_a_failed_push(work, hub, pushes):
    message = re.search(r"`hub_model_id` must .*? 'someone/sent-later': .*", pushes["output"])[0]
    assert "Error while uploading 'unet/" in message and "the Hub failed (500: A simulated fault" in message
    assert f"Everything is in {str(work / 'output')!r}; this pushes it later: hf upload " in message
    assert len(hub.commits[SENT_LATER]) == 1

    def tries():
        return Counter(path.rsplit("/")[-1] for path in hub.paths("PUT") if f"/{SENT_LATER}/" in path)

    arrived, before = [key for key in hub.large_files if key[0] == SENT_LATER], tries()
    assert len(arrived) == len(LARGE_FILES) - 1 and before.total() == len(arrived) + 6
    send_later(message, work / "output", work, hub)
    files = hub.files(SENT_LATER)
    assert files == hub.files(PUSHED) and SENT_LATER in hub.private
    # The adapter has changed since; of the other files only those that had not arrived are sent.
    assert tries() - before == Counter(oid(work / "output", name) for name in WEIGHTS[:2])


@pytest.mark.slow
def test_a_connection_that_breaks(work, hub, pushes):
    start = r"^PushError: Nothing was pushed to 'someone/cut' \(`hub_model_id`\), the connection to the Hub broke: "
    assert re.search(start + "Error while uploading 'unet/.*Error: .* --private", pushes["cut"])
    assert pushes["retried"] == f"{hub.endpoint}/someone/cut" and len(hub.commits[CUT]) == 2
    sent = [path for path in hub.paths("PUT") if f"/{CUT}/" in path]
    unet = oid(work / "output", WEIGHTS[1])
    assert sorted(sent.count(path) for path in set(sent)) == [1] * (len(LARGE_FILES) - 1) + [7]
    assert sum(path.endswith(unet) for path in sent) == 7


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, message",
    [
        (
            "full",
            r"'someone/full': Error while uploading .*: the storage is full \(507: A .* later: hf upload",
        ),
        ("large", r"'someone/large': that is more than the repository may hold \(413: A simulated fault"),
        ("foreign", r"'other/model': the token may not write there, .* \(403: You don't have the rights"),
        ("foreign_new", r"'other/new': the token may not write there, .* later: hf upload other/new "),
        ("no_id", r"'a/b/c': HFValidationError: Repo id must be in the form"),
        ("wrong_token", r"'someone/pushed': the token is missing or not valid .* \(401: .* later: hf upload"),
        ("wrong_token_new", r"'someone/new': the token is missing or not valid .*\. Nothing is lost; a later push"),
    ],
)
def test_refusals_are_one_clear_line(pushes, name, message):
    start = "PushError: `hub_model_id` must name a repository that can be written, got "
    assert re.search(f"^{re.escape(start)}{message}", pushes[name]), pushes[name]
    assert "\n" not in pushes[name]


@pytest.mark.slow
def test_a_subject_is_pushed_with_its_card_and_pictures(work, hub, pushes):
    (_, empty), (_, first), (_, relicensed), (_, trained) = hub.commits[ALICE]
    assert first.keys() - empty.keys() == {"README.md", "sample.png", SUBJECT_FILE} and ALICE in hub.private
    assert {name for name in first if first[name] != relicensed[name]} == {"README.md"}
    assert {name for name in first if relicensed[name] != trained[name]} == {"README.md", "sample.png", SUBJECT_FILE}
    sent = [path for path in hub.paths("PUT") if f"/{ALICE}/" in path]
    assert len(sent) == len(set(sent)) == 4, "weights and pictures, once each"
    for name in ("README.md", SUBJECT_FILE):
        assert trained[name] == (work / "subject" / name).read_bytes()
    assert trained["sample.png"] == (work / "subject" / "before_after.png").read_bytes()
    text = trained["README.md"].decode()
    assert "for 2 steps of UNet and adapter, of 2 samples each." in text
    assert f'revision="{hub.resolve(BASE)[0]}"' in text and "trained on 2 photos of that person" in text
    assert pushes["card of someone/alice"] == {
        "license": "creativeml-openrail-m",
        "pipeline_tag": "image-to-video",
        "library_name": "diffusers",
        "base_model": "someone/base",
        "base_model_relation": "adapter",
        "tags": ["dreampose", "image-to-video", "pose", "densepose", "fashion", "diffusers-training", "lora"],
        "widget": [{"text": CAPTION, "output": {"url": "sample.png"}}],
    }
    assert "license: mit" in relicensed["README.md"].decode()
    with safe_open(work / "subject" / SUBJECT_FILE, "pt") as file:
        facts = json.loads(file.metadata()["lora_adapter_metadata"])
    assert facts["dreampose.base_model"] == BASE.removeprefix("models/")
    assert facts["dreampose.revision"] == hub.resolve(BASE)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, message",
    [
        ("failing", r"Error while uploading 'pytorch_lora_weights.*: the Hub failed \(500: A simulated fault"),
        ("crowded", r"Error while uploading 'pytorch_lora_weights.*: the storage is full \(507: A simulated fault"),
        ("denied", r"the token may not write there, or the storage is full \(403: A simulated fault"),
        ("mistaken", r"the token is missing or not valid .* \(401: "),
        ("broken", r"Error while uploading 'pytorch_lora_weights.*: \w*Error: "),
    ],
)
def test_a_subject_that_could_not_be_pushed_is_pushed_later(work, hub, pushes, name, message):
    pattern = rf"`hub_model_id` must name a repository .*, got '(?:someone/)?{name}': .*"
    if name == "broken":
        pattern = r"Nothing was pushed to 'someone/broken' \(`hub_model_id`\), the connection to the Hub broke: .*"
    messages = re.findall(pattern, pushes["output"])
    # A token that may not write is reported at the start of the run and at its end.
    assert len(messages) == (2 if name in ("denied", "mistaken") else 1) and re.search(message, messages[-1])
    folder, repository = work / "subject", f"models/someone/{name}"
    assert f"Everything is in {str(folder)!r}; this pushes it later: hf upload " in messages[-1]
    assert f"--private --include README.md --include {SUBJECT_FILE}" in messages[-1]
    assert len(hub.commits[repository]) == 2 and repository in hub.private
    files = hub.files(repository)
    assert files.keys() == {".gitattributes", "README.md", SUBJECT_FILE}, "nobody was asked about the pictures"
    assert files[SUBJECT_FILE] == hub.commits[ALICE][1][1][SUBJECT_FILE]
    card = files["README.md"].decode()
    assert f'load_lora_weights("someone/{name}")' in card and "base_model: someone/base\n" in card


@pytest.mark.slow
def test_a_failed_push_leaves_the_subject_as_it_is(pushes):
    first, *same, trained = pushes["weights"]
    assert len(same) == 11 and set(same) == {first} and trained != first


@pytest.mark.slow
def test_the_small_model_is_pushed_as_it_stands(hub, pushes):
    folder, files = ROOT / "model_card" / "tiny", hub.files(TINY)
    here = {path: content for path, content in files_of(folder).items() if path not in ("pipeline.py",)}
    unused = {path for path in here if path.startswith("evaluation/")} - {
        "evaluation/evaluation.json", "evaluation/evaluation.png"
    }  # fmt: skip
    assert files.keys() == here.keys() - unused | {".gitattributes", "pipeline.py"}
    for name in ("README.md", "modular_model_index.json"):
        here[name] = here[name].replace(b'"you/dreampose-tiny"', b'"someone/dreampose-tiny"')
    assert all(files[path] == here.get(path, here["pipeline_dreampose.py"]) for path in files if path[0] != ".")
    assert len(hub.commits[TINY]) == 2 and TINY in hub.private
    assert pushes["card of someone/dreampose-tiny"] == ModelCard.load(folder / "README.md").data.to_dict()


@pytest.mark.slow
def test_the_token_is_nowhere(work, hub, pushes):
    for text in (pushes["output"], json.dumps(pushes)):
        assert TOKEN not in text and OTHER_TOKEN not in text
    for repository in (PUSHED, SENT_LATER, CUT, ALICE):
        content = b"".join(hub.files(repository).values())
        assert TOKEN.encode() not in content and str(work).encode() not in content
    written = [*(work / "home").rglob("*"), *(work / "subject").rglob("*")]
    assert not [path for path in written if path.is_file() and TOKEN.encode() in path.read_bytes()]


def render(pipe, work, **options):
    """Return the video that the fresh processes make from the same photo and poses."""
    pipe.set_progress_bar_config(disable=True)
    inputs = get_dummy_inputs() | {"image": Image.open(work / "photo.png"), "output_type": "np"}
    return pipe(**inputs, **options).frames


def snippet_of(card):
    return re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]


@pytest.mark.slow
def test_the_cards_snippets_and_every_route_from_the_hub(work, hub, pushes):
    for name in ("pushed", "alice", "dreampose-tiny"):
        snippet = snippet_of(hub.files(f"models/someone/{name}")["README.md"].decode())
        (work / f"snippet of {name}.py").write_text(snippet)
    commits = {"pushed": hub.commits[PUSHED][1][0], "alice": hub.commits[ALICE][1][0], "base": hub.resolve(BASE)[0]}
    (work / "commits.json").write_text(json.dumps(commits))
    files = {"model_index.json": b'{"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1"}'}
    hub.commit("models/someone/bare", files)
    hidden = set(HIDDEN_LIBRARIES) - {"accelerate", "peft"}  # a subject needs these two
    facts = run_fresh(LOADING, work, hub, "loading", hidden)
    assert [facts[f"frames of {name}"] for name in ("pushed", "alice", "dreampose-tiny")] == [5, 5, 5]
    for module in (facts["custom"][0], facts["code"]):
        assert re.fullmatch(r"diffusers_modules\.local\.someone--pushed\.[0-9a-f]{40}\.pipeline", module)
    assert re.search(r"someone--dreampose-tiny\.[0-9a-f]{40}\.pipeline$", facts["tiny_custom"][0])
    hub.server.shutdown()
    hub.server.server_close()
    # These routes need no connection; `DiffusionPipeline.from_pretrained` by id does, even with `local_files_only`.
    assert {"snapshot", "offline", "offline_alice"} <= run_fresh(OFFLINE, work, hub, "loading", hidden).keys()
    pixels = {path.stem: np.load(path) for path in work.glob("*.npy")}

    pipe = get_dummy_pipeline()
    expected = {"first": render(pipe, work)}
    pipe.adapter = get_dummy_pipeline(seed=1).adapter
    expected |= dict.fromkeys(("pushed", "custom", "snapshot", "offline"), render(pipe, work))
    tiny = DreamPosePipeline.from_pretrained(ROOT / "model_card" / "tiny")
    expected |= dict.fromkeys(("tiny", "tiny_custom", "tiny_blocks"), render(tiny, work, num_inference_steps=1))
    pipe = DreamPosePipeline.from_pretrained(work / "base")
    expected["base"] = render(pipe, work)
    for names, (_, files) in (
        (["first_alice"], hub.commits[ALICE][1]),
        (["alice", "offline_alice"], hub.commits[ALICE][3]),
    ):
        (work / SUBJECT_FILE).write_bytes(files[SUBJECT_FILE])
        pipe.load_lora_weights(work)
        expected |= dict.fromkeys(names, render(pipe, work))
        pipe.unload_lora_weights()
    assert pixels.keys() == expected.keys()
    for name in expected:
        assert np.array_equal(pixels[name], expected[name]), name
    assert len({pixels[name].tobytes() for name in ("first", "pushed", "base", "first_alice", "alice")}) == 5


@pytest.mark.slow
def test_the_card_is_read_back(work, pushes):
    card = ModelCard.load(work / "output" / "README.md")
    assert card.data.to_dict() == pushes["card of someone/pushed"]
    assert pushes["card of someone/pushed"] == {
        "license": "creativeml-openrail-m",
        "pipeline_tag": "image-to-video",
        "library_name": "diffusers",
        "base_model": "CompVis/stable-diffusion-v1-4",
        "base_model_relation": "finetune",
        "datasets": ["someone/frames"],
        "tags": ["dreampose", "image-to-video", "pose", "densepose", "fashion", "diffusers-training"],
        "widget": [{"text": "A photo, poses, and frames made from them", "output": {"url": "sample.png"}}],
        "model-index": [
            {
                "name": "pushed",
                "results": [
                    {
                        "task": {"type": "image-to-video"},
                        "dataset": {"type": "someone/frames", "name": "someone/frames", "split": "validation"},
                        "metrics": [
                            {"type": "l1", "value": 0.0312},
                            {"type": "psnr", "value": 21.5},
                            {"type": "ssim", "value": 0.87},
                        ],
                    }
                ],
            }
        ],
    }


def test_the_card_s_text(work):
    text = (work / "output" / "README.md").read_text()
    for part in (
        "# pushed\n",
        "![A photo, poses, and frames made from them](sample.png)",
        f"(https://huggingface.co/CompVis/stable-diffusion-v1-4) at `{OPTIONS['revision']}`",
        "\n[someone/frames](https://huggingface.co/datasets/someone/frames) for 12,345 steps of 16 samples.\n",
        "| l1 ↓ | psnr ↑ | ssim ↑ |\n| --- | --- | --- |\n| 0.0312 | 21.5 | 0.87 |",
        "| the weights, like those that they started from | CreativeML OpenRAIL-M, whose",
        "CC BY-SA 3.0",
        "only with their consent",
        f"torch {torch.__version__}",
        "@inproceedings{karras2023dreampose",
    ):
        assert part in text, part
    assert "{{" not in text and "{%" not in text and "\n\n\n" not in text and text.endswith("```\n")
    assert max(len(line) for line in text.splitlines() if not line.startswith(("|", "["))) <= 200
    settings = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])
    assert settings == OPTIONS and list(settings) == list(OPTIONS)
    for secret in ("zoe", TOKEN, "1234\n", str(work)):
        assert secret not in text


def test_a_card_of_a_local_model_and_local_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/base", "clips/frames", "out"):
        Path(folder).mkdir(parents=True)
    options = {"pretrained_model_name_or_path": "runs/base", "train_data": "clips/frames", "seed": 0, "word": "out"}
    path = write_base_card(
        Path("out"),
        repo_id=None,
        base_model="runs/base",
        revision="main",
        dataset="clips/frames",
        options_yaml=yaml.safe_dump(options),
        figures={"l1": float("nan")},
    )
    data, text = ModelCard.load(path).data.to_dict(), path.read_text()
    assert data.keys() == {"library_name", "pipeline_tag", "tags"}
    assert "runs/base" not in text and "clips" not in text and "main" not in text.split("## Licences")[0]
    assert "a pipeline that is not on the Hub" in text and "a data set that is not on the Hub" in text
    assert "Not measured." in text and "```yaml\nseed: 0\n```" in text
    assert 'from_pretrained("path/to/this/folder", trust' in text and "sample" not in text.split("## Training")[0]

    write_base_card(Path("out"), repo_id="a/b", base_model="x/dreampose", dataset="procedural/tiny", license="mit")
    data, text = ModelCard.load(path).data.to_dict(), path.read_text()
    assert data["base_model"] == "x/dreampose" and data["license"] == "mit" and "datasets" not in data
    assert "procedurally drawn figures (`procedural/tiny`)" in text and "started from | mit |" in text
    assert "```yaml" not in text


@pytest.mark.parametrize(
    "parts, sentence",
    [
        (["UNet"], "The UNet was trained on"),
        (["UNet", "adapter"], "The UNet and adapter were trained on"),
        (["UNet", "adapter", "image encoder"], "The UNet, adapter and image encoder were trained on"),
    ],
)
def test_a_card_names_what_was_trained(tmp_path, parts, sentence):
    how = {"repo_id": None, "base_model": "x/dreampose", "dataset": "procedural/tiny"}
    text = write_base_card(tmp_path, parts=parts, **how).read_text()
    assert f"replaces the text encoder. {sentence}\nprocedurally drawn figures" in text


def test_the_loopback_hub_refuses_a_bad_card():
    good = {
        "license": "mit", "base_model_relation": "adapter", "widget": [{"text": "a", "output": {"url": "b.png"}}],
        "model-index": [{"name": "a", "results": [{"task": {"type": "b"}, "dataset": {"type": "c", "name": "d"},
                                                   "metrics": [{"type": "l1", "value": 1.0}]}]}],
    }  # fmt: skip
    assert list(card_errors(good)) == []
    index = good["model-index"][0]
    for bad in (
        {"license": "Apache 2.0"},
        {"base_model_relation": "lora"},
        {"widget": [{"text": "a", "output": {"url": None}}]},
        {"tags": ["a", 1]},
        {"model-index": [index | {"name": None}]},
        {"model-index": [index | {"results": [index["results"][0] | {"metrics": [{"type": "l1", "value": "1"}]}]}]},
    ):
        assert [error.split(":")[0] for error in card_errors(good | bad)] == list(bad)


def test_hub_ids_and_public_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("ubc/frames").mkdir(parents=True)
    ids = {name: find_hub_id(name) for name in ("ubc/frames", "you/ubc", "procedural", "procedural/tiny", "a/b/c")}
    ids |= {name: find_hub_id(name) for name in ("./base", "../base", "~/base", "/base", "base", "C:\\a")}
    assert {name for name, found in ids.items() if found} == {"you/ubc"}
    settings = {"train_data": "procedural/tiny", "fit": "whole", "word": "ubc"}
    assert public_settings(yaml.safe_dump(settings)) == {"train_data": "procedural/tiny", "fit": "whole"}
    assert public_settings("") == {}


def test_only_files_of_the_pipeline_are_pushed(tmp_path):
    get_dummy_pipeline().save_pretrained(tmp_path)
    DreamPoseBlocks().save_pretrained(tmp_path)
    (tmp_path / "mellon_pipeline_config.json").write_text("{}")
    saved = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/*"))
    (tmp_path / "unet" / "diffusion_pytorch_model.fp16-00001-of-00002.safetensors").write_bytes(b"")
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors.index.fp16.json").write_text("{}")
    saved += [path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("unet/*fp16*")]
    (tmp_path / "image_encoder" / "model.bf16.safetensors").write_bytes(b"")
    saved += ["image_encoder/model.bf16.safetensors"]
    (tmp_path / "fast").mkdir()
    (tmp_path / OWN_FAST).write_bytes(b"")
    ends = (".secret.safetensors", "-key.safetensors", ".safetensors.index.key.json")
    strays = [f"unet/diffusion_pytorch_model{end}" for end in ends]
    strays += ["unet/model.fp16.safetensors", "vae/model.safetensors", "scheduler/model.safetensors"]
    strays += ["image_encoder/diffusion_pytorch_model.safetensors", ".env", "unet/.env", "unet/a.txt"]
    strays += ["vae/model.bin", "unet/my.safetensors", "vae/.git/config.json", "fast/other.safetensors", "fast/.env"]
    for name in strays:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("HF_TOKEN=...")
    text = "![a](there.png) ![b](missing.png) ![c](https://example.com/x.png) [d](training/.env) ![e](.hidden.png)"
    (tmp_path / "README.md").write_text(text)
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / ".env").write_text("HF_TOKEN=...")
    Image.new("RGB", (8, 8)).save(tmp_path / "there.png")
    Image.new("RGB", (8, 8)).save(tmp_path / ".hidden.png")
    patterns = pipeline_patterns(tmp_path)
    names = ["model_index.json", "pipeline_dreampose.py", *BLOCKS_FILES, OWN_FAST, "README.md", "there.png"]
    assert patterns == names + sorted(saved)
    with pytest.raises(ValueError, match="`folder` must be the folder of a DreamPosePipeline, got .*no model_index"):
        pipeline_patterns(tmp_path / "unet")
    with pytest.raises(ValueError, match="`folder` must be the folder of a DreamPosePipeline, got .*does not exist"):
        pipeline_patterns(tmp_path / "missing")


@pytest.mark.parametrize("name", ["unet/diffusion_pytorch_model.safetensors", "there.png", "README.md", "vae"])
def test_links_that_leave_the_folder_are_not_followed(name, tmp_path, monkeypatch):
    folder, secret = tmp_path / "folder", tmp_path / "secret"
    get_dummy_pipeline().save_pretrained(folder)
    (folder / "README.md").write_text("![a](there.png)")
    Image.new("RGB", (8, 8)).save(folder / "there.png")
    (folder / name).rename(secret)
    (folder / name).symlink_to(secret)
    monkeypatch.setattr("training.hub.repositories._make_repo", lambda *_: "someone/pushed")
    monkeypatch.setattr(HfApi, "list_repo_files", lambda *_: [])
    monkeypatch.setattr(HfApi, "create_commit", lambda *_, **__: pytest.fail("it was pushed"))
    with pytest.raises(ValueError, match=f"`folder` must hold the files themselves, got .* '{name}"):
        push_folder(folder, "someone/pushed")


def test_only_pictures_evaluation_and_training_files_of_a_card_are_pushed(tmp_path):
    folder = tmp_path / "folder"
    for name in ("evaluation", "training"):
        (folder / name).mkdir(parents=True)
    names = ["a.png", "b c.png", "d.JPG", "e.gif", "w.webp", "evaluation/evaluation.json", "evaluation/x.png"]
    names += ["training/stage1.yaml", "training/x.jsonl", "evaluation/secret.key", "training/id_rsa"]
    for name in [*names, "options.yaml", "log.jsonl", "evil.json", "../outside.png", "evaluation/../secret.txt"]:
        (folder / name).write_text("")
    (folder / "README.md").write_text(
        "---\nwidget:\n- text: a\n  output:\n    url: w.webp\n- text: b\n  output:\n    url: ../outside.png\n---\n"
        "![a](a.png \"A title\") ![a](./a.png) ![d](d.JPG 'x') [e]( <e.gif> ) [j](evaluation/evaluation.json)"
        "[y](training/stage1.yaml) [k](evaluation/secret.key) [i](training/id_rsa)"
        '[o](options.yaml) [l](log.jsonl "x") [e](evil.json) [p](../outside.png) [q](evaluation/../secret.txt)'
        f"[r]({folder}/a.png) [s](https://example.com/a.png) [m](missing.png) [t](#use)"
    )
    found = ["README.md", "a.png", "d.JPG", "e.gif", "evaluation/evaluation.json", "training/stage1.yaml", "w.webp"]
    assert card_patterns(folder) == found
    (folder / "README.md").write_bytes(b"![a](a.png) ![b](data:image/png;base64," + 5000 * b"A" + b") \xff\xfe")
    assert card_patterns(folder) == ["README.md", "a.png"]
    for front in ("widget: 5", "widget: [a]", "widget: [{output: {url: 5}}]", "- a", "widget: ["):
        (folder / "README.md").write_text(f"---\n{front}\n---\n![a](a.png)")
        assert card_patterns(folder) == ["README.md", "a.png"]


@pytest.fixture
def small_hub(monkeypatch):
    """Start a Hub for this process, whose libraries are already imported and set up for another one."""
    with Hub() as hub:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        for name, value in (("HF_HUB_DISABLE_XET", True), ("HF_HUB_OFFLINE", False)):
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        monkeypatch.setattr("training.hub.repositories.HfApi", lambda: HfApi(hub.endpoint, token=TOKEN))
        yield hub


def save_lora_folder(folder, card):
    folder.mkdir(exist_ok=True)
    (folder / SUBJECT_FILE).write_bytes(b"weights")
    (folder / "options.yaml").write_text("instance_data_dir: /home/zoe")
    (folder / "README.md").write_text(card)
    Image.new("RGB", (8, 8)).save(folder / "sample.png")
    return folder


def test_a_picture_that_the_card_no_longer_shows_is_deleted_by_the_same_commit(small_hub, tmp_path):
    folder = save_lora_folder(tmp_path / "alice", "![a](sample.png) ![b](before_after.png)")
    Image.new("RGB", (8, 8)).save(folder / "before_after.png")
    push_folder(folder, "alice")
    files = {".gitattributes", SUBJECT_FILE, "README.md"}
    assert small_hub.files(ALICE).keys() == files | {"sample.png", "before_after.png"}
    small_hub.commit(ALICE, {"other.png": b"put there by somebody", "sample.mp4": b"", "in/sample.png": b""})
    others, num_commits = {"other.png", "sample.mp4", "in/sample.png"}, len(small_hub.commits[ALICE])

    push_folder(folder, "alice", allow_patterns=[SUBJECT_FILE])
    assert len(small_hub.commits[ALICE]) == num_commits, "a card that is not sent anew still shows them"
    (folder / "README.md").write_text("![b](before_after.png)")
    push_folder(folder, "someone/alice")
    assert small_hub.files(ALICE).keys() == files | others | {"before_after.png"}
    (folder / "README.md").write_text("No picture.")
    push_folder(folder, "someone/alice")
    assert small_hub.files(ALICE).keys() == files | others
    assert len(small_hub.commits[ALICE]) == num_commits + 2
    assert "sample.png" in small_hub.commits[ALICE][1][1], "the history keeps it"


def test_a_subject_is_pushed_with_a_snippet_that_names_its_repository(small_hub, tmp_path):
    card = '![a](sample.png) pipe.load_lora_weights("path/to/this/folder") [o](options.yaml)'
    folder = save_lora_folder(tmp_path / "output", card)
    words = ["--folder", str(folder), "--hub_model_id", "alice"]
    assert push_model.main(push_model.parse_args(words)) == f"{small_hub.endpoint}/someone/alice"
    files = small_hub.files(ALICE)
    assert files.keys() == {".gitattributes", "README.md", SUBJECT_FILE, "sample.png"}
    assert b'pipe.load_lora_weights("someone/alice")' in files["README.md"] and ALICE in small_hub.private
    assert (folder / "README.md").read_text() == card, "the folder's own card is as it was"
    (folder / SUBJECT_FILE).unlink()
    with pytest.raises(ValueError, match="`folder` must be the folder of a DreamPosePipeline, got .*no model_index"):
        push_model.main(push_model.parse_args(words))


def test_a_folder_is_checked_before_it_is_written_to(small_hub, tmp_path):
    (tmp_path / "pipeline_dreampose.py").write_text("code")
    with pytest.raises(ValueError, match="`folder` must be the folder of a DreamPosePipeline"):
        push_folder(tmp_path, "pushed")
    assert [path.name for path in tmp_path.iterdir()] == ["pipeline_dreampose.py"]
    (tmp_path / "model_index.json").write_text('{"_class_name": "DreamPosePipeline"}')
    (tmp_path / "pipeline.py").mkdir()  # cannot be written as a file
    message = r"^Nothing was pushed to 'pushed' \(`hub_model_id`\): IsADirectoryError: .* later: hf upload pushed .*$"
    with pytest.raises(PushError, match=message):
        push_folder(tmp_path, "pushed")
    assert small_hub.commits == {}


def raise_in_a_push(error, is_of_file):
    """Raise an error like the Hub's client, which wraps an error about a file in its own words."""
    if is_of_file:
        raise RuntimeError("Error while uploading 'a' to the Hub.") from error
    raise error


# The HTTP library of huggingface_hub, which differs between its versions.
CLIENT = importlib.import_module(HfHubHTTPError.__bases__[0].__module__.partition(".")[0])
REFUSED = HfHubHTTPError("no", response=CLIENT.Response(403, request=CLIENT.Request("PUT", "http://127.0.0.1")))
BROKE = "Nothing was pushed to 'you/a' (`hub_model_id`), the connection to the Hub broke: "
LOCAL = "Nothing was pushed to 'you/a' (`hub_model_id`): "
NO_RIGHT = "`hub_model_id` must name a repository that can be written, got 'you/a': "


@pytest.mark.parametrize("is_of_file", [False, True])
@pytest.mark.parametrize(
    "error, start",
    [
        (CLIENT.ReadError("gone"), BROKE),
        (CLIENT.ConnectTimeout("late"), BROKE),
        (ConnectionResetError("reset"), BROKE),
        (RuntimeError("Cannot send a request, as the client has been closed."), BROKE),
        (PermissionError(13, "No", "unet"), LOCAL),
        (FileNotFoundError(2, "No", "unet"), LOCAL),
        (REFUSED, NO_RIGHT),
        (HFValidationError("a/b/c"), NO_RIGHT),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_message_names_the_cause(error, start, is_of_file):
    with pytest.raises(PushError) as refusal, explain_push("hub_model_id", "you/a", "Later."):
        raise_in_a_push(error, is_of_file)
    rest = str(refusal.value).removeprefix(start)
    assert rest != str(refusal.value) and rest.endswith(". Later.") and "\n" not in rest
    reason = "the token may not write there" if error is REFUSED else f"{type(error).__name__}: "
    assert rest.startswith(("Error while uploading 'a' to the Hub: " if is_of_file else "") + reason)


def test_a_hub_that_is_not_there(small_hub, tmp_path):
    folder = save_lora_folder(tmp_path / "alice", "")
    small_hub.server.shutdown()
    small_hub.server.server_close()
    with pytest.raises(PushError, match="^Nothing was pushed to 'alice' .*, the connection to the Hub broke: Connect"):
        push_folder(folder, "alice")


@pytest.mark.slow
def test_make_asks_for_an_id_before_it_installs_anything(tmp_path):
    command = ["make", "hub-tiny", f"VENV={tmp_path / 'venv'}", "HUB_ID="]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert process.returncode != 0 and "make hub-tiny needs HUB_ID=you/dreampose-tiny" in process.stderr
    assert not list(tmp_path.iterdir())


def test_bad_input_is_one_clear_error(tmp_path):
    how = {"base_model": "a/b", "dataset": "procedural"}
    with pytest.raises(ValueError, match="`repo_id` must be OWNER/NAME, got 'a/b/c'"):
        write_base_card(tmp_path, repo_id="a/b/c", **how)
    with pytest.raises(ValueError, match="`picture` must be a file of .png, .*, got '.*none.png'"):
        write_base_card(tmp_path, repo_id="a/b", picture=tmp_path / "none.png", **how)
    assert not list(tmp_path.iterdir())


def test_a_branch_is_resolved_to_its_commit(tmp_path, monkeypatch):
    """A LoRA names its base by the loaded commit, because branches move."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--someone--base"
    for name, text in ((f"snapshots/{commit}/model_index.json", "{}"), ("refs/main", commit)):
        (repository / name).parent.mkdir(parents=True)
        (repository / name).write_text(text)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert find_commit("someone/base") == find_commit("someone/base", "main") == commit
    assert find_commit("someone/base", "v2") == "v2", "not in the cache"
    assert find_commit(str(tmp_path)) is None, "a folder has no commits"
