"""The hub itself, through huggingface_hub: its cache, its tokens, its mirrors. Nothing else in edgeguard imports it.

Its errors become ModelErrors here that say what to do.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeguard.errors import ModelError, printable, shortened, shown
from edgeguard.formats.hashes import known_sha256
from edgeguard.hub.names import PREFIX, HubName
from edgeguard.version import __version__

_NETWORK = ("requests", "urllib3", "httpx", "httpx2", "httpcore", "httpcore2", "http", "socket", "ssl", "hf_xet")
_AGENT = {"library_name": "edgeguard", "library_version": __version__}


@dataclass(frozen=True)
class Remote:
    """A file as the hub lists it: bytes, and a hash. sha256 for large files, git's own (`blob`) for small ones."""

    n_bytes: int
    sha256: str | None = None
    blob: str | None = None

    def is_of(self, path: Path) -> bool:
        """Whether a file on the disk is this one, every byte of it. One of which the hub says no hash is not known."""
        if self.sha256 is not None:
            return known_sha256(path) == self.sha256
        if self.blob is not None:
            return path.stat().st_size == self.n_bytes and _git_blob(path) == self.blob
        return path.stat().st_size == self.n_bytes


@dataclass(frozen=True)
class Listing:
    """A repository at one commit. From this machine's cache of the hub, where `cached`: then hashes may be missing."""

    commit: str
    endpoint: str
    files: dict[str, Remote]
    cached: bool = False


def listing(wanted: HubName) -> Listing:
    """What the hub says that the repository holds; where the hub is not reached, what its cache here holds.

    Raises ModelError.
    """
    library = _library(wanted)
    try:
        with _explained(wanted):
            found = library.HfApi(endpoint=library.constants.ENDPOINT, **_AGENT).model_info(
                wanted.repo, revision=wanted.revision, files_metadata=True
            )
    except ModelError as error:
        cached = _cached(wanted, library) if error.kind == "hub_not_reached" else None
        if cached is None:
            raise
        return cached
    if not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", str(found.sha)):  # it becomes a folder's name
        raise ModelError(f"{wanted}: the hub names commit {shown(found.sha)}, expected a hash", kind="hub_refuses")
    files = {one.rfilename: _remote(one) for one in found.siblings or ()}
    return Listing(str(found.sha), str(library.constants.ENDPOINT), files)


def fetch(name: str, at: Listing, wanted: HubName, *, again: bool = False, progress: bool = False) -> Path:
    """The file on this machine: out of the hub's cache, or from the hub. What broke off goes on where it stopped.

    again  fetch it whatever the cache has

    Raises ModelError.
    """
    library = _library(wanted)
    quiet = contextlib.nullcontext() if progress else _no_bars(library)
    options = {"revision": at.commit, "local_files_only": at.cached, "force_download": again and not at.cached}
    options |= {"endpoint": library.constants.ENDPOINT, "cache_dir": library.constants.HF_HUB_CACHE}
    with quiet, _explained(wanted):
        return Path(library.hf_hub_download(wanted.repo, name, **options, **_AGENT))


def remove(path: Path) -> None:
    """Take a broken file out of the hub's cache: its name there and what that leads to."""
    with contextlib.suppress(OSError):
        blob = path.resolve()
        path.unlink(missing_ok=True)
        blob.unlink(missing_ok=True)


def cached_blob(path: Path) -> Remote:
    """What the hub's cache says of a file by the name that it keeps it under: its hash, of a large one."""
    blob = path.resolve()
    return Remote(blob.stat().st_size, blob.name if re.fullmatch("[0-9a-f]{64}", blob.name) else None)


def _remote(one: Any) -> Remote:
    lfs = getattr(one, "lfs", None)
    n_bytes = one.size if isinstance(one.size, int) else 0
    if lfs is None:
        return Remote(n_bytes, None, one.blob_id)
    digest = lfs["sha256"] if isinstance(lfs, dict) else lfs.sha256
    return Remote(n_bytes, digest if isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) else None)


