"""Many machines: a guard in each of Ray's actors, for a Ray Dataset or for files. Needs the extra `ray`."""

from edgeguard.ray.dataset import score_dataset as score_dataset

__all__ = ["score_dataset"]
