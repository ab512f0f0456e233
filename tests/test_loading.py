"""Every way to load and save the pipeline: which file runs, and that it gives the same pixels."""

import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.hooks import ModelHook
from diffusers.utils import dynamic_modules_utils, import_utils
from peft import LoraConfig
from PIL import Image

import pipeline_dreampose
from pipeline_dreampose import DreamPoseAdapter, DreamPosePipeline, iuv_to_pose_map
from tests.hub_server import Hub
from tests.tiny_components import get_dummy_inputs, get_dummy_pipeline, get_unet
from training.hub.community import community_file


SOURCE = Path(pipeline_dreampose.__file__)
MIRROR = "datasets/diffusers/community-pipelines-mirror"
BASE = "models/someone/base"  # a repository that holds its own code
PUSHED = "models/someone/pushed"

# Two fresh processes run the routes below. They cannot import the project, their module cache is empty, and they find
# only the libraries that diffusers and transformers need.
HIDDEN_LIBRARIES = ("accelerate", "av", "datasets", "peft", "torchmetrics", "skimage", "tests", "training")
PREAMBLE = """
import json
import sys
from pathlib import Path


class Hidden:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {hidden!r}:
            return None
        return self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)


sys.meta_path = [Hidden(finder) for finder in sys.meta_path]

import diffusers
import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import dynamic_modules_utils
from diffusers.utils import dynamic_modules_utils
from PIL import Image

# diffusers asks PyPI for its versions, and HF_ENDPOINT does not redirect that request
dynamic_modules_utils.get_diffusers_versions = lambda: [diffusers.__version__]
torch.set_num_threads({num_threads})
work = Path({work!r})
inputs = {{
    "image": Image.open(work / "photo.png"),
    "pose_maps": [Image.open(path) for path in sorted(work.glob("iuv_*.png"))],
    "output_type": "np",
}}
facts = {{}}
trust = {{"trust_remote_code": True}}


def run(name, pipe, saves=False, **options):
    pipe.set_progress_bar_config(disable=True)
    np.save(work / f"{{name}}.npy", pipe(**inputs, **options, generator=torch.Generator().manual_seed(0)).frames)
    facts[name] = [type(pipe).__module__, type(pipe.adapter).__module__]
    if saves:
        pipe.save_pretrained(work / f"saved_from_{{name}}")
    return pipe


def refusal(name, *args, **kwargs):
    try:
        DiffusionPipeline.from_pretrained(*args, **kwargs)
        facts[name] = "was loaded"
    except ValueError as error:
        facts[name] = str(error)
"""

LOCAL_ROUTES = """
load = DiffusionPipeline.from_pretrained
pipe = run("folder", load(work / "saved", **trust), saves=True)
run("folder_again", load(work / "saved_from_folder", **trust))
run("own_class", type(pipe).from_pretrained(work / "saved"))
file = str(work / "elsewhere" / "pipeline_dreampose.py")
run("file_and_folder", load(work / "saved", custom_pipeline=file, **trust))
parts = {name: getattr(pipe, name) for name in ("adapter", "unet", "image_encoder", "feature_extractor")}
parts |= {name: value for name, value in pipe.config.items() if name.startswith("default_")}
run("file", load(work / "stable_diffusion", custom_pipeline=file, **trust, **parts), saves=True)
pipe = run("community", load(work / "stable_diffusion", custom_pipeline="dreampose", **parts), saves=True)
run("community_main", load(work / "stable_diffusion", custom_pipeline="dreampose", custom_revision="main", **parts))
del parts["unet"]
refusal("not_widened", work / "stable_diffusion", custom_pipeline="dreampose", **parts)
assert not any(name.split(".")[0] in ("pipeline_dreampose", "tests", "training") for name in sys.modules)
pipe.push_to_hub("someone/pushed")
(work / "local_facts.json").write_text(json.dumps(facts))
"""

HUB_ROUTES = """
# Each route has its own empty cache, since a cached file of one route could change which file another one runs.
load = DiffusionPipeline.from_pretrained
cache = iter([{"cache_dir": str(work / f"cache_{number}")} for number in range(9)])
run("community_hub", load("someone/base", custom_pipeline="dreampose", **trust, **next(cache)))
pipe = run("hub", load("someone/base", **trust, **next(cache)), saves=True)
run("pushed", load("someone/pushed", **trust, **next(cache)))
refusal("community_untrusted", "someone/base", custom_pipeline="dreampose", **next(cache))
refusal("hub_untrusted", "someone/base", **next(cache))
assert not any(name.split(".")[0] in ("pipeline_dreampose", "tests", "training") for name in sys.modules)
sys.path.insert(0, str(work / "elsewhere"))
from pipeline_dreampose import DreamPosePipeline
run("import_hub", DreamPosePipeline.from_pretrained("someone/pushed", **next(cache)), saves=True)
run("import_folder", DreamPosePipeline.from_pretrained(work / "saved"))
(work / "hub_facts.json").write_text(json.dumps(facts))
"""

