"""Under which name prepared rows are kept: a digest of all that shapes them."""

from collections.abc import Sequence
from typing import Any

from truetune.config.schema import Config
from truetune.data.blocks import ends_digest
from truetune.data.cache import code_digest, digest, file_digest, tokenizer_digest
from truetune.data.sources import SourceFile
from truetune.data.templates import Template
from truetune.model.source import version_of

_LIBRARIES = ("truetune", "transformers", "tokenizers")
POLICIES = {
    "strict",
    "packing",
    "path",
    "split",
    "revision",
    "data_files",
    "subset",
    "field",
    "validation_path",
    "num_proc",
}
"""Data settings that do not shape the tokens, or do so through the files they name."""


def prepared_key(
    config: Config,
    *,
    training: Sequence[SourceFile],
    validation: Sequence[SourceFile],
    template: Template,
    max_length: int,
) -> str:
    """The digest of what shapes the rows of these files."""
    data = config.data.model_dump(mode="json", exclude=POLICIES)
    of_training = _streamed if config.data.streaming else _whole
    return digest(
        {
            "versions": {name: version_of(name) for name in _LIBRARIES},
            "code": code_digest("truetune.data", "truetune.lint", "truetune.pipeline"),
            "files": [*map(of_training, training), *map(_whole, validation)],
            "validates": (bool(config.data.validation_path), config.evaluation.eval_strategy == "no"),
            "tokenizer": tokenizer_digest(template.tokenizer),
            "template": (template.chat, template.text, template.completion_as_chat),
            "max_length": max_length,
            "seed": config.training.seed,
            "data": data,
        }
    )


def _whole(file: SourceFile) -> tuple[Any, ...]:
    return (file.name, file.weight, file.field, file.split, file_digest(file.path))


def _streamed(file: SourceFile) -> tuple[Any, ...]:
    """Of a file that is too long to be read for it; one that is written anew has another time."""
    return (file.name, file.field, file.split, ends_digest(file), file.path.stat().st_mtime_ns)
