"""The rules of CONTRIBUTING.md, checked in the source files."""

import ast
import configparser
import functools
import graphlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
PLUG_IN = ROOT / "pipeline_dreampose.py"
BLOCKS = ROOT / "modular_dreampose.py"
TINY = ROOT / "model_card" / "tiny"
TRAINING = sorted((ROOT / "training").rglob("*.py"))
ROOMS = sorted(path.parent for path in TRAINING if path.name == "__init__.py" and path.parent.name != "training")
BENCHMARKS = sorted((ROOT / "benchmarks").rglob("*.py"))
PROJECT = [PLUG_IN, BLOCKS, ROOT / "animate.py", *TRAINING, *BENCHMARKS]
PROJECT_NAMES = {"pipeline_dreampose", "modular_dreampose", "animate", "benchmarks", "training", "tests"}
PLUG_IN_IMPORTS = {"torch", "numpy", "PIL", "diffusers", "transformers", "peft", "safetensors", "huggingface_hub"}

# The column of imports, from the top down: a module imports from its own row and from the rows above it.
ROWS = [
    ["pipeline_dreampose"],
    ["modular_dreampose"],
    ["training.engine"],
    ["training.media"],
    ["training.poses"],
    ["training.data"],
    ["training.metrics"],
    ["training.hub"],
    ["training.models", "training.options"],
    ["training.subject"],
    ["training", "animate"],  # the entry points
    ["benchmarks"],
]
# The extra that an entry point needs; `training` for all others.
EXTRAS = {
    "animate": None,
    "training.evaluation": "evaluation",
    "training.extract_poses": None,
    "training.push_model": None,
}
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml"}
# Imported only if an option asks for them, after a check that they are installed.
CHOSEN = {"bitsandbytes", "tensorboard", "wandb"}
OPTIONS = {f"training.options.{name}" for name in ("run", "stage_one", "encoders", "subject", "few_steps")}
HEAVY = {"torch", "diffusers", "accelerate", "datasets", "peft"}
MODULES_WITHOUT_OTHERS = {"training.metrics.frames", "training.models.objective"}


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@functools.cache
def tree_of(path):
    return ast.parse(path.read_text())


def imports_of(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # In a model's folder, diffusers finds and copies only what is imported relatively.
            is_allowed = node.level == 0 or (node.level, node.module) == (1, PLUG_IN.stem)
            assert is_allowed, f"relative import in line {node.lineno}"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_entry_point(tree):
    return any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)


def row_of(name):
    """Return the row number of a module of the project, and `None` for a library."""
    rows = {folder: number for number, row in enumerate(ROWS) for folder in row}
    while name not in rows and "." in name:
        name = name.rpartition(".")[0]
    return rows.get(name)