def _git_blob(path: Path) -> str:
    """The hash by which git knows a file's content."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _cached(wanted: HubName, library: Any) -> Listing | None:
    """The repository as the hub's cache on this machine has it, by the layout that huggingface_hub documents."""
    root = Path(library.constants.HF_HUB_CACHE) / f"models--{wanted.repo.replace('/', '--')}"
    revision = wanted.revision or "main"
    commit = revision
    with contextlib.suppress(OSError, ValueError):
        commit = (root / "refs" / revision).read_text(encoding="utf-8").strip()
    snapshot = root / "snapshots" / commit
    if not re.fullmatch("[0-9a-f]{40}", commit) or not snapshot.is_dir():
        return None
    paths = [path for path in snapshot.rglob("*") if path.is_file()]
    files = {path.relative_to(snapshot).as_posix(): cached_blob(path) for path in paths}
    return Listing(commit, str(library.constants.ENDPOINT), files, cached=True) if files else None


def _library(wanted: HubName) -> Any:
    try:
        import huggingface_hub
        from huggingface_hub import constants  # noqa: F401  # a submodule: the package loads its own when asked
    except ImportError:
        raise ModelError(
            f"{wanted} is fetched by huggingface_hub, which is not installed; pip install 'edgeguard[hub]', or give "
            "the path of a model file",
            kind="no_hub",
        ) from None
    return huggingface_hub


@contextlib.contextmanager
def _no_bars(library: Any) -> Iterator[None]:
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


@contextlib.contextmanager
def _explained(wanted: HubName) -> Iterator[None]:
    """What the library raises, as a ModelError."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        found = _explanation(wanted, error)
        if found is None:
            raise
        raise found from None


def _explanation(wanted: HubName, error: Exception) -> ModelError | None:
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{wanted.repo}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    token = "`hf auth login`, or the environment variable HF_TOKEN"
    if isinstance(error, errors.GatedRepoError):
        has = "and there is no token" if status == 401 else "and your token's account has not been let in"
        message = f"{wanted} is gated, {has}: ask for access at {page}, and give a token of that account by {token}"
        return ModelError(message, kind="gated")
    if isinstance(error, errors.RepositoryNotFoundError):
        message = f"there is no {PREFIX}{wanted.repo} at {constants.ENDPOINT}, or it is private; look at its name"
        return ModelError(f"{message}. A private one needs a token: {token}", kind="not_in_hub")
    if isinstance(error, errors.RevisionNotFoundError):
        message = f"{PREFIX}{wanted.repo} has no revision {wanted.revision or 'main'!r}; look at {page}/tree/main"
        return ModelError(message, kind="not_in_hub")
    if isinstance(error, errors.LocalEntryNotFoundError) or _is_network(error):
        why = _said(error)
        return ModelError(
            f"{wanted} is not in the cache here, not whole, and {constants.ENDPOINT} was not reached, or broke off "
            f"({why}); try again with a network: what has come is kept. HF_ENDPOINT names a mirror",
            kind="hub_not_reached",
        )
    if isinstance(error, errors.EntryNotFoundError):
        return ModelError(f"{page} lists a file that it has not: {_said(error)}; try again", kind="not_in_hub")
    if isinstance(error, errors.HfHubHTTPError):
        denied = f"; its access needs a token: {token}" if status in (401, 403) else "; try again later"
        return ModelError(
            f"{wanted}: {constants.ENDPOINT} answers {status}: {_said(error)}{denied}", kind="hub_refuses"
        )
    if isinstance(error, errors.HFValidationError):
        return ModelError(f"{wanted} is no name of a hub's: {_said(error)}", kind="no_hub_name")
    if isinstance(error, OSError):
        where = f"the hub's cache {constants.HF_HUB_CACHE}"
        return ModelError(
            f"{where} cannot be written: {error.strerror or error}; see that the disk has room, or set HF_HOME to "
            "another folder",
            kind="hub_cache_not_writable",
        )
    return None


def _is_network(error: BaseException) -> bool:
    """By the library that raised it, or any error behind it: each version of huggingface_hub has an HTTP client."""
    from huggingface_hub import errors

    seen: BaseException | None = error
    if isinstance(error, errors.HfHubHTTPError):
        return False
    while seen is not None:
        if isinstance(seen, ConnectionError | TimeoutError | errors.OfflineModeIsEnabled):
            return True
        if type(seen).__module__.partition(".")[0] in _NETWORK:
            return True
        seen = seen.__cause__ or seen.__context__
    # The length of what came is not what was announced: it broke off.
    return isinstance(error, OSError) and error.errno is None and "Consistency check failed" in str(error)


def _said(error: BaseException) -> str:
    """An error's first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return shortened(printable(lines[0]), 200)
