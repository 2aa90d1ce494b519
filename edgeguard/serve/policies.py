"""Policies: named sets of thresholds, review bands and calibrations, in a TOML file that users write.

    [policy.strict]
    thresholds = { default = 0.3, S1 = 0.2 }   # in place of the guard's; "default" is of all labels not named
    review = { default = 0.1 }                 # from here on, and under its threshold, a label is for people to look at
    calibration = "strict.json"                # in place of the guard's; false: the model's own probabilities
    models = ["edgeguard-135m"]                # that it is for; left out: all

Labels are the guard's own: "unsafe" and its codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from edgeguard.calibration.files import read_calibration
from edgeguard.calibration.maps import Calibration
from edgeguard.calibration.thresholds import Thresholds, thresholds_for
from edgeguard.errors import ProfileError, did_you_mean
from edgeguard.guard import EstimatorName, Score, check_decisions
from edgeguard.profile import Profile
from edgeguard.tomlfile import MAX_BYTES, TomlTable, read_toml, show

_NUMBERS = "a table of LABEL = number from 0 to 1, and default = number for the others"


class Decided(Protocol):
    """What a policy must know of the guard that it decides for: `Guard` and `Workers` have it."""

    estimator: EstimatorName
    profile: Profile
    codes: tuple[str, ...]
    model_sha256: str
    calibration: Calibration | None
    thresholds: Thresholds


@dataclass(frozen=True)
class DecisionRule:
    """What a worker decides by in place of what it was opened with."""

    calibration: Calibration | None
    thresholds: Thresholds


@dataclass(frozen=True)
class Policy:
    """A set of thresholds by name.

    thresholds   label → number; "default" for the labels not named
    review       the same; {} for no band
    calibration  None: the guard's own; False: none
    models       that it is for, by the server's names; () for all
    """

    name: str
    thresholds: Mapping[str, float] = field(default_factory=dict)
    review: Mapping[str, float] = field(default_factory=dict)
    calibration: Calibration | bool | None = None
    models: tuple[str, ...] = ()
    source: str = ""

    def decision(self, guard: Decided) -> DecisionRule:
        """What the guard decides by. Raises ProfileError or CalibrationError where it does not fit it."""
        if self.calibration is None:
            found = DecisionRule(guard.calibration, guard.thresholds.replaced(self.thresholds))
        else:
            maps = self.calibration if isinstance(self.calibration, Calibration) else None
            found = DecisionRule(maps, thresholds_for(maps, self.thresholds))
            if maps is not None:
                maps.check(profile=guard.profile.name, estimator=guard.estimator, model_sha256=guard.model_sha256)
        labels = ("unsafe", *guard.codes)
        try:
            check_decisions(guard.profile, found.calibration, found.thresholds)
            check_decisions(guard.profile, None, Thresholds(labels=_without_default(self.review)))
        except ProfileError as error:
            raise ProfileError(f"{self.source}: policy {self.name}: {error}") from None
        for label in labels:
            low = self.band_of(label)
            if low is not None and low > found.thresholds.of(label):
                raise ProfileError(
                    f"{self.source}: policy {self.name}: {label} is for review from {low:g} on, and counts from "
                    f"{found.thresholds.of(label):g} on; expected a band that begins under the threshold"
                )
        return found

    def band_of(self, label: str) -> float | None:
        """Where a label's band for review begins; None without one."""
        return self.review.get(label, self.review.get("default"))

    def in_review(self, score: Score) -> bool:
        """Whether a record is not flagged, and a label lies in its band."""
        p = {"unsafe": score.unsafe, **score.category_scores}
        bands = ((value, self.band_of(label)) for label, value in p.items())
        return not score.flagged and any(low is not None and value >= low for value, low in bands)


def read_policies(path: str | Path) -> dict[str, Policy]:
    """The policies of a file, by name. Raises ProfileError and CalibrationError, which name the file and the line."""
    path = Path(path)
    try:
        with path.open("rb") as opened:
            data = opened.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ProfileError(f"the policies in {path} cannot be read: {getattr(error, 'strerror', error)}") from None
    top = read_toml(data, str(path))
    top.only("policy")
    table = top.table("policy")
    if table is None or not table.values:
        top.fail(None, "there is no policy; expected [policy.NAME] with thresholds, for each")
    return {name: _policy(name, table, path) for name in table.values}


def check_policies(
    policies: Mapping[str, Policy], guards: Mapping[str, Decided]
) -> dict[tuple[str, str], DecisionRule]:
    """(policy, model) → what is decided by. Raises ProfileError and CalibrationError where one does not fit."""
    found = {}
    for policy in policies.values():
        for name in policy.models or guards:
            if name not in guards:
                raise ProfileError(
                    f"{policy.source}: policy {policy.name} is for model {show(name)}, which is not served"
                    f"{did_you_mean(name, guards)}; served are {', '.join(guards)}"
                )
            if (called := f"{name}@{policy.name}") in guards:
                raise ProfileError(
                    f"{policy.source}: policy {policy.name} of model {name} is called {called}, as another model that "
                    "is served; give one of them another name"
                )
            found[policy.name, name] = policy.decision(guards[name])
    return found


def _policy(name: str, above: TomlTable, path: Path) -> Policy:
    table = above.table(name)
    assert table is not None
    if not name.isprintable() or not name.strip() or "@" in name or len(name) > 64:
        above.fail(name, f"{show(name)} is no name for a policy; expected up to 64 characters without @")
    table.only("thresholds", "review", "calibration", "models")
    given = table.get("calibration", None, "a file's path, or false")
    calibration: Calibration | bool | None = None
    if isinstance(given, str):
        calibration = read_calibration(path.parent / given)
    elif given is False:
        calibration = False
    elif given is not None:
        table.fail("calibration", f"calibration is {show(given)}; expected a file's path, or false")
    return Policy(
        name,
        _numbers(table, "thresholds"),
        _numbers(table, "review"),
        calibration,
        table.texts("models", ()),
        str(path),
    )


def _numbers(above: TomlTable, key: str) -> Mapping[str, float]:
    table = above.table(key)
    if table is None:
        return {}
    if not table.values:
        above.fail(key, f"{key} is empty; expected {_NUMBERS}")
    return {label: table.share(label, 0.0) for label in table.values}


def _without_default(numbers: Mapping[str, float]) -> dict[str, float]:
    return {label: value for label, value in numbers.items() if label != "default"}


def names_of(policies: Mapping[str, Policy], model: str) -> Sequence[str]:
    """Those that are for a model."""
    return [policy.name for policy in policies.values() if not policy.models or model in policy.models]