def functions_of(tree):
    """Yield functions and methods, each with the name of its class; nested functions are left out."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield "", node
        elif isinstance(node, ast.ClassDef):
            for child in node.body:
                if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield node.name, child


def by_module(paths):
    return pytest.mark.parametrize("path", paths, ids=module_name)


def folder_of(name):
    """Return the entry of `ROWS` that holds a module of the project, and `None` for a library."""
    folders = {folder for row in ROWS for folder in row}
    while name not in folders and "." in name:
        name = name.rpartition(".")[0]
    return name if name in folders else None


def upward_imports(name, tree):
    """Return the imports of a module that run up the column, or across to another folder of the same row."""
    own = row_of(name), folder_of(name)
    imports = [found for found in imports_of(tree) if row_of(found) is not None and found != "training"]
    return [found for found in imports if row_of(found) >= own[0] and folder_of(found) != own[1]]


def test_every_folder_has_a_row_and_the_others_are_entry_points():
    assert {f"training.{room.name}" for room in ROOMS} == {f for row in ROWS for f in row if f.startswith("training.")}
    alone = [path for path in TRAINING if path.parent.name == "training" and path.name != "__init__.py"]
    assert all(is_entry_point(tree_of(path)) for path in alone), "a module that is no entry point belongs in a folder"


@by_module(PROJECT)
def test_imports_run_down_one_column(path):
    name, tree = module_name(path), tree_of(path)
    assert not upward_imports(name, tree)
    assert "tests" not in {found.split(".")[0] for found in imports_of(tree)}
    if name in MODULES_WITHOUT_OTHERS:
        others = {found for found in imports_of(tree) if row_of(found) is not None}
        assert {found.split(".")[0] for found in others} <= {"pipeline_dreampose"}, f"{name} imports {others}"


def test_an_import_that_runs_up_is_found():
    tree = ast.parse("def f():\n    from training.hub.repositories import load_pipeline")
    assert upward_imports("training.data.samples", tree)
    assert upward_imports("training.hub.card_writer", tree) == upward_imports("training.train", tree) == []
    assert upward_imports("training.models.lora", ast.parse("from training.options.fields import check")), "across"
    assert not upward_imports("training.models.lora", ast.parse("from training.models.denoiser import Denoiser"))


def test_modules_of_a_room_import_each_other_in_no_circle():
    imports = {}
    for path in PROJECT:
        names = {module_name(other) for other in PROJECT}
        imports[module_name(path)] = {found for found in imports_of(tree_of(path)) if found in names}
    graphlib.TopologicalSorter(imports).prepare()  # raises CycleError


def test_only_tests_import_entry_points_and_only_entry_points_see_options():
    entry_points = {module_name(path) for path in PROJECT if is_entry_point(tree_of(path))}
    assert "animate" in entry_points and "training.evaluation" in entry_points
    for path in PROJECT:
        imported = set(imports_of(tree_of(path)))
        assert not imported & entry_points, f"{module_name(path)} imports {imported & entry_points}"
        if module_name(path) not in entry_points | OPTIONS:
            assert not imported & OPTIONS, f"{module_name(path)} imports {imported & OPTIONS}"


def test_the_imports_of_an_entry_point_are_installed_with_its_extra():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    paths = {module_name(path): path for path in PROJECT}
    for entry_point in [name for name, path in paths.items() if is_entry_point(tree_of(path))]:
        extra = EXTRAS.get(entry_point, "training")
        required = settings["options"]["install_requires"]
        required += settings["options.extras_require"][extra] if extra else ""
        allowed = set(re.findall(r"^[\w-]+", required, re.MULTILINE))
        seen, queue = set(), [entry_point]
        while queue:
            name = queue.pop()
            seen.add(name)
            queue += [found for found in imports_of(tree_of(paths[name])) if found in paths and found not in seen]
        third_party = {found.split(".")[0] for name in seen for found in imports_of(tree_of(paths[name]))}
        third_party -= PROJECT_NAMES | CHOSEN | set(sys.stdlib_module_names)
        missing = {DISTRIBUTIONS.get(name, name) for name in third_party} - allowed
        assert not missing, f"{entry_point} imports {missing}, which its extra {extra!r} does not install"


def test_optional_packages_are_imported_only_on_demand():
    for path in PROJECT:
        at_import = ast.Module(
            [node for node in tree_of(path).body if isinstance(node, ast.Import | ast.ImportFrom)], []
        )
        assert not {name.split(".")[0] for name in imports_of(at_import)} & CHOSEN, path


def test_the_plug_in_stands_alone():
    assert PLUG_IN.exists()
    standard_library = set(sys.stdlib_module_names)
    found = {name.split(".")[0] for name in imports_of(tree_of(PLUG_IN))} - standard_library
    assert found <= PLUG_IN_IMPORTS, f"the plug-in imports {found - PLUG_IN_IMPORTS}"
    assert not re.search(r"^\s*(from|import)\s+\.", PLUG_IN.read_text(), re.MULTILINE), "even an example is scanned"
    classes = [node for node in tree_of(PLUG_IN).body if isinstance(node, ast.ClassDef)]
    pipelines = [c for c in classes if any(ast.unparse(base) == "DiffusionPipeline" for base in c.bases)]
    assert [c.name for c in pipelines] == ["DreamPosePipeline"]


@by_module([*[path for path in TRAINING if path.name != "__init__.py"], *ROOMS])
def test_no_module_is_named_like_a_library(path):
    """A launched file puts its own folder first on the path, so files and folders there can hide libraries."""
    spec = importlib.util.find_spec(path.stem)
    assert spec is None or Path(spec.origin or path).is_relative_to(ROOT / "training"), spec


@by_module([PLUG_IN, *PROJECT[1:]])
def test_sizes(path):
    tree, lines = tree_of(path), path.read_text().count("\n")
    if is_entry_point(tree):
        assert lines <= 120, f"{path.name}: {lines} lines, entry points have 120"
    else:
        limit = {PLUG_IN: 1623, BLOCKS: 546}.get(path, 400)
        assert lines <= limit, f"{path.name}: {lines} lines, {limit} allowed"
    for owner, function in functions_of(tree):
        limit = 50
        if path == PLUG_IN:
            limit = 130 if function.name == "__call__" else None
        length = length_of(function)
        assert limit is None or length <= limit, f"{path.name}: {owner} {function.name} has {length} lines"


def length_of(function):
    """Return the number of lines of the body below the docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


