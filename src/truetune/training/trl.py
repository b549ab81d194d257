"""TRL's SFTTrainer, fed with our own tokens and labels.

What differs from TRL goes through its public seams (a data collator, columns that are already prepared) and, where
it has none, through the methods overridden in `Engine` and in `Computing` (computing.py), which
tests/training/test_contracts.py holds against the installed version.
"""

import math
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput

from truetune.data.collate import collate, collate_padded
from truetune.data.examples import Packed, Tokenized
from truetune.launched import as_if_alone
from truetune.listener import Listener
from truetune.model.hardware import used_memory
from truetune.model.tokenizer import pad_token_id
from truetune.runs.checkpoints import checkpoint_folder, newest_listed
from truetune.training.answers import AnswerScorer
from truetune.training.arguments import sft_arguments
from truetune.training.batches import StreamedSequences, dataset_of, without_weights
from truetune.training.checkpoints import (
    BestCheckpoint,
    make_room,
    only_tensors,
    rate_by_schedule,
    read_unlogged,
    write_checkpoint,
)
from truetune.training.computing import Computing
from truetune.training.job import TrainJob, TrainResult
from truetune.training.monitor import (
    EarlyStopping,
    MetricsCallback,
    NewestEvaluation,
    NonFiniteGuard,
    SignalCallback,
    agree,
    damaged_weight,
    tell_step,
)
from truetune.training.scored import ScoredRows
from truetune.training.step import Counts, random_state
from truetune.training.world import World


