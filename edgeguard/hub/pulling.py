"""From a name to files on this machine: fetched where they are not there, held against the hashes that were kept."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from edgeguard.cache import cache_folder
from edgeguard.errors import ModelError, OutputError, printable
from edgeguard.formats.hashes import known_sha256
from edgeguard.hub import client
from edgeguard.hub.kept import HubFile, HubModel, find_pulled, keep, problem
from edgeguard.hub.names import Choice, HubName, choose, in_bytes, parse_hub_name

Tell = Callable[[str], None]
in_log: Tell = logging.getLogger("edgeguard").warning


def resolved(model: str | Path | None, *, tell: Tell = in_log, checkpoint: bool = False) -> str | Path | None:
    """The path of a model that is named by a hub's name; what is no such name comes back as it is.

    tell        hears that something is fetched
    checkpoint  take a Hugging Face checkpoint too

    What was pulled before is not asked for again: no network is needed, and no newer commit is taken. Raises
    ModelError, also where a file is not the one that was pulled.
    """
    wanted = None if model is None else parse_hub_name(model)
    if wanted is None:
        return model
    kept = find_pulled(wanted)
    if kept is not None:
        wrong = problem(kept)
        if wrong is None:
            return kept.path
        if all(file.path.is_file() for file in kept.files) and kept.path.exists():
            raise ModelError(f"{wanted} is not what was pulled: {wrong}", kind="hub_altered")
    return pull(wanted, tell=tell, checkpoint=checkpoint).path


def pull(wanted: HubName, *, tell: Tell = in_log, checkpoint: bool = False, progress: bool = False) -> HubModel:
    """Ask the hub, fetch what is not here, and keep the hashes; the same files as last time, or an error.

    Raises ModelError, and OutputError where the cache folder cannot be written.
    """
    kept = find_pulled(wanted)
    at = client.listing(wanted)
    chosen = choose({name: remote.n_bytes for name, remote in at.files.items()}, wanted, checkpoint=checkpoint)
    if kept is not None:
        _check_listed(kept, at, chosen)  # before gigabytes come
    total = in_bytes(sum(at.files[name].n_bytes for name in chosen.files))
    n = len(chosen.files)
    source = "the hub's cache on this machine" if at.cached else at.endpoint
    tell(f"{wanted}: {printable(chosen.main) or 'a checkpoint'}, {n} file{'s' * (n > 1)}, {total}, from {source}")
    paths = {name: _whole(name, at, wanted, progress) for name in chosen.files}
    files = tuple(HubFile(name, path, known_sha256(path), path.stat().st_size) for name, path in paths.items())
    if kept is not None:
        _check_same(kept, files)
    found = HubModel(wanted, at.commit, at.endpoint, _opened(chosen, paths, at), files)
    keep(found)
    return found


def fetch_known(wanted: HubName, sha256: str, *, tell: Tell = in_log, progress: bool = False) -> Path:
    """One file whose hash is known beforehand: its path in the hub's cache. Nothing is kept under its name.

    Raises ModelError, before anything is fetched where the hub lists another hash.
    """
    at = client.listing(wanted)
    name = str(wanted.file)
    if name not in at.files:
        raise ModelError(f"{wanted} is not among the files of the repository at commit {at.commit}", kind="not_in_repo")
    listed = at.files[name]
    if listed.sha256 in (None, sha256):
        source = "the hub's cache on this machine" if at.cached else at.endpoint
        tell(f"{wanted}: {in_bytes(listed.n_bytes)}, from {source}")
        path = _whole(name, at, wanted, progress)
        if (found := known_sha256(path)) == sha256:
            return path
    else:
        found = str(listed.sha256)
    raise ModelError(f"{wanted} has sha256 {found} at {at.endpoint}, expected {sha256}; not used", kind="hub_changed")


def _whole(name: str, at: client.Listing, wanted: HubName, progress: bool) -> Path:
    """The file, with the hash that the hub says; one that has another is fetched once more. Raises ModelError."""
    for again in (False, True):
        path = client.fetch(name, at, wanted, again=again, progress=progress)
        if at.files[name].is_of(path):
            return path
        client.remove(path)
    raise ModelError(
        f"{wanted}: {printable(name)} came with another hash than the hub says, {at.files[name].sha256 or 'by git'}; "
        "nothing was kept of it: try again, or from another mirror",
        kind="hub_broken",
    )


def _check_listed(kept: HubModel, at: client.Listing, chosen: Choice) -> None:
    """Refuse what the hub says is another file than the one that was pulled. Raises ModelError."""
    before = {file.name: file.sha256 for file in kept.files}
    listed = {name: at.files[name].sha256 for name in chosen.files}
    changed = {name: digest for name, digest in listed.items() if digest is not None and digest != before.get(name)}
    if changed:
        _refuse(kept, at.commit, before, {name: str(digest) for name, digest in changed.items()})


def _check_same(kept: HubModel, files: Sequence[HubFile]) -> None:
    """Refuse files that are not those that were pulled. Raises ModelError."""
    before, now = ({file.name: file.sha256 for file in some} for some in (kept.files, files))
    changed = {name: digest for name, digest in now.items() if before.get(name) != digest}
    if changed:
        _refuse(kept, kept.commit, before, changed)


def _refuse(kept: HubModel, commit: str, before: Mapping[str, str], changed: Mapping[str, str]) -> None:
    name, digest = next(iter(changed.items()))
    moved = "at the same commit" if commit == kept.commit else f"at commit {commit}, then it was {kept.commit}"
    raise ModelError(
        f"{kept.wanted} is not what was pulled: {printable(name)} has sha256 {digest} {moved}; "
        f"it had {before.get(name, 'none')}. If the change is wanted: edgeguard models forget {kept.wanted}",
        kind="hub_changed",
    )


def _opened(chosen: Choice, paths: Mapping[str, Path], at: client.Listing) -> Path:
    """What is to be opened: the file in the hub's cache, among the others that it needs."""
    if chosen.main == "":
        return next(iter(paths.values())).parent
    folders = {path.parent for path in paths.values()}
    if len(folders) == 1 or chosen.main.endswith(".gguf"):
        return paths[chosen.main]
    return _gathered(chosen, paths, at)


def _gathered(chosen: Choice, paths: Mapping[str, Path], at: client.Listing) -> Path:
    """A graph's folder with links to its files, which the repository has in several. Raises OutputError."""
    name = f"{Path(chosen.main).stem}-{known_sha256(paths[chosen.main])[:16]}-{at.commit[:12]}"
    target = cache_folder() / "hub" / name
    graph = target / Path(chosen.main).name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=".gather-", dir=target.parent))
        try:
            for path in paths.values():
                _link(path.resolve(), stage / path.name)
            if target.exists():  # of a cache of the hub's that is gone, or whole: it is made anew
                shutil.rmtree(target)
            with contextlib.suppress(FileExistsError):
                stage.rename(target)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    except OSError as error:
        if not graph.is_file():  # another process may just have put it there
            raise OutputError(
                f"{target} cannot be written: {error.strerror or error}; make it writable, or set XDG_CACHE_HOME to "
                "another folder",
                kind="cache_not_writable",
            ) from None
    return graph


def _link(source: Path, at: Path) -> None:
    """A link, or a copy where the system gives none to programs: Windows."""
    try:
        os.symlink(source, at)
    except OSError:
        shutil.copyfile(source, at)
