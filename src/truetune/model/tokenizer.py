"""Tokenizers, loaded ready for exact labels."""

import copy
from typing import Any

from truetune.errors import BackendError, first_line
from truetune.model.reach import is_out_of_reach, why_away
from truetune.model.source import ModelSource


def load_tokenizer(source: ModelSource, *, trust_remote_code: bool = False) -> Any:
    """The model's tokenizer, with padding and truncation off so that no row is ever cut or filled unseen."""
    from transformers import AutoTokenizer

    try:
        # Where mistral-common is installed, a folder with a tekken.json would get its backend, which has no offsets.
        tokenizer = AutoTokenizer.from_pretrained(
            source.path,
            revision=source.revision,
            trust_remote_code=trust_remote_code,
            mistral_format=False,
            local_files_only=is_out_of_reach(source),
        )
    except (ImportError, OSError, ValueError, KeyError) as error:
        raise unloadable(source, "tokenizer", error) from error
    return prepared(tokenizer)


def prepared(tokenizer: Any) -> Any:
    """A copy of the tokenizer without padding or truncation; the caller's own stays as it is."""
    tokenizer = copy.deepcopy(tokenizer)
    if getattr(tokenizer, "is_fast", False):
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.no_truncation()
    return tokenizer


def with_chat_template(tokenizer: Any, chat_template: str | None) -> Any:
    """A copy of the tokenizer that carries this template."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = chat_template
    return tokenizer


def pad_token_id(tokenizer: Any) -> int:
    """An id to fill with: the pad token's, else EOS's, else 0. Never a new one: padding is masked by place."""
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return int(next(token for token in candidates if token is not None))


def unloadable(source: ModelSource, part: str, error: Exception) -> BackendError:
    """The library's reason in one line, and what to do."""
    if is_out_of_reach(source) and isinstance(error, OSError):
        return not_here(source.name, f"cannot load the {part} of {source.name}")
    hint = (
        "the folder is not complete or damaged: write it again with save_pretrained"
        if source.is_local
        else "check the hub id and the network; a private model needs HF_TOKEN; a local folder needs its path"
    )
    if "pip install" in str(error):  # transformers asks for tiktoken also where sentencepiece is what it lacks.
        hint = (
            "its files need one more package: sentencepiece for a tokenizer.model, mistral-common for a tekken.json"
        )
    return BackendError(f"cannot load the {part} of {source.name}: {first_line(error)}", hint=hint)


def not_here(name: str, what: str) -> BackendError:
    """A hub's model that is not in the cache, where the hub is not to be asked: how it comes here all the same."""
    from huggingface_hub import constants

    folder, unset = name.rpartition("/")[2], "unset it; or, " if constants.HF_HUB_OFFLINE else ""
    return BackendError(
        f"{what}: it is no folder here, nor whole in the cache ({constants.HF_HUB_CACHE}), and {why_away()}",
        hint=f"{unset}where there is a network, run: hf download {name} --local-dir {folder}; bring that folder "
        "here, and give its path as the model. truetune models lists what is here; demo needs no network",
    )