GIT, LOCAL = "diffusers_modules.git.dreampose", "diffusers_modules.local"
STORED_ADAPTER = f"{LOCAL}.dreampose_adapter"
# The modules of the pipeline's and the adapter's class, by route.
ROUTES = {
    "folder": (f"{LOCAL}.pipeline_dreampose", STORED_ADAPTER),
    "folder_again": (f"{LOCAL}.pipeline_dreampose", STORED_ADAPTER),
    "own_class": (f"{LOCAL}.pipeline_dreampose", f"{LOCAL}.pipeline_dreampose"),
    "file_and_folder": (f"{LOCAL}.pipeline_dreampose", STORED_ADAPTER),
    "file": (f"{LOCAL}.pipeline_dreampose", STORED_ADAPTER),
    "community": (GIT, STORED_ADAPTER),
    "community_main": (GIT, STORED_ADAPTER),
    "community_hub": (GIT, STORED_ADAPTER),
    "hub": (f"{LOCAL}.pipeline_dreampose", STORED_ADAPTER),
    "pushed": (f"{LOCAL}.pipeline_dreampose", STORED_ADAPTER),
    "import_hub": ("pipeline_dreampose", "pipeline_dreampose"),
    "import_folder": ("pipeline_dreampose", "pipeline_dreampose"),
}
SAVING_ROUTES = ("folder", "file", "community", "hub", "import_hub")


def run_fresh(code, work, hub, name, hidden=HIDDEN_LIBRARIES):
    """Run code in a fresh process with an empty Hugging Face home and without the `hidden` libraries."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= hub.environment | {"HF_HOME": str(work / f"home_{name}")}
    preamble = PREAMBLE.format(work=str(work), hidden=hidden, num_threads=torch.get_num_threads())
    command = [sys.executable, "-c", preamble + code]
    process = subprocess.run(command, cwd=work / "empty", env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr[-4000:]
    return json.loads((work / f"{name}_facts.json").read_text())


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with saved pipelines and inputs."""
    work = tmp_path_factory.mktemp("work")
    pipe, inputs = get_dummy_pipeline(), get_dummy_inputs()
    pipe.save_pretrained(work / "saved")
    np.save(work / "here.npy", pipe(**{**inputs, "output_type": "np"}).frames)
    inputs["image"].save(work / "photo.png")
    for i, iuv in enumerate(inputs["pose_maps"]):
        iuv.save(work / f"iuv_{i}.png")
    for folder in ("elsewhere", "empty"):
        (work / folder).mkdir()
    shutil.copy(SOURCE, work / "elsewhere")

    # plain Stable Diffusion: no code, no adapter, no image encoder, and a UNet whose input is only latents
    ours = shutil.ignore_patterns("*.py", "adapter", "image_encoder", "feature_extractor", "unet")
    shutil.copytree(work / "saved", work / "stable_diffusion", ignore=ours)
    get_unet(in_channels=4).save_pretrained(work / "stable_diffusion" / "unet")
    index = json.loads((work / "saved" / "model_index.json").read_text())
    index = {name: value for name, value in index.items() if name in ("vae", "unet", "scheduler")}
    index["_class_name"] = "StableDiffusionPipeline"
    (work / "stable_diffusion" / "model_index.json").write_text(json.dumps(index))
    return work


@pytest.fixture(scope="module")
def hub():
    with Hub() as hub:
        source = SOURCE.read_bytes()
        hub.commit(MIRROR, {f"v{diffusers.__version__}/dreampose.py": source, "main/dreampose.py": source})
        yield hub


@pytest.fixture(scope="module")
def facts(work, hub):
    """Facts that both fresh processes report. The second process sees only the push of the first."""
    facts = run_fresh(LOCAL_ROUTES, work, hub, "local")
    hub.commit(BASE, files_of(work / "saved"))
    facts |= run_fresh(HUB_ROUTES, work, hub, "hub")
    return facts


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def without_origins(files):
    """Files of a pipeline, without the `_name_or_path` that diffusers adds to configs."""
    parsed = {path: json.loads(content) for path, content in files.items() if path.endswith(".json")}
    for path, config in parsed.items():
        assert "diffusers_modules" not in json.dumps(config), path
        config.pop("_name_or_path", None)
    return files | parsed


