"""Makes the forms of a guard and writes what they are into guard.toml: their hashes, and which are the default.

    python models/recipe/forms.py
    python models/recipe/forms.py --guard edgeguard-500m

The bytes are the same on every machine, so the hashes change only with the adapter, the base or the converter.
`calibrate.py` fits each form's calibrations, `bench/forms.py` says what the choice of the default rests on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from edgeguard.builtin import ADAPTER, BuiltIn, built_in
from edgeguard.convert.built_in import write_form
from edgeguard.formats.hashes import sha256

KINDS = {"q8_0": "gguf", "q4_0": "gguf", "onnx-int8": "onnx", "onnx-int4": "onnx"}
# Guard → its forms, and the default ones: one for each runtime, the first whose runtime is installed.
FORMS = {
    # Inside the reference's noise in nearly every figure (`bench/forms.py`); of two runtimes the faster comes first.
    # Of version 1 four bits were not: that version has them, by its pin.
    "edgeguard-135m": (("q8_0", "onnx-int8"), ("q8_0", "onnx-int8")),
    # As it comes, on the K-quants of its base's makers; merged for those who have ONNX Runtime alone.
    "edgeguard-500m": (("onnx-int8",), (ADAPTER, "onnx-int8")),
}
MARK = "# Written by forms.py."


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guard", default="edgeguard-135m", choices=sorted(FORMS))
    guard = built_in(parser.parse_args().guard)
    path = guard.folder / "guard.toml"
    before = path.read_text(encoding="utf-8").partition(MARK)[0].rstrip()
    path.write_text(f"{before}\n\n{describe(guard)}", encoding="utf-8")
    print(path.read_text(encoding="utf-8"), end="")


def describe(guard: BuiltIn) -> str:
    """The part of guard.toml that is about forms."""
    forms, default = FORMS[guard.name]
    parts = [f"{MARK}\n[forms]\ndefault = {json.dumps(default)}\n"]
    for name in forms:
        with tempfile.TemporaryDirectory() as folder:
            write_form(guard, name, Path(folder))
            hashes = {file.name: sha256(file) for file in sorted(Path(folder).iterdir())}
        lines = "".join(f'"{file}" = "{digest}"\n' for file, digest in hashes.items())
        parts.append(f'[form.{name}]\nkind = "{KINDS[name]}"\n\n[form.{name}.sha256]\n{lines}')
    return "\n".join(parts)


if __name__ == "__main__":
    main()
