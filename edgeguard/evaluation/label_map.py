"""What the names of a data set's labels stand for in a guard's taxonomy: a small TOML file.

field = "category"          # where the labels are; left out, each name below is a column with 0 or 1
missing = false             # what a missing 0 or 1 counts as; left out, it is an error
id = "id"                   # the field that joins records to scores

[labels]                    # their name = a code of the taxonomy, several, or
"violence" = "S1"
"self_harm" = ["S11"]
"politics" = "unsafe"       # unsafe, and none of the taxonomy's categories
"spam" = "safe"             # nothing that this taxonomy calls unsafe
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path

from edgeguard.errors import InputError

_KEYS = ("field", "missing", "id", "labels")


@dataclasses.dataclass(frozen=True)
class LabelMap:
    """How to read labels from a record's fields.

    field    the field that has them; None: each of `names` is a column, or key, that says whether it holds
    names    their name → what it stands for: codes, ("unsafe",) for a harm that is none of them, () for none
    missing  False: a null among columns or keys counts as not holding; None: it is an error
    id       the field with the record's id
    """

    field: str | None = "labels"
    names: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    missing: bool | None = None
    id: str = "id"

    @property
    def fields(self) -> tuple[str, ...]:
        """All that it reads of a record, but the id."""
        return tuple(self.names) if self.field is None else (self.field,)

    @property
    def names_categories(self) -> bool:
        """Whether it tells categories apart, and not only safe from unsafe."""
        return any(set(targets) - {"unsafe"} for targets in self.names.values())

    def value(self, fields: Mapping[str, object]) -> object:
        """What a record's fields say, still in their names; None where they do not say."""
        if self.field is not None:
            return fields.get(self.field)
        columns = {name: fields.get(name) for name in self.names}
        return None if all(_is_null(value) for value in columns.values()) else columns


def _is_null(value: object) -> bool:
    return value is None or value == "" or value != value  # NaN: what pandas writes for nothing


_TRUE, _FALSE = ("true", "1"), ("false", "0")
# Where there is no map: the fields that published sets have, in this order.
DEFAULT_MAPS = (
    LabelMap("labels"),
    LabelMap("label", {**dict.fromkeys(_TRUE, ("unsafe",)), **dict.fromkeys(_FALSE, ())}),
    LabelMap("is_safe", {**dict.fromkeys(_TRUE, ()), **dict.fromkeys(_FALSE, ("unsafe",))}),
)


def read_label_map(path: Path) -> LabelMap:
    """A map from a TOML file. Raises InputError that names the key."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # no TOML, or no UTF-8
        raise InputError(f"{path} is not TOML: {error}") from None
    if unknown := set(table) - set(_KEYS):
        raise InputError(f"{path}: {sorted(unknown)[0]} is no key of a labels map; it has {', '.join(_KEYS)}")
    names = table.get("labels")
    if not isinstance(names, dict) or not names:
        raise InputError(f"{path}: [labels] is missing; it says what each name stands for")
    for key in ("field", "id"):
        if not isinstance(table.get(key, ""), str):
            raise InputError(f"{path}: {key} is {table[key]!r}; expected a field's name")
    if table.get("missing", False) is not False:
        raise InputError(f"{path}: missing is {table['missing']!r}; it is false, or left out")
    return LabelMap(
        field=table.get("field"),
        names={name: _targets(path, name, value) for name, value in names.items()},
        missing=table.get("missing"),
        id=table.get("id", "id"),
    )


def _targets(path: Path, name: str, value: object) -> tuple[str, ...]:
    targets = [value] if isinstance(value, str) else value
    if not isinstance(targets, list) or not all(isinstance(target, str) and target for target in targets):
        raise InputError(f'{path}: {name} is {value!r}; expected a code, a list of codes, "unsafe" or "safe"')
    if "safe" in targets and len(targets) > 1:
        raise InputError(f"{path}: {name} is {value!r}; what is safe is nothing else")
    return () if targets == ["safe"] else tuple(targets)
