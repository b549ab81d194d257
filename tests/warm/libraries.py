"""What a warm process has loaded for the commands of truetune."""

from contextlib import suppress

import datasets  # noqa: F401
import peft  # noqa: F401
import tabulate  # noqa: F401
import torch  # noqa: F401
import trl  # noqa: F401

import truetune.inference.generate
import truetune.pipeline.evaluation.evaluate
import truetune.pipeline.train
import truetune.pipeline.verify
import truetune.training.trl  # noqa: F401

with suppress(ImportError):  # Of extras: what a tracked run and a served one load later.
    import transformers.cli.serve  # noqa: F401
    import wandb.apis.public
    import wandb.sdk.launch  # noqa: F401
