"""API keys: a file with one a line, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgeguard.errors import ProfileError

SHORTEST = 16  # characters: a shorter key is guessed
_MOST = 1 << 20


@dataclass(frozen=True)
class Keys:
    """Who may ask. name → SHA-256 of the key: the keys themselves are not kept."""

    digests: Mapping[str, bytes] = field(repr=False)

    def name_of(self, key: str) -> str | None:
        """Whose key it is; None for nobody's. Takes as long for a wrong key as for a right one."""
        given, found = hashlib.sha256(key.encode("utf-8", "replace")).digest(), None
        for name, digest in self.digests.items():
            if hmac.compare_digest(given, digest):
                found = name
        return found


def read_keys(path: str | Path) -> Keys:
    """The keys of a file: `KEY` or `NAME KEY` a line; the log has the name. Raises ProfileError, in which no key is."""
    try:
        with Path(path).open("rb") as opened:
            text = opened.read(_MOST).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ProfileError(f"{path} is not UTF-8; write one key a line") from None
    except (OSError, ValueError) as error:
        raise ProfileError(f"the keys in {path} cannot be read: {getattr(error, 'strerror', error)}") from None
    found: dict[str, bytes] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        name, key = (f"line {number}", words[0]) if len(words) == 1 else (words[0], words[1])
        if len(words) > 2:
            raise ProfileError(f"{path}:{number}: {len(words)} words; expected KEY, or NAME KEY")
        if len(key) < SHORTEST:
            raise ProfileError(
                f"{path}:{number}: the key has {len(key)} characters; expected at least {SHORTEST}, such as "
                "`openssl rand -hex 24` gives"
            )
        if name in found:
            raise ProfileError(f"{path}:{number}: the name {name} stands above already")
        found[name] = hashlib.sha256(key.encode()).digest()
    if not found:
        raise ProfileError(f"{path} has no key; expected KEY, or NAME KEY, a line")
    return Keys(found)
