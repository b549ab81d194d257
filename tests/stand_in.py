"""A tiny model in the place of the demo model, where what is proved is no matter of the model."""

import hashlib
import os
from pathlib import Path

import pytest

from tiny_runs import base_in
from truetune.model.source import demo_file, resolve_model


def stand_in(cache: Path) -> dict[str, str]:
    """The environment in which `demo` is a tiny Llama that reads bytes: the converted model of a cache of its own."""
    with demo_file().open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    folder = base_in(cache / "gguf" / digest[:16])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRUETUNE_CACHE", str(cache))
        assert resolve_model("demo").path == str(folder)
    return {**os.environ, "TRUETUNE_CACHE": str(cache)}
