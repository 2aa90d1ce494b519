"""Which form of a built-in guard is opened, and by which runtime.

The forms are one guard in other bits. One that is made stands in the cache folder, where `convert.built_in` puts it at
first use; it is held against its hash each time it is loaded, made once more where it was damaged, and never used with
another hash. Where it cannot be made, the guard is opened as it comes: the adapter beside the base model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from edgeguard.backend import Backend, Runtime, RuntimeOptions
from edgeguard.backends import open_backend, opener
from edgeguard.builtin import ADAPTER, BuiltIn, Form
from edgeguard.errors import EdgeguardError, ModelError

Tell = Callable[[str], None]
in_log: Tell = logging.getLogger("edgeguard").warning  # on stderr, where the program has no logging of its own


def open_built_in(
    guard: BuiltIn, name: str | None, options: RuntimeOptions, *, tell: Tell = in_log
) -> tuple[Backend, Form]:
    """Open the form `name` of a guard; None for the one that `chosen` says. `tell` hears what takes time or is amiss.

    Raises ModelError, and OutputError for a form that was asked for by name and cannot be made.
    """
    form = chosen(guard, name, options)
    if form.name == ADAPTER:
        return _open_as_it_comes(guard, form, options), form
    backend = _open_right(guard, form, options, tell)
    if backend is not None:
        return backend, form
    form = _made(guard, form, options, tell, by_name=name is not None)
    if form.name == ADAPTER:
        return _open_as_it_comes(guard, form, options), form
    backend = _open_right(guard, form, options, tell)
    if backend is None:
        raise ModelError(f"the files of {guard.called}:{form.name} changed while they were loaded; load it again")
    return backend, form


def prepare(guard: BuiltIn, name: str | None, options: RuntimeOptions, *, tell: Tell = in_log) -> Form:
    """The form that `open_built_in` opens, made where it is not there yet: once, before several processes open it.

    Its hashes are not looked at: who opens it does that. Raises as `open_built_in`.
    """
    form = chosen(guard, name, options)
    if form.name == ADAPTER or _is_there(guard, form):
        return form
    return _made(guard, form, options, tell, by_name=name is not None)


def chosen(guard: BuiltIn, name: str | None, options: RuntimeOptions) -> Form:
    """The form of that name. For None the first of the guard's defaults whose runtime can open it.

    That is the runtime that the options name, or one that is installed and takes all options given; `guard.toml` has
    the defaults in the order of their speed, as it was measured. Raises ModelError where no runtime is installed.
    """
    if name is not None:
        return _installed(guard, guard.form(name))
    forms = [guard.form(default) for default in guard.default]
    if options.runtime is not None:
        found = [form for form in (*forms, *guard.forms) if opener(form.kind).short == options.runtime]
        if not found:
            raise ModelError(f"{guard.called} has no form for runtime {options.runtime!r}", kind="other_runtime")
        return _installed(guard, found[0])
    installed = [form for form in forms if opener(form.kind).is_installed]
    if not installed:
        extras = " or ".join(f"'{opener(form.kind).package}'" for form in forms)
        raise ModelError(
            f"{guard.called} needs a runtime, and none is installed; pip install {extras}", kind="no_runtime"
        )
    return next((form for form in installed if _can_open(opener(form.kind), options)), installed[0])


def _installed(guard: BuiltIn, form: Form) -> Form:
    """The form, if there is what opens it: before it is made, which takes some seconds. Raises ModelError."""
    runtime = opener(form.kind)
    if not runtime.is_installed:
        raise ModelError(
            f"{guard.called}:{form.name} needs {runtime.name}, which is not installed; pip install '{runtime.package}'",
            kind="no_runtime",
        )
    return form


def _made(guard: BuiltIn, form: Form, options: RuntimeOptions, tell: Tell, *, by_name: bool) -> Form:
    """Make a form; the one that comes, where this one cannot be made and was not asked for by its name."""
    instead = guard.form(ADAPTER)
    assert guard.base_path  # which raises what to do where there is none
    from edgeguard.convert.built_in import make_form  # once in a form's life: its imports are not for every start

    try:
        make_form(guard, form, tell=tell)
    except EdgeguardError as error:
        if by_name or not _can_open(opener(instead.kind), replace(options, lora=guard.adapter_path)):
            raise
        tell(f"{error}; {guard.called} is used as it comes, its adapter beside the base model, which is slower")
        return instead
    return form


def _is_there(guard: BuiltIn, form: Form) -> bool:
    folder = guard.form_folder(form)
    return all((folder / file).is_file() for file in form.sha256)


def _can_open(runtime: Runtime, options: RuntimeOptions) -> bool:
    return runtime.is_installed and runtime.takes_all(options)


def _open_as_it_comes(guard: BuiltIn, form: Form, options: RuntimeOptions) -> Backend:
    """Base model and adapter side by side. Raises ModelError for files that are not the guard's own."""
    try:
        backend = open_backend(guard.base_path, replace(options, lora=guard.adapter_path))
    except ModelError:
        guard.check_files()  # which says what to do, where it is the files that are wrong
        raise
    try:
        if backend.info.sha256 != form.model_sha256:
            guard.check_files()
            raise ModelError(f"the files of {guard.called} changed while they were loaded; load it again")
    except BaseException:
        backend.close()
        raise
    return backend


def _open_right(guard: BuiltIn, form: Form, options: RuntimeOptions, tell: Tell) -> Backend | None:
    """The form as it stands in the cache folder, or None where it does not, or not with its hashes."""
    if not _is_there(guard, form):
        return None
    folder = guard.form_folder(form)
    backend = _open_unchanged(folder, form, options)
    if backend is None:
        tell(f"{folder} is not {guard.called}:{form.name} any more, by its hash; it is not used")
    return backend


def _open_unchanged(folder: Path, form: Form, options: RuntimeOptions) -> Backend | None:
    """The model in a folder, where all files have the form's hashes."""
    if not replace(form, sha256=form.beside).is_whole(folder):
        return None
    try:
        backend = open_backend(folder, options)
    except ModelError:
        if form.is_whole(folder):  # so it is not the files that are wrong
            raise
        return None
    if backend.info.sha256 == form.model_sha256:
        return backend
    backend.close()
    return None
