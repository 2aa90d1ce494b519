"""What a model file is, as far as it says: read, never loaded. Nothing of it is believed that is not shown as its word.

A model that edgeguard cannot score with is described too, and why it cannot. Weights are hashed, not read.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgeguard.formats.model_file import find_model
from edgeguard.inspection.files import Hashes
from edgeguard.inspection.gguf_file import inspect_gguf
from edgeguard.inspection.hf_folder import inspect_checkpoint, inspect_peft, is_peft
from edgeguard.inspection.onnx_file import inspect_onnx
from edgeguard.inspection.types import CONSTANTS, Inspection
from edgeguard.profile import detect_profile, list_profiles

__all__ = ["CONSTANTS", "Inspection", "inspect_model"]


def inspect_model(path: str | Path) -> Inspection:
    """What a file or a folder is. Raises ModelError where it cannot be read as a model at all."""
    path = Path(path)
    if is_peft(path):
        return inspect_peft(path, Hashes())
    model = find_model(path)
    readers = {"gguf": inspect_gguf, "onnx": inspect_onnx, "checkpoint": inspect_checkpoint}
    found = readers[model.kind](model.path, Hashes())
    if found.kind == "adapter":
        return found
    said = {"architecture": found.architecture, "name": found.name, "chat_template": found.chat_template}
    fits = tuple(p.name for p in list_profiles() if p.detect.matches(**said))  # type: ignore[arg-type]
    return replace(found, profile=detect_profile(**said), profiles=fits)  # type: ignore[arg-type]
