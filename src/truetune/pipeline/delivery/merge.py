"""`truetune merge`: adapter and base as one model, which takes its name once it is proved to be the trained one."""

import gc
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from truetune.errors import BackendError, CheckpointError, ConfigError, TruetuneError
from truetune.figures import byte_size
from truetune.files import free_bytes, named_refusals, require_place, write_json
from truetune.inference.parity import FILE as PARITY
from truetune.inference.parity import Fixtures, Parity, as_json, read_fixtures, replay, told
from truetune.inference.prompt_format import FILE as PROMPT_FORMAT
from truetune.inference.prompt_format import PromptFormat, find_prompt_format
from truetune.inference.reference import Reference, asked_again, compare, reference_of
from truetune.listener import Listener, LogListener
from truetune.model.adapter import load_trained_adapter
from truetune.model.fixtures import FixedPrompt, read_file, record
from truetune.model.hardware import Device, free_memory, resolve_device
from truetune.model.load import ModelOptions, load_model, quantization_settings, read_config
from truetune.model.merging import (
    StoredWeights,
    grow_for,
    merge_shards,
    merge_whole,
    plan_shards,
    read_stored,
    require_update,
    write_configuration,
)
from truetune.model.probe import likeliest
from truetune.model.source import ModelSource, weight_bytes
from truetune.model.stored import fetched
from truetune.model.tokenizer import load_tokenizer
from truetune.pipeline.delivery.adapter_base import base_of, was_trained_quantised
from truetune.pipeline.delivery.exported import name_of
from truetune.pipeline.delivery.local_card import write_card
from truetune.pipeline.fixed_prompts import own_prompts
from truetune.runs.checkpoints import MANIFEST, checkpoint_step, manifested
from truetune.runs.trained import run_of, weights_folder

Dtype = Literal["auto", "float32", "bfloat16", "float16"]

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_IDS = (range(1, 9), range(9, 25), range(25, 57))
"""What a model is asked whose prompts nobody knows: tokens that every vocabulary has."""


@dataclass(frozen=True, slots=True)
class Merged:
    """A merged model in `path`: what its check found, its `dtype` by torch's name, and the `base` it was made of."""

    path: Path
    check: Parity
    dtype: str
    base: str
    tensors: int
    bytes: int
    shards: int

    def as_json(self) -> dict[str, Any]:
        """As `truetune merge --json` prints it."""
        return {**asdict(self), "path": str(self.path), "check": as_json(self.check)}


def merge_run(
    name: str | Path,
    out: str | Path,
    *,
    base_model: str | None = None,
    dtype: Dtype = "auto",
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    overwrite: bool = False,
    listener: Listener | None = None,
) -> Merged:
    """Writes base and adapter as one model to `out`, once it answers as they do, and never touches them.

    `name` is a run, an adapter's folder or RUN@STEP; `base_model` a base that is not quantised, where the recorded
    one is, or is gone. `dtype` "auto" is the one that the base is stored in.

    Raises ConfigError, CheckpointError or BackendError before weights load, and CheckpointError for a merged model
    that is not the trained one; nothing is left at `out` then.
    """
    listener, out = listener or LogListener(), Path(out)
    task = _task(name, out, base_model=base_model, dtype=dtype, device=resolve_device(device), overwrite=overwrite)
    facts: dict[str, Any] = {}
    with named_refusals(out), manifested(out, facts) as staged:
        check = _Merging(task, listener).write(staged, facts)
        _write_card(task, staged, name=name_of(out), base_model=base_model, check=check)
        stored = read_stored(staged)
        tensors = stored.headers.tensors if stored.headers else ()
        size, shards = sum(each.bytes for each in tensors), len(stored.weights.files)
    return Merged(out, check, task.dtype, task.source.name, len(tensors), size, shards)


# --- before anything loads --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Task:
    """What goes into what: `source` is the base in a folder, `stored` its files; `format` may be unknown."""

    adapter: Path
    format: PromptFormat | None
    source: ModelSource
    stored: StoredWeights
    dtype: str
    stored_dtype: str
    device: Device

    @property
    def is_checkpoint(self) -> bool:
        return checkpoint_step(self.adapter) >= 0

    @property
    def computed_in(self) -> str:
        """float32, where the model fits into memory so; else the dtype that its base is stored in."""
        free = free_memory(self.device)
        needed = weight_bytes(self.source) // _BYTES[self.stored_dtype] * _BYTES["float32"]
        fits = free is None or needed * 1.1 < free
        return "float32" if fits or self.dtype != self.stored_dtype else self.stored_dtype


