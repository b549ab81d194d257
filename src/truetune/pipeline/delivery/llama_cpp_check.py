"""A file on its way out, asked the training's prompts in llama.cpp: what is an error then, and what is warned of."""

from pathlib import Path
from typing import Literal

from truetune.errors import BackendError, CheckpointError
from truetune.inference.llama_cpp import INSTALL, Asked, LlamaCppCheck, ask, is_installed, texts_of
from truetune.inference.parity import FILE as PARITY
from truetune.inference.parity import Fixtures, read_fixtures
from truetune.inference.quantization import Quantization
from truetune.listener import Listener
from truetune.model.fixtures import read_file
from truetune.pipeline.delivery.whole_model import Judge, WholeModel, answered
from truetune.runs.checkpoints import checkpoint_step
from truetune.runs.trained import run_of

ENOUGH = 0.8
"""The share of a quantised model's tokens that should be the trained model's first choice; below it is warned."""


def can_check(check: Literal["try", "require", "skip"], listener: Listener) -> bool:
    """Whether the file will be asked; told where it cannot be. BackendError where it must be."""
    if check == "skip" or is_installed():
        return check != "skip"
    if check == "require":
        raise BackendError("the check needs llama.cpp, which is not installed", hint=INSTALL)
    listener.warn(f"llama.cpp is not installed, so the file is not checked in it; {INSTALL}")
    return False


def rows_answers(trained: Path) -> Fixtures | None:
    """What a run recorded of its rows' prompts; None for other weights than those that it ended with."""
    run = run_of(trained)
    return None if run is None or checkpoint_step(trained) >= 0 else read_file(run.path / PARITY)


def answers_of(model: WholeModel, rows: Fixtures | None, listener: Listener) -> Fixtures:
    """What was recorded beside the weights, and of the rows; for a model without, the answers that it gives now."""
    found = read_fixtures(model.adapter or model.folder) or Fixtures((), "float32")
    if rows:
        found = Fixtures((*found.fixtures, *rows.fixtures), found.dtype)
    if not found.fixtures:
        listener.say("no answers were recorded with it: a few prompts are asked now, and compared")
        found = answered(model)
    return found


def checked(
    model: WholeModel,
    quantization: Quantization,
    file: Path,
    recorded: Fixtures,
    *,
    listener: Listener,
    adapter: Path | None = None,
) -> LlamaCppCheck:
    """Asks `file`, with the GGUF of an `adapter` over it, what the model answered.

    CheckpointError for other ids of a prompt, and, unquantised, for another answer than rounding explains; what a
    server may do otherwise is warned of.
    """
    fixtures = recorded.fixtures
    asked = Asked(
        fixtures,
        texts_of(model.tokenizer, fixtures),
        model.conversations(fixtures),
        model.stop_token_ids,
        model.bos if model.adds_bos else "",
    )
    judge = Judge(model, quantization, recorded.dtype)
    found = ask(file, asked, is_tie=judge, listener=listener, adapter=adapter)
    if found.other_ids:
        raise CheckpointError(f"llama.cpp makes other tokens of {found.other_ids!r} than the tokenizer does")
    if quantization.is_exact and not found.is_same:
        raise CheckpointError(
            f"in llama.cpp it is not the trained model: {found.first_difference}",
            hint="nothing was written; --no-check writes it all the same",
        )
    _warn(found, quantization, listener)
    return found


def _warn(found: LlamaCppCheck, quantization: Quantization, listener: Listener) -> None:
    if found.other_text:
        listener.warn(f"llama.cpp makes other tokens of some texts than training did: {found.other_text!r}")
    if found.other_prompts:
        listener.warn(f"llama.cpp's server prompts otherwise than training did: {found.other_prompts}")
    if found.tokens_equal_rate < ENOUGH:
        listener.warn(
            f"in {quantization.name} only {found.tokens_equal_rate:.0%} of the answers' tokens are the trained "
            "model's first choice: store it in more bits"
        )