@pytest.mark.slow
@pytest.mark.parametrize("route", ROUTES)
def test_a_fresh_process_runs_the_right_file_and_gives_the_same_pixels(work, facts, route):
    assert np.array_equal(np.load(work / f"{route}.npy"), np.load(work / "here.npy"))
    assert tuple(facts[route]) == ROUTES[route]


@pytest.mark.slow
@pytest.mark.parametrize("route", SAVING_ROUTES)
def test_every_route_saves_the_same_folder(work, facts, route):
    saved = files_of(work / f"saved_from_{route}")
    assert without_origins(saved) == without_origins(files_of(work / "saved"))


@pytest.mark.slow
def test_the_community_file_comes_from_the_mirror(facts, hub):
    asked = {path for path in hub.paths("HEAD") if path.startswith(f"/{MIRROR}/")}
    folders = (f"v{diffusers.__version__}", "main")  # for the installed release, and for `custom_revision="main"`
    assert asked == {f"/{MIRROR}/resolve/main/{folder}/dreampose.py" for folder in folders}


@pytest.mark.slow
def test_push_to_hub_writes_what_save_pretrained_writes(work, facts, hub):
    pushed = hub.files(PUSHED)
    assert "diffusers" in pushed["README.md"].decode()
    pushed = {path: content for path, content in pushed.items() if path not in ("README.md", ".gitattributes")}
    assert without_origins(pushed) == without_origins(files_of(work / "saved"))


@pytest.mark.slow
def test_code_asks_for_trust_and_a_plain_unet_is_refused(facts):
    assert "trust_remote_code=True" in facts["hub_untrusted"]
    assert "adapter" in facts["community_untrusted"] and "trust_remote_code=True" in facts["community_untrusted"]
    assert "`unet` must take 4 latent channels" in facts["not_widened"]
    assert "new input channels with weights of 0" in facts["not_widened"]