ENTRY_POINTS = [path for path in PROJECT if is_entry_point(tree_of(path))]


@by_module(ENTRY_POINTS)
def test_entry_points_can_be_called_from_a_test(path):
    functions = {node.name: node for node in tree_of(path).body if isinstance(node, ast.FunctionDef)}
    assert [a.arg for a in functions["parse_args"].args.args] == ["argv"] and functions["parse_args"].args.defaults
    assert len(functions["main"].args.args) >= 1
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.If, ast.Expr)
    assert all(isinstance(node, allowed) for node in tree_of(path).body)
    conditions = [ast.unparse(node.test) for node in tree_of(path).body if isinstance(node, ast.If)]
    assert conditions in (["__name__ == '__main__'"], ["TYPE_CHECKING", "__name__ == '__main__'"])


def test_help_and_bad_options_answer_before_torch_is_imported():
    entry_points = [module_name(path) for path in ENTRY_POINTS if not module_name(path).startswith("benchmarks.")]
    assert {"animate", "training.train", "training.finetune", "training.evaluation"} <= set(entry_points)
    code = f"""
import contextlib, importlib, sys
for name in {entry_points}:
    for argv in (["--help"], ["--no-such-option"]):
        with contextlib.suppress(SystemExit):
            importlib.import_module(name).parse_args(argv)
    found = {HEAVY} & set(sys.modules)
    assert not found, f"{{name}} imports {{found}}"
"""
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("usage: ") == len(entry_points)


@by_module(PROJECT)
def test_docstring_arguments_are_those_of_the_signature(path):
    for owner, function in functions_of(tree_of(path)):
        docstring = ast.get_docstring(function) or ""
        if "\nArgs:" not in docstring:
            continue
        arguments = [a.arg for a in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
        arguments += [a.arg for a in (function.args.vararg, function.args.kwarg) if a is not None]
        arguments = [name for name in arguments if name not in ("self", "cls")]
        assert documented_arguments(docstring) == arguments, f"{path.name}: {owner} {function.name}"


def documented_arguments(docstring):
    section = re.split(r"\n(?=\w[\w ]*:\n)", docstring.split("\nArgs:\n")[1])[0]
    entries = re.findall(r"^    (\**\w+(?:, \**\w+)*)(?: \(.*?\))?:", section, re.MULTILINE)
    return [name.strip("* ") for entry in entries for name in entry.split(",")]


@by_module(PROJECT)
def test_public_functions_are_annotated(path):
    for owner, function in functions_of(tree_of(path)):
        if function.name.startswith("_") or owner:
            continue
        arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        bare = [a.arg for a in arguments if a.annotation is None]
        assert not bare and function.returns is not None, f"{path.name}: {function.name} {bare or 'returns'}"


@by_module(PROJECT)
def test_devices_and_pickles_are_left_alone(path):
    source = path.read_text()
    assert ".cuda(" not in source, "devices follow the components"
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords), path
    assert not {"pickle", "cv2", "torchvision", "einops"} & set(imports_of(tree_of(path)))


DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *(ROOT / "docs").glob("*.md"),
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_in_the_documents_lead_somewhere(document):
    def anchors(path):
        titles = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}

    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if not link.startswith("http"):
            file, _, anchor = link.partition("#")
            path = document.parent / file if file else document
            assert path.exists() and (not anchor or anchor in anchors(path)), link


def test_commands_in_the_documents_exist():
    targets = set(re.findall(r"^([a-z-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test", "test-fast", "quality", "style", "tiny", "tiny-code"} <= targets
    for document in DOCUMENTS:
        text = document.read_text()
        used = set(re.findall(r"(?:^|`)make ((?!PIP_ARGS|PYTHON|VENV|runs/)[a-z-]+)", text, re.MULTILINE))
        assert used <= targets, f"{document.name} names {used - targets}"
        for file in re.findall(r"(?:python|launch)\s(?:--\S+\s(?:\d+\s)?)*((?:\w+/)*\w+\.py)", text):
            assert (ROOT / file).is_file(), f"{document.name} names {file}"


@pytest.mark.parametrize("words", [[], ["GPU=1"]], ids=["cpu", "gpu"])
def test_the_small_model_s_batches_are_the_same_on_both_devices(words):
    """The presets' batches are for two processes, or for two micro-batches of one process."""
    command = ["make", "--no-print-directory", "--dry-run", "tiny", "VENV=v", *words]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    lines = process.stdout.splitlines()
    launches = [line for line in lines if "accelerate launch" in line]
    assert len(launches) == 4
    for line in launches:
        num_processes = int(re.search(r"--num_processes (\d+)", line)[1])
        accumulated = re.search(r"--gradient_accumulation_steps (\d+)", line)
        assert num_processes * int(accumulated[1] if accumulated else 1) == 2
        # Every CPU process would ask for a GPU that it sees.
        assert all((word in line) == (not words) for word in ("CUDA_VISIBLE_DEVICES= ", "ACCELERATE_USE_CPU=true"))


def documented_flags():
    """Map each script to the flags that the documents give it."""
    flags = {}
    for document in DOCUMENTS:
        text = document.read_text().replace("\\\n", " ")
        for file, words in re.findall(r"(?:python|launch)\s(?:--\S+\s(?:\d+\s)?)*((?:\w+/)*\w+\.py)([^`\n]*)", text):
            flags.setdefault(file, set()).update(re.findall(r"(--\w+)", words))
        for module, words in re.findall(r"python -m (benchmarks(?:\.\w+)+)([^`\n]*)", text):
            flags.setdefault(module.replace(".", "/") + ".py", set()).update(re.findall(r"(--\w+)", words))
    return flags


@pytest.mark.parametrize("file", sorted(documented_flags()))
def test_flags_in_the_documents_exist(file, capsys):
    script = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    with pytest.raises(SystemExit):
        script.parse_args(["--help"])
    missing = documented_flags()[file] - set(re.findall(r"--\w+", capsys.readouterr().out))
    assert not missing, f"{file} has no {missing}"


def test_requirements_are_pinned_once():
    constraints = (ROOT / "constraints.txt").read_text()
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)$", constraints, re.MULTILINE))
    setup = (ROOT / "setup.cfg").read_text()
    sections = re.findall(
        r"^(?:install_requires|training|evaluation|densepose|test|quality) =\n((?: {4}.+\n)+)", setup, re.M
    )
    required = {re.split(r"[<>=\[ ]", line)[0] for line in "".join(sections).split()} - {"dreampose-diffusers"}
    required = {name for name in required if not name.startswith(("presets/", "data/"))}
    assert len(required) > 10 and required <= set(pinned), f"not pinned: {required - set(pinned)}"


@pytest.mark.skipif(not TINY.exists(), reason="the small model is not in this checkout")
@pytest.mark.parametrize("copy", ["pipeline_dreampose.py", "adapter/dreampose_adapter.py", "modular_dreampose.py"])
def test_the_copies_in_the_small_model_are_the_plug_in_and_the_blocks(copy):
    source = BLOCKS if copy == BLOCKS.name else PLUG_IN
    assert (TINY / copy).read_bytes() == source.read_bytes(), "run `make tiny-code`"
