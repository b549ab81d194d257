"""What a warm process has loaded for the commands of truetune."""

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
