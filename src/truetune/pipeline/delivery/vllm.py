"""`truetune export --to vllm`: a folder that `vllm serve` takes, and the command that serves it."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from truetune.errors import BackendError
from truetune.files import named_refusals, require_place, staged_folder, write_text
from truetune.inference.parity import Parity, told
from truetune.inference.prompt_format import PromptFormat, find_prompt_format
from truetune.listener import Listener
from truetune.model.load import read_config
from truetune.model.merging import require_update
from truetune.model.source import ModelSource
from truetune.model.tokenizer import load_tokenizer
from truetune.pipeline.delivery.adapter import require_adapter
from truetune.pipeline.delivery.adapter_base import base_of
from truetune.pipeline.delivery.exported import Export, ExportSettings, copied, is_adapter, name_of, replayed, size_of
from truetune.pipeline.delivery.local_card import write_card
from truetune.pipeline.delivery.merge import merge_run, write_stops
from truetune.pipeline.deployment import told_obstacle
from truetune.pipeline.trained_records import document
from truetune.planning.deployment import AdapterFacts, obstacles, vllm_rank
from truetune.runs.checkpoints import checkpoint_step

GUIDE = "SERVING.md"

Command = Callable[[Path], tuple[str, ...]]
"""The words of the command, of the place that the folder is named by."""


def export_vllm(name: str | Path, folder: Path, out: Path, settings: ExportSettings, listener: Listener) -> Export:
    """The whole model, merged where it is an adapter; with `keeps_adapter` the adapter, for vLLM to put on its base.

    Nothing of vLLM runs here: the answers are checked in transformers. Raises as `export_run` does, and BackendError
    for an adapter that vLLM does not take.
    """
    if settings.keeps_adapter:
        return _adapter(folder, out, settings, listener)
    if is_adapter(folder):
        return _merged(name, out, settings, listener)
    return _whole(folder, out, settings, listener)


def _export(out: Path, check: Parity | None, command: Command) -> Export:
    return Export(out, "vllm", None, size_of(out), check, command=shlex.join(command(out)))


# --- a whole model ----------------------------------------------------------------------------------------


def _merged(name: str | Path, out: Path, settings: ExportSettings, listener: Listener) -> Export:
    made = merge_run(
        name,
        out,
        base_model=settings.base_model,
        device=settings.device,
        overwrite=settings.overwrite,
        listener=listener,
    )
    command = _command(out)
    _write_guide(out, out, command, made.check, listener)
    return _export(out, made.check, command)


def _whole(folder: Path, out: Path, settings: ExportSettings, listener: Listener) -> Export:
    require_place(out, overwrite=settings.overwrite, is_ours=(out / GUIDE).is_file(), what="such export")
    command = _command(out)
    with named_refusals(out), staged_folder(out) as staged:
        copied(folder, staged)
        if checkpoint_step(folder) >= 0:  # A finished run's settings have them.
            _write_stops(staged, find_prompt_format(folder), staged)
        check = replayed(folder, staged, settings, listener)
        results = {"check of the copy": None if check is None else told(check)}
        write_card(staged, folder, name=name_of(out), kind="model", results=results)
        _write_guide(staged, out, command, check, listener)
    return _export(out, check, command)


def _command(out: Path) -> Command:
    return lambda place: ("vllm", "serve", str(place), "--served-model-name", name_of(out))


# --- an adapter on its base -------------------------------------------------------------------------------


def _adapter(folder: Path, out: Path, settings: ExportSettings, listener: Listener) -> Export:
    require_adapter(folder, hint="leave --adapter out: vLLM serves it as it is")
    require_place(out, overwrite=settings.overwrite, is_ours=is_adapter(out), what="such export")
    require_update(folder)
    named = settings.base_model
    known = find_prompt_format(folder, base_model=named)
    base = base_of(folder, known, named=named)
    facts = _facts(folder, base)
    _require_servable(facts, listener)
    with named_refusals(out), staged_folder(out) as staged:
        copied(folder, staged)
        _write_stops(staged, known, Path(base.path))
        check = replayed(folder, staged, settings, listener)
        results = {"check on its base": None if check is None else told(check)}
        write_card(staged, folder, name=name_of(out), kind="adapter", base_model=named, results=results)
        command = _adapter_command(base, out, staged, vllm_rank(facts.saved_rank))
        _write_guide(staged, out, command, check, listener)
    return _export(out, check, command)


def _adapter_command(base: ModelSource, out: Path, staged: Path, rank: int | None) -> Command:
    """The base with the adapter on it, and what of the folder stands for the base's own: template and stops."""
    files = (("--chat-template", "chat_template.jinja"), ("--generation-config", "generation_config.json"))
    own = [(option, name) for option, name in files if (staged / name).is_file()]
    revision = ("--revision", base.revision) if base.revision else ()

    def command(place: Path) -> tuple[str, ...]:
        # --generation-config takes the folder that the file lies in.
        told = ((option, str(place / name if name.endswith(".jinja") else place)) for option, name in own)
        return (
            *("vllm", "serve", base.path if base.is_local else base.name, *revision),
            *("--enable-lora", "--max-lora-rank", str(rank)),
            *("--lora-modules", f"{name_of(out)}={place}"),
            *(word for pair in told for word in pair),
        )

    return command