class Engine(Computing):
    """SFTTrainer with token-weighted metrics and evaluation, and an end to runs that diverge."""

    generates = True
    """False where the model's own `generate` would leave it other than training had it."""

    def __init__(self, *, job: TrainJob, scorer: AnswerScorer | None = None, **options: Any) -> None:
        super().__init__(job=job, **options)
        self.scorer = scorer
        self._guard = NonFiniteGuard()
        self._evaluated = NewestEvaluation()
        self._guarded_step = 0
        self._logged = read_unlogged(job.resume_from) if job.resume_from else Counts()

    def create_optimizer(self, model: Any = None) -> Any:
        """The optimizer of what this process holds of the model, which is spread over all of them first."""
        if self.optimizer is None:  # type: ignore[has-type]
            self.optimizer = self.strategy.take(self, lambda: self._made_optimizer(model))
        return self.optimizer

    def _made_optimizer(self, model: Any) -> Any:
        """Trainer's optimizer, with groups of their own for the update matrices B of LoRA+ (arXiv 2402.12354)."""
        optimizer, ratio = super().create_optimizer(model), self.job.loraplus_lr_ratio
        if ratio is not None:
            faster = {id(value) for name, value in self.model.named_parameters() if "lora_B" in name}
            optimizer.param_groups = list(_parted(optimizer.param_groups, faster, ratio))
        return optimizer

    def _clip_grad_norm(self, model: Any) -> Any:
        return self.strategy.norm(lambda: super(Engine, self)._clip_grad_norm(model))

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        return self.strategy.norm(lambda: super(Engine, self)._get_grad_norm(model, grad_norm))

    # --- files ----------------------------------------------------------------------------------------------------

    def _save_last_step(self) -> str:
        """A checkpoint of the last step, if there was a sound one; says where it is."""
        step = self.state.global_step
        if not step or self._guard.is_alarmed or self.world.size > 1 or self.strategy.is_collective:
            return ""
        folder = checkpoint_folder(Path(self.args.output_dir), step)
        if newest_listed(folder.parent) != folder:
            self._restore_random()
            self._save_checkpoint(self.model, None)
        return f"; step {step} is saved in {folder}"

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """A checkpoint that is there as a whole or not at all; then older ones make room."""

        def save() -> str | None:
            write_checkpoint(self, identity=self.job.identity, unlogged=self._logged)
            make_room(self, limit=self.job.save_total_limit)
            return self.state.best_model_checkpoint  # type: ignore[no-any-return]

        best = self.strategy.first_alone(save)
        if self.strategy.is_collective:
            self.state.best_model_checkpoint = best  # All load their shares of it.

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The model's files, of whole weights."""
        if (weights := self.strategy.weights(self.model)) is None:
            super().save_model(output_dir, _internal_call)
        else:
            self._save(output_dir, state_dict=weights)

    def _load_best_model(self) -> None:
        best = Path(str(self.state.best_model_checkpoint))
        if not self.strategy.load_weights(self.model, best):
            super()._load_best_model()

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        """Trainer's, which would take the next step at the rate of the schedule that the checkpoint knew."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            rate_by_schedule(self.lr_scheduler)

    # --- between steps --------------------------------------------------------------------------------------------

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """An epoch; none where a run was killed behind its last step, of which Trainer would take one more."""
        early = (each.is_over for each in self.callback_handler.callbacks if isinstance(each, EarlyStopping))
        if self.state.global_step >= self.state.max_steps or any(early):
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _maybe_log_save_evaluate(self, tr_loss: Any, grad_norm: Any, *args: Any, **kwargs: Any) -> None:
        """Called by Trainer after every step and epoch: the one place that knows the step's gradient norm."""
        agree(self.world, self.control, self.callback_handler.callbacks)
        if self.state.global_step != self._guarded_step:
            self._end_step(None if grad_norm is None else float(grad_norm), kwargs.get("learning_rate"))
        if self._guard.is_alarmed:
            # Rotation must not trade a good checkpoint for one whose weights may be lost.
            self.control.should_save = False
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, **kwargs)
        if self.state.global_step == self._globalstep_last_logged:
            # Trainer subtracts the sum from itself, which leaves NaN for good after one infinite loss.
            tr_loss.zero_()
        self._restore_random = random_state()

    def _end_step(self, grad_norm: float | None, learning_rate: float | None) -> None:
        loss, counts = self._step.end()
        self._guarded_step = self.state.global_step
        self._logged = self._logged.plus(counts)
        self.watch.end(counts.tokens)
        tell_step(
            self.listener,
            self.state,
            loss,
            self.watch,
            args=self.args,
            evaluated=self._evaluated.of(self.state.log_history),
            learning_rate=learning_rate,
        )
        self._guard.check(
            step=self.state.global_step,
            loss=loss,
            grad_norm=None if overflowed(self.accelerator) else grad_norm,
            newest_checkpoint=partial(newest_listed, Path(self.args.output_dir)),
            damaged=partial(damaged_weight, self.model),
        )

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> Any:
        """Trainer's, behind which random numbers go on as they would without: its data loader draws some.

        One that a resumed run makes up for as it begins (MetricsCallback) may be the best so far.
        """
        restore = self._restore_random = random_state()
        metrics = super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)
        restore()
        if skip_scheduler and self.state.global_step:
            self._determine_best_metric(metrics=metrics, trial=trial)
        return metrics

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Loss and accuracy over all supervised tokens of the set, whatever the batches; keeps no logits."""
        model = self.accelerator.unwrap_model(self.model).eval()
        totals = torch.zeros(3, dtype=torch.float64)
        batches, size = len(dataloader), self.world.size
        for done, batch in enumerate(dataloader, start=1):
            is_own = done % size == self.world.rank
            # Where no process computes alone, those without a batch in the last round go through the last one.
            lacks_one = (self.world.rank - 1) % size >= batches % size > 0
            if is_own or (self.strategy.is_collective and done == batches and lacks_one):
                _, inputs = without_weights(self._prepare_inputs(batch))
                sums = self.sums_of(model, inputs)
                totals += sums if is_own else 0
            self.listener.progress("evaluating", done, batches)
        loss, correct, count = self.world.sum(totals).tolist()
        metrics = {"loss": loss / count, "mean_token_accuracy": correct / count, "supervised_tokens": int(count)}
        if (scorer := self.scorer) is not None:
            metrics |= self.strategy.first_alone(lambda: scorer.measure(model, step=self.state.global_step))
        named = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(None, None, named, self.num_examples(dataloader))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the token-weighted accuracy, the run's tokens so far, the rate and the memory to a training line."""
        counts, self._logged = self._logged, Counts()
        if "loss" in logs and counts.supervised:
            history = self.state.log_history
            if counts.correct is not None:
                logs["mean_token_accuracy"] = counts.correct / counts.supervised
            logs["num_tokens"] = counts.tokens + int(_last(history, "num_tokens") or 0)
            logs["supervised_tokens"] = counts.supervised + int(_last(history, "supervised_tokens") or 0)
            if self.watch.tokens_per_second:
                logs["tokens_per_second"] = self.watch.tokens_per_second
            logs["memory_bytes"] = used_memory(self.args.device.type)
        super().log(logs, start_time)

    def is_world_process_zero(self) -> bool:
        """True in the process that writes what was logged; Trainer itself knows of one only."""
        return self.world.is_first

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """No card: TRL's names this machine's paths and may ask the hub."""


