"""Models from a hub: `hf:org/repo[:file][@revision]` in the place of a path, fetched once, by hash ever after."""

from edgeguard.hub.kept import HubFile, HubModel, forget, problem, pulled_models
from edgeguard.hub.pulling import pull, resolved
from edgeguard.hub.wanted import Wanted, parse_wanted

__all__ = [
    "HubFile",
    "HubModel",
    "Wanted",
    "forget",
    "parse_wanted",
    "problem",
    "pull",
    "pulled_models",
    "resolved",
]
