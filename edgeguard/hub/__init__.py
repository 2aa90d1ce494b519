"""Models from a hub: `hf:org/repo[:file][@revision]` in the place of a path, fetched once, by hash ever after."""

from edgeguard.hub.kept import HubFile, HubModel, forget, problem, pulled_models
from edgeguard.hub.names import HubName, parse_hub_name
from edgeguard.hub.pulling import fetch_known, pull, resolved

__all__ = [
    "HubFile",
    "HubModel",
    "HubName",
    "fetch_known",
    "forget",
    "parse_hub_name",
    "problem",
    "pull",
    "pulled_models",
    "resolved",
]