def test_the_folder_carries_its_code_and_names_nothing_else(work):
    index = json.loads((work / "saved" / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline_dreampose", "DreamPosePipeline"]
    assert index["adapter"] == ["dreampose_adapter", "DreamPoseAdapter"]
    assert index["feature_extractor"] == ["transformers", "CLIPImageProcessor"]
    assert "diffusers_modules" not in json.dumps(index) and str(work) not in json.dumps(index)
    for copy in ("pipeline_dreampose.py", "adapter/dreampose_adapter.py"):
        assert (work / "saved" / copy).read_bytes() == SOURCE.read_bytes()
    assert not list((work / "saved").rglob("*.bin"))


@pytest.mark.slow
def test_make_writes_the_file_for_upstream(tmp_path):
    subprocess.run(["make", "community", f"COMMUNITY={tmp_path}"], cwd=SOURCE.parent, check=True, capture_output=True)
    assert (tmp_path / "dreampose.py").read_text() == community_file(SOURCE.read_text())
    row = (tmp_path / "README.md").read_text().splitlines()[0]
    assert row.count("|") == 6 and "(#dreampose)" in row and "\n## DreamPose\n" in (tmp_path / "README.md").read_text()


def test_own_class_asks_no_trust_and_runs_no_second_copy(work):
    pipe = DreamPosePipeline.from_pretrained(work / "saved")
    assert type(pipe) is DreamPosePipeline and type(pipe.adapter) is DreamPoseAdapter
    pipe.set_progress_bar_config(disable=True)
    inputs = {**get_dummy_inputs(), "image": Image.open(work / "photo.png"), "output_type": "np"}
    assert np.array_equal(pipe(**inputs).frames, np.load(work / "here.npy"))
    assert pipe.config.image_range == (-1.0, 1.0) and pipe.config.default_num_inference_steps == 2


def test_what_diffusers_lacks_for_one_s_own_class_is_still_lacking(work, monkeypatch):
    """If this fails, the override of `_dict_from_json_file` can go."""
    monkeypatch.delattr(DreamPosePipeline, "_dict_from_json_file")
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        DreamPosePipeline.from_pretrained(work / "saved")


def test_private_names_of_diffusers_have_no_public_counterpart():
    """If this fails, the public name can replace the private one in the pipeline's file."""
    assert not [name for name in dir(ModelHook) if "stateful" in name and not name.startswith("_")]
    assert "pipeline" not in inspect.signature(DreamPoseAdapter.load_lora_adapter).parameters
    assert not hasattr(import_utils.is_torchvision_available, "cache_clear")


def test_settings_are_saved(tmp_path):
    pipe = get_dummy_pipeline(image_range=(0.0, 1.0), pose_range=(-1.0, 1.0), default_pose_guidance_scale=4.5)
    pipe.save_pretrained(tmp_path)
    config = DreamPosePipeline.from_pretrained(tmp_path).config
    assert config.image_range == (0.0, 1.0) and config.pose_range == (-1.0, 1.0)
    assert config.default_pose_guidance_scale == 4.5
    changed = DreamPosePipeline.from_pretrained(tmp_path, default_pose_guidance_scale=2.0).config
    assert changed.default_pose_guidance_scale == 2.0


def test_a_folder_that_stores_no_end_of_guidance_is_guided_in_every_step(tmp_path):
    get_dummy_pipeline(default_guidance_stop=0.5).save_pretrained(tmp_path)
    assert DreamPosePipeline.from_pretrained(tmp_path).config.default_guidance_stop == 0.5
    index = json.loads((tmp_path / "model_index.json").read_text())
    del index["default_guidance_stop"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    pipe = DreamPosePipeline.from_pretrained(tmp_path)
    assert pipe.config.default_guidance_stop == 1.0
    pipe.set_progress_bar_config(disable=True)
    assert torch.equal(pipe(**get_dummy_inputs()).frames, get_dummy_pipeline()(**get_dummy_inputs()).frames)


def test_saving_over_a_loaded_folder(tmp_path):
    get_dummy_pipeline().save_pretrained(tmp_path)
    before = (tmp_path / "model_index.json").read_text()
    DreamPosePipeline.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert (tmp_path / "model_index.json").read_text() == before
    assert (tmp_path / "pipeline_dreampose.py").read_bytes() == SOURCE.read_bytes()


def test_variants_and_half_precision(tmp_path):
    pipe = get_dummy_pipeline().to(torch.float16)
    pipe.save_pretrained(tmp_path, variant="fp16")
    assert (tmp_path / "unet" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    loaded = DreamPosePipeline.from_pretrained(tmp_path, variant="fp16", dtype=torch.float16)
    assert {c.dtype for c in loaded.components.values() if isinstance(c, torch.nn.Module)} == {torch.float16}


def test_sharded_weights(tmp_path):
    pipe = get_dummy_pipeline()
    pipe.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list((tmp_path / "unet").glob("*-of-*.safetensors"))) > 1
    inputs = get_dummy_inputs()
    before = pipe(**{**inputs, "generator": torch.Generator().manual_seed(0)}).frames
    loaded = DreamPosePipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(loaded(**{**inputs, "generator": torch.Generator().manual_seed(0)}).frames, before)


def test_from_pipe_shares_the_components():
    pipe = get_dummy_pipeline()
    other = DreamPosePipeline.from_pipe(pipe)
    assert other.unet is pipe.unet and other.adapter is pipe.adapter and other.config.default_height == 32


def test_a_foreign_folder_needs_trust(work):
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        DiffusionPipeline.from_pretrained(work / "saved")


def test_layers_of_peft_are_not_saved(tmp_path):
    pipe = get_dummy_pipeline()
    pipe.adapter.add_adapter(LoraConfig(r=2, target_modules=["vae_projection"]))
    with pytest.raises(ValueError, match="`save_pretrained` .* PEFT .* `adapter`"):
        pipe.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize(
    "save_directory", ["", None, 3, b"saved", "a" * 300, "file", "file/folder", "a\0b", ["saved"]]
)
def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_written(tmp_path, monkeypatch, save_directory):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("of the user")
    pipe, layers = get_dummy_pipeline(), {"a.lora_A.weight": torch.zeros(1, 1)}
    for save in (pipe.save_pretrained, pipe.save_config, lambda folder: pipe.save_lora_weights(folder, layers)):
        with pytest.raises(
            ValueError, match="`save_directory` must be a folder or the path of a new one; got"
        ) as error:
            save(save_directory)
        assert len(str(error.value)) < 300
    assert list(Path().iterdir()) == [Path("file")] and Path("file").read_text() == "of the user"


def test_the_saved_code_is_that_which_ran(tmp_path, monkeypatch):
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    folders, pipes = [tmp_path / "first", tmp_path / "second"], []
    for folder in folders:
        get_dummy_pipeline().save_pretrained(folder)
        for copy in ("pipeline_dreampose.py", "adapter/dreampose_adapter.py"):
            with (folder / copy).open("a") as file:
                file.write(f"# the code of the {folder.name} folder\n")
        pipes.append(DiffusionPipeline.from_pretrained(folder, trust_remote_code=True))
    for name in [name for name in sys.modules if name.startswith("diffusers_modules")]:
        monkeypatch.delitem(sys.modules, name)
    for folder, pipe in zip(folders, pipes):
        pipe.save_pretrained(tmp_path / "again")
        for copy in ("pipeline_dreampose.py", "adapter/dreampose_adapter.py"):
            assert (tmp_path / "again" / copy).read_bytes() == (folder / copy).read_bytes()


class OtherAdapter(DreamPoseAdapter):
    pass


class OtherPipeline(DreamPosePipeline):
    pass


def test_other_classes_are_not_saved_under_the_name_of_ours(tmp_path):
    same_name = type("DreamPoseAdapter", (DreamPoseAdapter,), {})
    config = {name: value for name, value in get_dummy_pipeline().adapter.config.items() if not name.startswith("_")}
    pipes = [get_dummy_pipeline(adapter=adapter(**config)) for adapter in (OtherAdapter, same_name)]
    pipes.append(get_dummy_pipeline(adapter=get_unet()))
    for pipe in pipes:
        for save in (pipe.save_pretrained, pipe.save_config):
            with pytest.raises(ValueError, match="`adapter` must be a DreamPoseAdapter itself to be saved.* got"):
                save(tmp_path / "saved")
    with pytest.raises(ValueError, match="must be a DreamPosePipeline itself to be saved.* got OtherPipeline"):
        OtherPipeline(**get_dummy_pipeline().components).save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_pipeline_without_an_adapter_is_recorded_as_such(tmp_path):
    get_dummy_pipeline(adapter=None).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["adapter"] == [None, None]
    assert not (tmp_path / "adapter").exists()
    adapter = get_dummy_pipeline().adapter
    assert DreamPosePipeline.from_pretrained(tmp_path, adapter=adapter).adapter is adapter


def test_components_carry_the_ranges_of_their_weights():
    pipe = get_dummy_pipeline(image_range=(0.0, 1.0), pose_range=(-1.0, 1.0))
    pipe.register_to_config(pose_range=(-2.0, 2.0))  # also if it is changed later
    for other in (DreamPosePipeline(**pipe.components), DreamPosePipeline.from_pipe(pipe)):
        assert other.config.image_range == (0.0, 1.0) and other.config.pose_range == (-2.0, 2.0)
    config = DreamPosePipeline(**pipe.components, image_range=(-1.0, 1.0)).config
    assert config.image_range == (-1.0, 1.0) and config.pose_range == (-2.0, 2.0)
    plain = get_dummy_pipeline().config
    assert plain.image_range == (-1.0, 1.0) and plain.pose_range == (0.0, 1.0)


@pytest.mark.parametrize(
    "value", [(1, 1), (0,), "01", (0, 1e-300), (True, False), (0, 10**400), (0, float("nan")), (0, "1"), 5]
)
@pytest.mark.parametrize("name", ["image_range", "pose_range"])
def test_ranges_are_checked(name, value):
    with pytest.raises(
        ValueError, match=f"`{name}` must be two numbers in \\[-1000, 1000\\], at least 0.001 apart; got"
    ):
        get_dummy_pipeline(**{name: value})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("output_type", ["np", "pt"])
def test_global_defaults_of_torch_change_nothing(work, dtype, device, output_type):
    """A default device, even the CPU, makes torch pass `device` to all functions that make tensors."""
    previous = torch.get_default_dtype()
    inputs = {**get_dummy_inputs(), "image": Image.open(work / "photo.png"), "output_type": output_type}
    maps = torch.stack([iuv_to_pose_map(iuv) for iuv in inputs["pose_maps"]]).numpy()
    try:
        torch.set_default_dtype(dtype)
        torch.set_default_device(device)
        pipe = DreamPosePipeline.from_pretrained(work / "saved", dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        frames = pipe(**{**inputs, "pose_maps": maps}, latents=None).frames
        adapter = DreamPoseAdapter(8, 3, 2, 4, 4).token_mixer
    finally:
        torch.set_default_dtype(previous)
        torch.set_default_device(None)
    expected = np.load(work / "here.npy")
    frames = frames if output_type == "np" else frames.permute(0, 1, 3, 4, 2).numpy()
    assert frames.dtype == np.float32 and np.array_equal(frames, expected)
    assert torch.equal(adapter.weight, torch.eye(3, 5, dtype=dtype)) and not adapter.bias.any()


def test_an_adapter_without_memory_can_be_made():
    with torch.device("meta"):
        assert DreamPoseAdapter().token_mixer.weight.is_meta
