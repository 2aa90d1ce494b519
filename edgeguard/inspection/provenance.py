"""What edgeguard's own record says of how a model was made, and whether its files are still those."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeguard.errors import ModelError
from edgeguard.formats.manifest import Origin, from_metadata, read_manifest
from edgeguard.inspection.files import Hashes
from edgeguard.inspection.types import File, Provenance, State


def find_provenance(
    manifest: Path, metadata: Mapping[str, str], files: Sequence[File], hashes: Hashes
) -> tuple[Provenance | None, tuple[str, ...]]:
    """What edgeguard wrote of a conversion, and what is to be said of it: from the manifest, else the metadata."""
    notices: tuple[str, ...] = ()
    try:
        found = read_manifest(manifest)
        if found is not None:
            origin, outputs = found
            changed = _changed(manifest.parent, outputs, files, hashes)
            return _provenance(manifest.name, origin, "changed since" if changed else "as converted", changed), ()
    except ModelError as error:
        notices = (f"its manifest says nothing: {error}",)
    own = from_metadata(metadata)
    return None if own is None else _provenance("metadata", own, "not known"), notices


def _provenance(said_in: str, origin: Origin, state: State, changed: tuple[str, ...] = ()) -> Provenance:
    return Provenance(said_in, origin.to, origin.sources, origin.options, origin.tools, state, changed)


def _changed(
    folder: Path, outputs: Sequence[Mapping[str, Any]], files: Sequence[File], hashes: Hashes
) -> tuple[str, ...]:
    """Outputs that are not as their entries have them, and files that have no entry."""
    changed = [str(entry.get("file", "")) for entry in outputs if not _is_unchanged(folder, entry, hashes)]
    # A file that was put there later may be what a score comes from.
    listed = {entry.get("sha256") for entry in outputs if isinstance(entry.get("sha256"), str)}
    changed += [file.name for file in files if file.sha256 not in listed]
    return tuple(dict.fromkeys(changed))


def _is_unchanged(folder: Path, entry: Mapping[str, Any], hashes: Hashes) -> bool:
    """A name with a folder in it is nobody's output, and is not looked at."""
    name, expected = entry.get("file"), entry.get("sha256")
    if not isinstance(name, str) or Path(name).name != name or "\0" in name:
        return False
    if not (folder / name).is_file():
        return expected in hashes.known.values()  # it has another name now, as its manifest has
    return hashes.files([folder / name])[0].sha256 == expected