def _write_stops(staged: Path, known: PromptFormat | None, base: Path) -> None:
    """The base's generation settings with the training's stops, as far as these are known."""
    if known is None:
        return
    settings = base / "generation_config.json"
    if settings.is_file() and base != staged:
        (staged / settings.name).write_bytes(settings.read_bytes())
    tokenizer = load_tokenizer(ModelSource(str(staged), str(staged)))
    write_stops(staged, known.load(tokenizer).stop_token_ids)


def _facts(folder: Path, base: ModelSource) -> AdapterFacts:
    """What vLLM minds of a saved adapter, by PEFT's settings and the base's."""
    from peft import PeftConfig

    saved: Any = PeftConfig.from_pretrained(str(folder))
    config = read_config(base).get_text_config()
    experts = ("num_experts", "num_local_experts", "n_routed_experts")
    return AdapterFacts(
        method="lora",
        r=max([saved.r, *(saved.rank_pattern or {}).values()]),
        use_dora=bool(saved.use_dora),
        use_rslora=bool(saved.use_rslora),
        bias=saved.bias,
        modules_to_save=tuple(saved.modules_to_save or ()),
        target_modules=_names(saved.target_modules),
        target_parameters=tuple(saved.target_parameters or ()),
        init_lora_weights="default",  # Saved as plain LoRA, or refused by require_update.
        adds_tokens=bool(saved.trainable_token_indices),
        is_mixture=any(getattr(config, name, None) for name in experts),
        model_type=config.model_type,
    )


def _names(modules: Any) -> str | tuple[str, ...]:
    return modules if isinstance(modules, str) else tuple(sorted(modules or ()))


def _require_servable(facts: AdapterFacts, listener: Listener) -> None:
    """BackendError with all that keeps vLLM from serving the adapter; what serving takes is warned of."""
    found = obstacles("vllm", facts)
    if errors := [told_obstacle(each) for each in found if each.severity == "error"]:
        told = "\n".join(["vLLM does not serve this adapter:", *errors])
        raise BackendError(told, hint="leave --adapter out: it is merged then")
    for each in found:
        if each.setting != "adapter.r":  # The command has --max-lora-rank.
            listener.warn(told_obstacle(each))


# --- the guide --------------------------------------------------------------------------------------------


def _write_guide(folder: Path, out: Path, command: Command, check: Parity | None, listener: Listener) -> None:
    """SERVING.md: the command, and what is to be known of what it serves. `folder` is, or becomes, `out`."""
    is_chat = _is_chat(folder)
    if not is_chat:
        listener.warn("it was not trained on conversations: ask it at /v1/completions, not /v1/chat/completions")
    checked = f"Checked in transformers: {told(check)}." if check else "The answers were not checked."
    lines = (
        f"# Serving {name_of(out)} with vLLM",
        f"```bash\n{shlex.join(command(Path(out.name)))}\n```",
        f"From the folder that `{out.name}` lies in. The model is called `{name_of(out)}`; ask it at "
        f"`{'/v1/chat/completions' if is_chat else '/v1/completions'}`.",
        "Chat template and stop tokens are the training's: they lie in the folder (the tokenizer's files and "
        "generation_config.json). The answers that were checked are greedy: `temperature: 0`.",
        f"{checked} vLLM itself was not run.",
    )
    write_text(folder / GUIDE, "\n\n".join(lines) + "\n")


def _is_chat(folder: Path) -> bool:
    """Are there a chat template and rows that it was trained to put? Of foreign weights the template decides."""
    has_template = (folder / "chat_template.jinja").is_file() or bool(
        document(folder / "tokenizer_config.json").get("chat_template")
    )
    known = find_prompt_format(folder)
    return has_template and (known is None or known.row_format in ("chat", "instruction"))
