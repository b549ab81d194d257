"""TensorBoard, W&B, Trackio and the others that transformers knows: mirrors of metrics.jsonl, none of them needed."""

from truetune.training.trackers.places import tracker_places
from truetune.training.trackers.required import require_reachable, require_trackers

__all__ = ["require_reachable", "require_trackers", "tracker_places"]
