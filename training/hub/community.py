# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""The file for diffusers' `examples/community`: the plug-in without what the other pipelines there do not have.

Left out are subjects as LoRA files, few-step LoRAs, aligned poses, and saving with code. The plug-in marks these parts
by comments. What is left samples the same frames. `make community` writes the file with any Python.
"""

import ast
import re
from pathlib import Path


_BEGIN, _END = r"^ *# examples/community: left out\n", r"^ *# examples/community: end\n\n*"
_MARKED = re.compile(f"{_BEGIN}.*?{_END}", re.MULTILINE | re.DOTALL)
# Texts of the kept parts that name what is left out.
_REPLACED = {
    "class DreamPoseAdapter(ModelMixin, ConfigMixin, PeftAdapterMixin):": (
        "class DreamPoseAdapter(ModelMixin, ConfigMixin):"
    ),
    "class DreamPosePipeline(DiffusionPipeline, LoraBaseMixin):": "class DreamPosePipeline(DiffusionPipeline):",
    """
    A subject is a person that the model was fine-tuned on, stored as a LoRA of UNet, adapter and VAE in one file.
    [`~DreamPosePipeline.load_lora_weights`] and the methods of [`LoraBaseMixin`] act on all three.
""": "",
}


def community_file(plug_in: str) -> str:
    """Return the text of the file for `examples/community`, from that of the plug-in.

    Raises:
        ValueError: If the plug-in lacks a text that is to be replaced.
    """
    text = _MARKED.sub("", plug_in)
    for old, new in _REPLACED.items():
        if text.count(old) != 1:
            raise ValueError(f"`plug_in` must contain this text once, got it {text.count(old)} times: {old.strip()}")
        text = text.replace(old, new)
    return re.sub(r"\n{3,}(?=    \S)", "\n\n", _without_unused_imports(text)).rstrip("\n") + "\n"


def _without_unused_imports(text: str) -> str:
    """Drop the names that the module's own import lines bind and that nothing else in it uses."""
    tree, lines = ast.parse(text), text.splitlines(keepends=True)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    for node in reversed([node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]):
        kept = [name for name in node.names if (name.asname or name.name.split(".")[0]) in used]
        if len(kept) < len(node.names):
            node.names = kept
            lines[node.lineno - 1 : node.end_lineno] = [f"{ast.unparse(node)}\n"] if kept else []
    return "".join(lines)


def write_community_file(plug_in: Path, folder: Path) -> None:
    """Write `dreampose.py` into a folder."""
    (folder / "dreampose.py").write_text(community_file(plug_in.read_text(encoding="utf-8")), encoding="utf-8")
