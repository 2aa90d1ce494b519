"""A guard's categories under other names: a table in a TOML file, applied to scores, bounds and flags. Pure.

`openai.toml` beside this module is the table that comes with edgeguard, and says what a file holds.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, cast, get_args

from edgeguard.errors import ProfileError, did_you_mean
from edgeguard.profile import Profile
from edgeguard.tomlfile import MAX_BYTES, TomlTable, read_toml, show

Match = Literal["same", "wider", "near"]
BUILT_IN = ("openai",)  # tables that come with edgeguard, by name


@dataclass(frozen=True)
class Target:
    """A name that a category is given.

    sources  the guard's codes that it is read from
    match    "same": it means what they mean; "wider": they hold all of it, and more; "near": they overlap
    line     of the file, where its sources stand
    """

    name: str
    sources: tuple[str, ...]
    match: Match
    line: int = 1


@dataclass(frozen=True)
class Mapped:
    """One record's categories under their new names, in the table's order.

    scores   name → the largest of its sources' probabilities, in [0, 1]
    bounds   name → [lower, upper] of that largest
    sources  name → the code whose probability it is; of equal ones the first in the table
    """

    scores: Mapping[str, float]
    bounds: Mapping[str, tuple[float, float]]
    sources: Mapping[str, str]


@dataclass(frozen=True)
class CategoryMap:
    """What the guard's categories are called elsewhere.

    taxonomies  those of the profiles that it may be used with; () for any
    absent      name → why nothing stands for it. It gets no score
    source      the file, for errors
    """

    name: str
    taxonomies: tuple[str, ...]
    targets: tuple[Target, ...]
    absent: Mapping[str, str]
    source: str = ""

    def check(self, profile: Profile) -> None:
        """Refuse a guard of another taxonomy, and one that has not all codes. Raises ProfileError."""
        if self.taxonomies and profile.taxonomy not in self.taxonomies:
            raise ProfileError(
                f"{self.source} is for the taxonomies {', '.join(self.taxonomies)}; profile {profile.name} has "
                f"{profile.taxonomy}: write a table of its codes",
                kind="other_taxonomy",
            )
        codes = [category.code for category in profile.categories]
        for target in self.targets:
            for code in target.sources:
                if code not in codes:
                    raise ProfileError(
                        f"{self.source}:{target.line}: {target.name} is read from {show(code)}, which profile "
                        f"{profile.name} has not{did_you_mean(code, codes)}; its codes are {', '.join(codes)}",
                        kind="other_taxonomy",
                    )

    def of(self, codes: Collection[str]) -> CategoryMap:
        """The table for a guard that gives these codes a probability: a name with a source that it was not asked about
        is absent, since the largest of the others would be too small.
        """
        missing = {t.name: [code for code in t.sources if code not in codes] for t in self.targets}
        reasons = {name: f"the guard is not asked about {', '.join(some)}" for name, some in missing.items() if some}
        kept = tuple(target for target in self.targets if target.name not in reasons)
        return replace(self, targets=kept, absent={**self.absent, **reasons})

    def apply(self, scores: Mapping[str, float], bounds: Mapping[str, tuple[float, float]]) -> Mapped:
        """One record's scores and bounds, by code. A target whose sources are not all there is left out.

        Where each source's true value lies inside its bounds, so does the largest of them inside the target's.
        """
        named = {t.name: max(t.sources, key=lambda code: scores[code]) for t in self._there(scores)}
        return Mapped(
            {name: scores[code] for name, code in named.items()},
            {
                target.name: (max(bounds[c][0] for c in target.sources), max(bounds[c][1] for c in target.sources))
                for target in self._there(bounds)
            },
            named,
        )

    def flags(self, flagged: Collection[str], codes: Collection[str]) -> dict[str, bool]:
        """Name → whether one of its sources is flagged, of the codes that have a probability."""
        return {t.name: any(code in flagged for code in t.sources) for t in self._there(codes)}

    def row(self) -> dict[str, Any]:
        """As one JSON object: what was mapped, and what could not be."""
        return {
            "name": self.name,
            "categories": {t.name: {"sources": list(t.sources), "match": t.match} for t in self.targets},
            "absent": dict(self.absent),
        }

    def _there(self, codes: Collection[str]) -> list[Target]:
        return [target for target in self.targets if all(code in codes for code in target.sources)]


def load_categories(name_or_path: str | Path) -> CategoryMap:
    """A table that comes with edgeguard by its name, or a file by its path. Raises ProfileError."""
    if isinstance(name_or_path, str) and name_or_path in BUILT_IN:
        file = files("edgeguard.serve") / f"{name_or_path}.toml"
        return parse_categories(file.read_bytes(), f"{name_or_path}.toml")
    path = Path(name_or_path)
    try:
        with path.open("rb") as opened:
            return parse_categories(opened.read(MAX_BYTES + 1), str(path))
    except FileNotFoundError:
        raise ProfileError(
            f"there is no table of categories {str(name_or_path)!r}{did_you_mean(str(name_or_path), BUILT_IN)}; "
            f"give the path of a TOML file, or one of {', '.join(BUILT_IN)}"
        ) from None
    except OSError as error:
        raise ProfileError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # a NUL in the path
        raise ProfileError(f"{str(name_or_path)!r} is no path: {error}") from None


def parse_categories(data: bytes, source: str) -> CategoryMap:
    """The table in a file of these bytes. Raises ProfileError with the file and the line."""
    top = read_toml(data, source)
    top.only("name", "taxonomies", "category", "absent")
    tables = top.tables("category")
    if not tables:
        top.fail(None, "[[category]] is missing; each says what a name is read from")
    targets: list[Target] = []
    for table in tables:
        target = _target(table)
        if target.name in [earlier.name for earlier in targets]:
            table.fail("name", f"name is {show(target.name)}, which an earlier category has")
        targets.append(target)
    absent: dict[str, str] = {}
    for table in top.tables("absent"):
        table.only("name", "reason")
        name = table.printable("name")
        if name in absent or name in [target.name for target in targets]:
            table.fail("name", f"name is {show(name)}, which stands above already")
        absent[name] = table.printable("reason", "nothing stands for it")
    return CategoryMap(top.printable("name"), top.texts("taxonomies", ()), tuple(targets), absent, source)


def _target(table: TomlTable) -> Target:
    table.only("name", "sources", "match")
    sources = table.texts("sources")
    if not sources:
        table.fail("sources", "sources is an empty list; name the guard's codes, or put the name under [[absent]]")
    match = cast(Match, table.one_of("match", get_args(Match)))
    return Target(table.printable("name"), sources, match, table.source.line((*table.key, "sources")))
