"""Makes the forms of the guard and writes what they are into guard.toml: their hashes, and which are the default.

    python models/recipe/forms.py

The bytes are the same on every machine, so the hashes change only with the adapter, the base or the converter.
`calibrate.py` fits each form's calibrations, `bench/forms.py` says what the choice of the default rests on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from edgeguard.builtin import BuiltIn, built_in
from edgeguard.convert.built_in import write_form
from edgeguard.formats.hashes import sha256

FORMS = {"q8_0": "gguf", "q4_0": "gguf", "onnx-int8": "onnx", "onnx-int4": "onnx"}
# One for each runtime, the first whose runtime is installed: inside the reference's noise in every figure of the card
# (four bits are not), and of two runtimes the faster one first, as `bench/forms.py` measured them.
DEFAULT = ("q8_0", "onnx-int8")
MARK = "# Written by forms.py."


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guard", default="edgeguard-135m")
    guard = built_in(parser.parse_args().guard)
    path = guard.folder / "guard.toml"
    before = path.read_text(encoding="utf-8").partition(MARK)[0].rstrip()
    path.write_text(f"{before}\n\n{describe(guard)}", encoding="utf-8")
    print(path.read_text(encoding="utf-8"), end="")


def describe(guard: BuiltIn) -> str:
    """The part of guard.toml that is about forms."""
    parts = [f"{MARK}\n[forms]\ndefault = {json.dumps(DEFAULT)}\n"]
    for name, kind in FORMS.items():
        with tempfile.TemporaryDirectory() as folder:
            write_form(guard, name, Path(folder))
            hashes = {file.name: sha256(file) for file in sorted(Path(folder).iterdir())}
        lines = "".join(f'"{file}" = "{digest}"\n' for file, digest in hashes.items())
        parts.append(f'[form.{name}]\nkind = "{kind}"\n\n[form.{name}.sha256]\n{lines}')
    return "\n".join(parts)


if __name__ == "__main__":
    main()
