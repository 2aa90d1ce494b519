"""What a built-in guard is on this machine: the files of one of its forms, or how they come to be."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeguard.builtin import ADAPTER, BuiltIn, Form, find_base
from edgeguard.inspection import Inspection, inspect_model


@dataclass(frozen=True)
class BuiltInInspection:
    """A form of a built-in guard.

    folder   where its files are, or would be
    model    what they are; None where they are not there
    adapter  what stands beside the base model, of the form that is not made
    whole    whether every file has the hash that it was released with
    base     where the base model is, which forms are made of; None where it is not on this machine
    """

    guard: BuiltIn
    form: Form
    folder: Path
    model: Inspection | None
    adapter: Inspection | None
    whole: bool
    base: Path | None

    def row(self, *, tensors: bool = False) -> dict[str, Any]:
        """As one JSON object: `built_in` says what it is, the rest what the files are, null where there are none."""
        about = {
            "guard": self.guard.called,
            "version": self.guard.version,
            "form": self.form.name,
            "default": self.form.name in self.guard.default,
            "calibrated": self.guard.calibration(self.form, "marginal") is not None,
            "folder": str(self.folder),
            "whole": self.whole,
        }
        return {
            "built_in": about,
            "model": None if self.model is None else self.model.row(tensors=tensors),
            "adapter": None if self.adapter is None else self.adapter.row(tensors=tensors),
        }


def inspect_built_in(guard: BuiltIn, form: Form) -> BuiltInInspection:
    """Read the files of a form, held against their hashes; nothing is made. Raises ModelError for broken files."""
    there = find_base(guard)
    base = None if there is None else there.path
    if form.name == ADAPTER:
        folder, model = guard.folder, base
        adapter = guard.adapter_path if guard.adapter_path.is_file() else None
        whole = model is not None and adapter is not None and _both_whole(form, model, adapter)
    else:
        folder, adapter = guard.form_folder(form), None
        whole = form.is_whole(folder)
        model = folder if folder.is_dir() else None
    found = None if model is None else replace(inspect_model(model), profile=guard.profile)
    if found is not None and whole:  # the hashes say more than a manifest could
        found = replace(found, provenance=None)
    beside = None if adapter is None else replace(inspect_model(adapter), problems=())  # it is not scored with alone
    return BuiltInInspection(guard, form, folder, found, beside, whole, base)


def _both_whole(form: Form, *paths: Path) -> bool:
    return all(replace(form, sha256={path.name: form.sha256[path.name]}).is_whole(path.parent) for path in paths)
