"""A checkpoint's export from folder to folder: checked before, torch in a process of its own, the settings copied."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from edgeguard.convert.blocks import ACCURACY, Activations
from edgeguard.convert.checkpoint.checks import check_adapter, check_checkpoint, check_packages
from edgeguard.convert.checkpoint.torch_process import Job, Precision, run_job
from edgeguard.errors import OutputError
from edgeguard.formats.bounded_json import find_object

_COPIED = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "chat_template.json", "config.json", "generation_config.json"),
)


def export(
    folder: Path,
    out: Path,
    *,
    to: Precision,
    lora: Path | None = None,
    lora_scale: float = 1.0,
    activations: Activations = "int8",
) -> None:
    """Write the checkpoint in `folder` into the empty folder `out`: model.onnx, model.onnx.data, tokenizer, configs.

    to           "fp32", "fp16", or "int8" and "int4": symmetric blocks of 32 weights in MatMulNBits, the
                 embedding and the output layer of 8 bits in both
    lora         a PEFT folder, merged before the export; lora_scale multiplies what it changes
    activations  what quantized matrices are multiplied with: rounded to 8 bits, or as they are

    The same files and packages give the same bytes. Raises ModelError for a checkpoint that cannot be exported or
    whose graph computes something else, OutputError where `out` cannot be written; its content is of no use then.
    """
    if to not in ("fp32", "fp16", "int8", "int4") or activations not in ACCURACY:
        raise ValueError(f"to is {to!r} and activations {activations!r}; expected fp32, fp16, int8, int4; int8, float")
    check_checkpoint(folder)
    if lora is not None:
        check_adapter(lora)
    check_packages(with_peft=lora is not None)
    try:
        with tempfile.TemporaryDirectory(dir=out, prefix=".export-") as place:
            run_job(
                Job(
                    folder=folder.absolute(),
                    out=out.absolute(),
                    place=Path(place).absolute(),
                    to=to,
                    lora=None if lora is None else lora.absolute(),
                    lora_scale=lora_scale,
                    activations=activations,
                )
            )
        copy_settings(folder, out)
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error.strerror or error}") from error


def copy_settings(folder: Path, out: Path) -> None:
    """The files beside the weights, as they are but for paths of the machine they were made on."""
    for name in _COPIED:
        if not (folder / name).is_file():
            continue
        said = find_object(folder / name) if name.endswith("config.json") else None
        local = [key for key in ("_name_or_path", "name_or_path") if said and _is_local(str(said.get(key, "")))]
        if said and local:
            kept = {key: _last_part(str(value)) if key in local else value for key, value in said.items()}
            (out / name).write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        else:
            shutil.copyfile(folder / name, out / name)


def _is_local(path: str) -> bool:
    return path.startswith(("/", "~", ".")) or "\\" in path or path[1:2] == ":" or path.count("/") > 1


def _last_part(path: str) -> str:
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2]