def _parted(groups: list[dict[str, Any]], faster: set[int], ratio: float) -> Iterator[dict[str, Any]]:
    """Each group, without its `faster` parameters, and then those, at `ratio` times the rate."""
    for group in groups:
        yield {**group, "params": [value for value in group["params"] if id(value) not in faster]}
    for group in groups:
        params = [value for value in group["params"] if id(value) in faster]
        yield {**group, "params": params, "lr": group["lr"] * ratio}


def build_engine(
    job: TrainJob,
    *,
    model: Any,
    tokenizer: Any,
    train: Sequence[Tokenized | Packed],
    validation: Sequence[Tokenized],
    listener: Listener,
    scored: ScoredRows | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    kind: type[Engine] = Engine,
    world: World | None = None,
    stream: Sequence[Tokenized | Packed] | None = None,
) -> Engine:
    """The trainer for `job`, ready to train: of the whole run, in each process of `world`.

    Of a `stream`, `train` holds some of the first sequences; it is read when the training begins.
    """
    patience = job.early_stopping_patience
    stopping = [EarlyStopping(early_stopping_patience=patience)] if patience and validation else []
    padding = pad_token_id(tokenizer)
    with as_if_alone():
        engine = kind(
            job=job,
            listener=listener,
            scorer=None if scored is None else AnswerScorer(scored, pad_token_id=padding, listener=listener),
            world=world,
            model=model,
            args=sft_arguments(job, has_validation=bool(validation)),
            train_dataset=dataset_of(train),
            eval_dataset=dataset_of(validation) if validation else None,
            data_collator=collate if job.is_padding_free else partial(collate_padded, pad_token_id=padding),
            processing_class=tokenizer,
            callbacks=[BestCheckpoint(listener, world), *stopping, *callbacks],
        )
    engine.remove_callback(PrinterCallback)
    if job.torch_compile:
        engine.compile_layers()
    if stream is not None:
        engine.train_dataset = StreamedSequences(stream)
    return engine


def train(engine: Engine, job: TrainJob, *, metrics: MetricsCallback) -> TrainResult:
    """Trains to the end, or to the step after SIGINT or SIGTERM."""
    started, world = time.perf_counter(), engine.world
    engine.strategy.open(job.device)
    world.take_from_first([each for each in engine.model.parameters() if each.requires_grad])
    with SignalCallback() as signals:
        engine.add_callback(metrics)
        engine.add_callback(signals)
        with only_tensors(job.resume_from):
            engine.train(resume_from_checkpoint=str(job.resume_from) if job.resume_from else None)
    if world.is_first:
        make_room(engine, limit=job.save_total_limit)  # A kill may have come between saving and that.
    state, judged_by = engine.state, engine.args.metric_for_best_model
    best = state.best_metric if state.best_metric is not None and math.isfinite(state.best_metric) else None
    return TrainResult(
        steps=state.global_step,
        final_loss=_last(state.log_history, "loss"),
        eval_loss=_last(state.log_history, "eval_loss"),
        best_eval_loss=best if judged_by == "eval_loss" else None,
        tokens=int(_last(state.log_history, "num_tokens") or 0),
        supervised_tokens=int(_last(state.log_history, "supervised_tokens") or 0),
        tokens_per_second=engine.watch.tokens_per_second,
        seconds=time.perf_counter() - started,
        peak_memory_bytes=int(world.most([peak_memory_bytes(job.device)])[0]),
        stopped_by=signals.received,
        metric_for_best_model=judged_by,
        best_metric=best,
        best_step=state.best_global_step,
    )


def peak_memory_bytes(device: str) -> int:
    """The allocator's peak on CUDA, else the process's peak resident memory."""
    if device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def overflowed(accelerator: Any) -> bool:
    """True if fp16 loss scaling left the step out to lower its scale, as it does in a run's first steps.

    From a scale below 1 on there is nothing to lower: the gradients themselves are not finite.
    """
    return bool(accelerator.optimizer_step_was_skipped and accelerator.scaler.get_scale() >= 1)


def _last(history: Sequence[dict[str, Any]], name: str) -> float | None:
    return next((float(entry[name]) for entry in reversed(history) if name in entry), None)
