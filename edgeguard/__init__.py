"""Per-category confidence from generative guard models, on your own machine."""

from __future__ import annotations

from edgeguard.version import __version__ as __version__

TYPE_CHECKING = False  # what type checkers take for true; `typing` takes long to import, for who presses Ctrl-C at once
if TYPE_CHECKING:
    from edgeguard.backend import RuntimeOptions as RuntimeOptions
    from edgeguard.calibration.files import read_calibration as read_calibration
    from edgeguard.calibration.maps import Calibration as Calibration
    from edgeguard.calibration.thresholds import Thresholds as Thresholds
    from edgeguard.errors import CalibrationError as CalibrationError
    from edgeguard.errors import ContextOverflow as ContextOverflow
    from edgeguard.errors import EdgeguardError as EdgeguardError
    from edgeguard.errors import InputError as InputError
    from edgeguard.errors import ModelError as ModelError
    from edgeguard.errors import OffGrammar as OffGrammar
    from edgeguard.errors import OutputError as OutputError
    from edgeguard.errors import ProfileError as ProfileError
    from edgeguard.errors import RecordError as RecordError
    from edgeguard.errors import WorkerDied as WorkerDied
    from edgeguard.guard import Guard as Guard
    from edgeguard.guard import Score as Score
    from edgeguard.guard import Search as Search
    from edgeguard.profile import Profile as Profile
    from edgeguard.profile import list_profiles as list_profiles
    from edgeguard.profile import load_profile as load_profile
    from edgeguard.rows.readers import read_records as read_records
    from edgeguard.rows.record import Failure as Failure
    from edgeguard.rows.record import Message as Message
    from edgeguard.rows.record import Record as Record
    from edgeguard.rows.shapes import Fields as Fields
    from edgeguard.windows import TextWindow as TextWindow
    from edgeguard.workers import Workers as Workers
    from edgeguard.workers import isolated as isolated
    from edgeguard.workers import score_many as score_many

_PUBLIC = {
    "edgeguard.backend": ("RuntimeOptions",),
    "edgeguard.calibration.files": ("read_calibration",),
    "edgeguard.calibration.maps": ("Calibration",),
    "edgeguard.calibration.thresholds": ("Thresholds",),
    "edgeguard.errors": (
        "CalibrationError",
        "ContextOverflow",
        "EdgeguardError",
        "InputError",
        "ModelError",
        "OffGrammar",
        "OutputError",
        "ProfileError",
        "RecordError",
        "WorkerDied",
    ),
    "edgeguard.guard": ("Guard", "Score", "Search"),
    "edgeguard.profile": ("Profile", "list_profiles", "load_profile"),
    "edgeguard.rows.readers": ("read_records",),
    "edgeguard.rows.record": ("Failure", "Message", "Record"),
    "edgeguard.rows.shapes": ("Fields",),
    "edgeguard.windows": ("TextWindow",),
    "edgeguard.workers": ("Workers", "isolated", "score_many"),
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = [
    "Calibration",
    "CalibrationError",
    "ContextOverflow",
    "EdgeguardError",
    "Failure",
    "Fields",
    "Guard",
    "InputError",
    "Message",
    "ModelError",
    "OffGrammar",
    "OutputError",
    "Profile",
    "ProfileError",
    "Record",
    "RecordError",
    "RuntimeOptions",
    "Score",
    "Search",
    "TextWindow",
    "Thresholds",
    "WorkerDied",
    "Workers",
    "isolated",
    "list_profiles",
    "load_profile",
    "read_calibration",
    "read_records",
    "score_many",
]


def __getattr__(name: str) -> object:
    """Import on first use: `edgeguard --help` must not wait for numpy and Jinja."""
    if name not in _HOME:
        raise AttributeError(f"module 'edgeguard' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