def _task(
    name: str | Path, out: Path, *, base_model: str | None, dtype: Dtype, device: Device, overwrite: bool
) -> _Task:
    adapter = weights_folder(name)
    if not (adapter / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{name} holds a whole model, no adapter: there is nothing to merge", hint=f"the model is in {adapter}"
        )
    require_update(adapter)
    known = find_prompt_format(adapter, base_model=base_model)
    source = base_of(adapter, known, named=base_model)
    require_unquantised(source)
    _require_place(out, adapter, source, overwrite=overwrite)
    source = fetched(source)
    stored = read_stored(Path(source.path))
    stored_dtype = stored.dtype or _configured_dtype(source)
    chosen = stored_dtype if dtype == "auto" else dtype
    _require_room(out, weight_bytes(source) // _BYTES[stored_dtype] * _BYTES[chosen])
    return _Task(adapter, known, source, stored, chosen, stored_dtype, device)


def require_unquantised(source: ModelSource) -> None:
    """BackendError for a base that is stored quantised."""
    settings = quantization_settings(read_config(source))
    if not settings:
        return
    bits = settings.get("bits") or next((bits for bits in (4, 8) if settings.get(f"load_in_{bits}bit")), None)
    how = f"{settings.get('quant_method', 'quantized')}{f', {bits}-bit' if bits else ''}"
    raise BackendError(
        f"{source.name} is quantized ({how}): an update merged into {bits or 'so few'}-bit weights is rounded away",
        hint="name the full-precision model that it was made of, with --base (base_model= in Python)",
    )


def _require_place(out: Path, adapter: Path, source: ModelSource, *, overwrite: bool) -> None:
    """ConfigError if writing to `out` would take something away."""
    sources = [adapter.resolve(), *([Path(source.path).resolve()] if source.is_local else [])]
    place = out.resolve()
    if any(each in (place, *place.parents) or place in each.parents for each in sources):
        raise ConfigError(
            f"{out} holds, or lies in, what is to be merged", hint="write the merged model to a folder of its own"
        )
    is_ours = (out / "config.json").is_file() and (out / MANIFEST).is_file()
    require_place(out, overwrite=overwrite, is_ours=is_ours, what="merged model")


def _configured_dtype(source: ModelSource) -> str:
    named = str(getattr(read_config(source), "dtype", None) or "float32").removeprefix("torch.")
    return named if named in _BYTES else "float32"


def _require_room(out: Path, needed: int) -> None:
    free = free_bytes(out)
    if free < needed:
        raise CheckpointError(
            f"{out}: the merged model takes {byte_size(needed)}, and {byte_size(free)} are free on its disk",
            hint="make space there, or write elsewhere",
        )


# --- the merge and its check ------------------------------------------------------------------------------


class _Merging:
    """One merge, from the loaded base and adapter to a model that answers as they do."""

    def __init__(self, task: _Task, listener: Listener) -> None:
        self.task = task
        self.listener = listener
        self.tokenizer = _tokenizer(task)
        template = task.format.load(self.tokenizer) if task.format else None
        self.template = template
        self.stops = template.stop_token_ids if template else ()

    def write(self, folder: Path, facts: dict[str, Any]) -> Parity:
        """The merged model in `folder`, checked; its logits for the manifest are put into `facts`."""
        task = self.task
        plan = plan_shards(task.stored, task.adapter)
        computed_in = task.computed_in
        self.listener.say(f"loading {task.source.name} and its adapter on {task.device}, in {computed_in}")
        adapted = self._adapted(computed_in)
        reference, handed_on = self._reference(adapted)
        if plan is None:
            self._merge_whole(adapted, folder)
        del adapted
        gc.collect()
        if plan is not None:
            self._merge_shards(plan, folder)
        self._write_companions(folder, handed_on)
        return self._check(folder, reference, computed_in, facts)

    def _adapted(self, dtype: str) -> Any:
        base = load_model(self.task.source, ModelOptions(dtype, self.task.device))
        if grown := grow_for(base, self.task.adapter):
            self.listener.say(f"the adapter knows {grown:,} tokens: the embeddings are made that long")
        return load_trained_adapter(base, self.task.adapter)

    def _merge_shards(self, plan: Any, folder: Path) -> None:
        task = self.task
        files = len(task.stored.weights.files)
        self.listener.say(f"merging {len(plan.updates)} updates into {task.dtype}, file by file ({files})")
        merge_shards(
            plan,
            folder,
            dtype=task.dtype if task.dtype != task.stored_dtype else None,
            progress=lambda done, total: self.listener.progress("merging", done, total),
        )
        write_configuration(task.source, folder, dtype=task.dtype)

    def _merge_whole(self, adapted: Any, folder: Path) -> None:
        task = self.task
        self.listener.say(f"merging into {task.dtype}, in the loaded model")
        kept = task.stored.dtypes if task.dtype == task.stored_dtype else {}
        if merge_whole(adapted, folder, dtype=task.dtype, dtypes=kept):
            self.listener.say(
                "embeddings and output layer were one tensor, of which one was trained: they are two now"
            )

    # --- answers ---

    def _reference(self, adapted: Any) -> tuple[Reference, Fixtures]:
        """What the merged model is held against, and the answers that go with it, which may be passed on."""
        recorded, ours = self._recorded()
        if recorded is None:
            asked = record(adapted, self._prompts(adapted), stop_token_ids=self.stops)
            self.listener.say(f"no answers were recorded with it: {len(asked.fixtures)} fixed prompts are compared")
            return reference_of(adapted, asked), asked
        if self.task.is_checkpoint or not self._answers_as_recorded(adapted, recorded):
            recorded, ours = (asked_again(adapted, each, stop_token_ids=self.stops) for each in (recorded, ours))
        return reference_of(adapted, recorded), ours

    def _recorded(self) -> tuple[Fixtures | None, Fixtures]:
        """All recorded answers, those to rows of the run too, and those beside the adapter."""
        run = run_of(self.task.adapter)
        home = run.adapter if run and self.task.is_checkpoint else self.task.adapter
        recorded = read_fixtures(run.path if run else home)
        ours = read_file(home / PARITY) or Fixtures((), recorded.dtype if recorded else "float32")
        return (recorded if recorded and recorded.fixtures else None), ours

    def _answers_as_recorded(self, adapted: Any, recorded: Fixtures) -> bool:
        """False, and told, for one trained over quantised weights. CheckpointError if it is another model."""
        found = replay(adapted, recorded)
        if found.is_same:
            return True
        told = f"{found.equal} of {found.prompts} recorded answers are the same over {self.task.source.name}"
        if not was_trained_quantised(self.task.adapter):
            raise CheckpointError(
                f"{told}: it is not the trained model; {found.first_difference}",
                hint="name the base that it was trained on with --base (base_model= in Python)",
            )
        self.listener.warn(f"it was trained over quantised weights: {told}, and the others are recorded anew")
        return False

    def _prompts(self, adapted: Any) -> list[FixedPrompt]:
        if self.template and self.task.format and (ours := own_prompts(self.template, self.task.format.row_format)):
            return ours
        size = adapted.get_input_embeddings().weight.shape[0]
        ids = [tuple(token % size for token in each) for each in _IDS]
        return [FixedPrompt(each, self.tokenizer.decode(list(each)) if self.tokenizer else "") for each in ids]

    # --- what goes beside ---

    def _write_companions(self, folder: Path, fixtures: Fixtures) -> None:
        """Tokenizer, stop tokens, the training's prompt format and the answers."""
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
        else:
            self.listener.warn("neither adapter nor base has a tokenizer that loads: the merged model has none")
        if self.stops:
            write_stops(folder, self.stops)
        if self.task.format is not None:
            write_json(folder / PROMPT_FORMAT, {**asdict(self.task.format), "base_model": self.task.source.name})
        else:
            self.listener.warn(
                f"{self.task.adapter} has no {PROMPT_FORMAT}: how its prompts were written is not known, and "
                "`truetune generate` needs that; servers use the tokenizer's own template"
            )
        write_json(folder / PARITY, fixtures.as_document())

    def _check(self, folder: Path, reference: Reference, computed_in: str, facts: dict[str, Any]) -> Parity:
        """The folder, loaded again as it will be served, and held against the reference."""
        task = self.task
        loads_in = "float32" if task.dtype == "float16" and task.device == "cpu" else task.dtype
        merged = load_model(ModelSource(str(folder), str(folder)), ModelOptions(loads_in, task.device))
        facts["logits"] = likeliest(merged)
        found = compare(merged, reference, in_dtype=computed_in, is_exact=task.dtype == computed_in == "float32")
        self.listener.say(f"checked: {told(found, logits_in=computed_in)}")
        return found


def _tokenizer(task: _Task) -> Any:
    for folder in (str(task.adapter), task.source.path):
        try:
            return load_tokenizer(ModelSource(folder, folder))
        except TruetuneError:
            continue
    return None


def _write_card(task: _Task, folder: Path, *, name: str, base_model: str | None, check: Parity) -> None:
    results = {"check of the merge": told(check)}
    write_card(folder, task.adapter, name=name, kind="merged", base_model=base_model, results=results)


def write_stops(folder: Path, stops: tuple[int, ...]) -> None:
    """Has whatever reads the folder's generation settings end an answer at any of these tokens."""
    path = folder / "generation_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    settings.pop("_from_model_config", None)  # It says that nothing was set by hand.
    write_json(path, {**settings, "eos_token_id": list(stops)})
