"""TRL's SFTTrainer, fed with our own tokens and labels.

What differs from TRL goes through its public seams (a data collator, columns that are already prepared) and, where
it has none, through the methods overridden in `Engine`, which tests/training/test_contracts.py holds against the
installed version.
"""

import math
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTTrainer

from truetune.data.collate import collate, collate_padded
from truetune.data.examples import Packed, Tokenized
from truetune.errors import BackendError
from truetune.listener import Listener
from truetune.model.compiled import CompiledLayers
from truetune.model.fused_lora import cast_once
from truetune.model.hardware import lacks_compiler, used_memory
from truetune.model.loss import provable_head
from truetune.model.side_by_side import WORKERS, obstacle, side_by_side
from truetune.model.slices import TOKENS, largest, slices
from truetune.model.tokenizer import pad_token_id
from truetune.runs.checkpoints import checkpoint_folder, newest_listed
from truetune.training.answers import AnswerScorer
from truetune.training.arguments import sft_arguments
from truetune.training.batches import dataset_of, real_tokens, without_weights
from truetune.training.checkpoints import (
    BestCheckpoint,
    make_room,
    only_tensors,
    rate_by_schedule,
    read_unlogged,
    write_checkpoint,
)
from truetune.training.job import TrainJob, TrainResult
from truetune.training.monitor import (
    EarlyStopping,
    MetricsCallback,
    NewestEvaluation,
    NonFiniteGuard,
    SignalCallback,
    Stopwatch,
    damaged_weight,
    tell_step,
)
from truetune.training.room import CHECKPOINTING, Room, persist
from truetune.training.scores import Scores, score_logits, score_supervised
from truetune.training.session import ScoredRows
from truetune.training.step import Counts, Step, random_state


class Engine(SFTTrainer):
    """SFTTrainer with token-weighted metrics and evaluation, and an end to runs that diverge."""

    tells_accuracy = True
    """False where not every training batch tells how many tokens it predicts right."""

    computes_side_by_side = True
    """False where the model's code is another than transformers', and may not allow it."""

    generates = True
    """False where the model's own `generate` would leave it other than training had it."""

    def __init__(
        self, *, job: TrainJob, listener: Listener, scorer: AnswerScorer | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        self.job = job
        # Gemma 3n and 4 say no, and Trainer then averages micro-batches whatever their tokens; the loss here is ours.
        self.model_accepts_loss_kwargs = True
        self.listener = listener
        self.scorer = scorer
        self.watch = Stopwatch()
        self._guard = NonFiniteGuard()
        self._evaluated = NewestEvaluation()
        self._guarded_step = 0
        self._step = Step()
        self._restore_random = random_state()
        self._logged = read_unlogged(job.resume_from) if job.resume_from else Counts()
        can_be_cut = self.accelerator.num_processes == 1 and not self.aux_loss_enabled
        self._room = Room(TOKENS.get(self.args.device.type), can_be_cut=can_be_cut, workers=self._workers())
        self._plain, self._head = self.model, provable_head(self.model)
        self._layers = CompiledLayers()
        # TRL 1.16 stores a quantised base's adapter in bf16; trainable weights stay fp32 here.
        for parameter in self.model.parameters():
            if parameter.requires_grad and getattr(self.model, "is_quantized", False):
                parameter.data = parameter.data.float()

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The sum of the supervised tokens' losses, each by its row's weight, over their number in the whole step."""
        if self.aux_loss_enabled:
            inputs = {**inputs, "output_router_logits": True}
        weights, inputs = without_weights(inputs)
        outputs = self.score(model, inputs)
        count = outputs.label_mask.sum()
        tokens = count if num_items_in_batch is None else torch.as_tensor(num_items_in_batch, device=count.device)
        log_probs = outputs.log_probs if weights is None else outputs.log_probs * weights[:, 1:]
        loss = -log_probs.sum() / tokens.clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss / self.current_gradient_accumulation_steps
        self._step.add(supervised=count, tokens=real_tokens(inputs))
        if self.tells_accuracy:
            self._step.add(correct=outputs.is_top1.sum())
        return (loss, outputs) if return_outputs else loss

    def score(self, model: Any, inputs: dict[str, Any]) -> Scores:
        """The next tokens' `log_probs` and `is_top1`, (rows, length - 1), zero where `label_mask` is not set."""
        if self._head is not None and model is self._plain and not self.aux_loss_enabled:
            with self.accelerator.autocast():
                return score_supervised(self._head, inputs)
        return score_logits(model, inputs)

    def create_optimizer(self, model: Any = None) -> Any:
        """Trainer's optimizer, with groups of their own for the update matrices B of LoRA+ (arXiv 2402.12354)."""
        is_new, ratio = self.optimizer is None, self.job.loraplus_lr_ratio
        optimizer = super().create_optimizer(model)
        if is_new and ratio is not None:
            faster = {id(value) for name, value in self.model.named_parameters() if "lora_B" in name}
            optimizer.param_groups = list(_parted(optimizer.param_groups, faster, ratio))
        return optimizer

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
        """The batch's share of the step's loss and gradient, computed slice by slice.

        Where memory runs out, all of the step's batches so far are computed again, less at a time.
        """
        self.watch.begin()
        self._step.begin(inputs)
        batches = [inputs]

        def start_over(failure: str) -> None:
            self._step.start_over()
            model.zero_grad()
            batches[:] = self._step.batches
            # Of several processes none can start over alone: the others wait for its gradient.
            learner = self.model if self.accelerator.num_processes == 1 else None
            self._give_way(failure, batches, f"step {self.state.global_step + 1}", model=learner)

        return persist(lambda: [self._learn(model, each, num_items_in_batch) for each in batches][-1], start_over)

    def _learn(self, model: Any, batch: dict[str, Any], count: Any) -> Any:
        pieces = slices(batch, self._room.tokens)
        with cast_once(self.model), self._layers.in_use():
            if (workers := self._room.workers_for(pieces)) > 1:
                losses = list(self._learned_side_by_side(model, pieces, count, workers))
            else:
                losses = [super(Engine, self).training_step(model, each, count) for each in pieces]
        loss = torch.stack(losses).sum()
        self._step.add(loss=loss)
        return loss

    def _learned_side_by_side(
        self, model: Any, pieces: Sequence[dict[str, Any]], count: Any, workers: int
    ) -> Iterator[torch.Tensor]:
        """The slices' losses; what Trainer's own step does of them on a CPU, but for adding up the gradients here."""
        model.train()
        learned = [each for each in model.parameters() if each.requires_grad]

        def learn(piece: dict[str, Any]) -> tuple[torch.Tensor, Any]:
            with self.compute_loss_context_manager():
                loss = self.compute_loss(model, self._prepare_inputs(piece), num_items_in_batch=count)
            return loss.detach(), torch.autograd.grad(loss, learned, allow_unused=True)

        for loss, gradients in side_by_side(learn, pieces, workers=workers):
            for weight, gradient in zip(learned, gradients, strict=True):
                if gradient is not None:
                    weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)
            yield loss

    def _workers(self) -> int:
        """How many slices are computed at a time."""
        args = self.args
        is_plain = not (args.gradient_checkpointing or args.activation_offloading)
        can = self.computes_side_by_side and args.device.type == "cpu" and is_plain
        return WORKERS if can and obstacle(self.model) is None else 1

    def compile_layers(self) -> None:
        """Has the model's layers compiled for training, where torch can and they prove to compute the same."""
        if not (problem := self._obstacle()):
            self.listener.say("compiling the model's layers, which takes about half a minute")
            layers, restore = CompiledLayers(self.model.train()), random_state()
            piece = self._first_slice()
            with cast_once(self.model):
                problem = layers.problem(lambda: self.score(self.model, piece), self.accelerator.autocast)
            restore()
            if not problem:
                # torch compiles for a number of threads, and compiled layers gain nothing side by side.
                self._layers, self._room.workers = layers, 1
                return
        self.listener.warn(f"the model's layers are not compiled: {problem}")

    def _obstacle(self) -> str | None:
        """Why compiled layers would not be those of the training, whatever they compute when they are tried."""
        if self.data_collator is not collate:
            return "rows are padded, and each number of rows would be compiled for itself"
        if self.aux_loss_enabled:
            return "the router's loss is not seen in what a layer makes"
        if any(isinstance(each, torch.nn.Dropout) and each.p > 0 for each in self.model.modules()):
            return "they would draw another dropout"
        return lacks_compiler() if self.args.device.type == "cpu" else None

    def _first_slice(self) -> dict[str, Any]:
        """What a training computes at a time, of its first rows."""
        count = min(self.args.per_device_train_batch_size, len(self.train_dataset))
        batch = self.data_collator([self.train_dataset[place] for place in range(count)])
        return slices(without_weights(self._prepare_inputs(batch))[1], self._room.tokens)[0]

    def _give_way(self, failure: str, batches: Sequence[dict[str, Any]], place: str, *, model: Any) -> None:
        """Makes room for the batches; BackendError where nothing is left to do, with the last step saved."""
        clear_device_cache(garbage_collection=True)
        before, kept = largest(batches, self._room.tokens), not getattr(self.model, f"is_{CHECKPOINTING}")
        measure = self._room.give_way(batches, model=model)
        if measure is None:
            raise BackendError(
                f"out of memory in {place}, at {before:,} tokens at a time: {failure}{self._save_last_step()}",
                hint="lower training.per_device_train_batch_size, data.max_length or adapter.r, set "
                "model.load_in_4bit, or take a machine with more memory",
            )
        if kept and getattr(self.model, f"is_{CHECKPOINTING}"):
            self._layers = CompiledLayers()  # They were compiled to keep their activations.
        self.listener.warn(
            f"out of memory in {place} ({failure}): computed again, and all that follows, with {measure}; "
            "the rows of a step and its gradient stay the same"
        )

    def _save_last_step(self) -> str:
        """A checkpoint of the last step, if there was a sound one; says where it is."""
        step = self.state.global_step
        if not step or self._guard.is_alarmed or self.accelerator.num_processes > 1:
            return ""
        folder = checkpoint_folder(Path(self.args.output_dir), step)
        if newest_listed(folder.parent) != folder:
            self._restore_random()
            self._save_checkpoint(self.model, None)
        return f"; step {step} is saved in {folder}"

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """A checkpoint that is there as a whole or not at all; then older ones make room."""
        write_checkpoint(self, identity=self.job.identity, unlogged=self._logged)
        make_room(self, limit=self.job.save_total_limit)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """An epoch; none where a run was killed behind its last step, of which Trainer would take one more."""
        early = (each.is_over for each in self.callback_handler.callbacks if isinstance(each, EarlyStopping))
        if self.state.global_step >= self.state.max_steps or any(early):
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        """Trainer's, which would take the next step at the rate of the schedule that the checkpoint knew."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            rate_by_schedule(self.lr_scheduler)

    def _maybe_log_save_evaluate(self, tr_loss: Any, grad_norm: Any, *args: Any, **kwargs: Any) -> None:
        """Called by Trainer after every step and epoch: the one place that knows the step's gradient norm."""
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
        batches = len(dataloader)
        for done, batch in enumerate(dataloader, start=1):
            _, inputs = without_weights(self._prepare_inputs(batch))
            totals += self._sums(model, inputs)
            self.listener.progress("evaluating", done, batches)
        loss, correct, count = self.accelerator.reduce(totals.to(self.args.device, torch.float32)).tolist()
        metrics = {"loss": loss / count, "mean_token_accuracy": correct / count, "supervised_tokens": int(count)}
        if self.scorer is not None:
            metrics |= self.scorer.measure(model, step=self.state.global_step)
        named = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(None, None, named, self.num_examples(dataloader))

    def _sums(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """Loss, tokens predicted right and supervised tokens of a batch; less at a time where memory runs out."""

        def give_way(failure: str) -> None:
            self._restore_random = random_state()
            self._give_way(failure, [inputs], "the evaluation", model=None)

        # One transfer a batch; float64 on the CPU, since MPS has none.
        return persist(lambda: self._sums_of_slices(model, inputs), give_way).cpu().double()

    def _sums_of_slices(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        def sums_of(piece: dict[str, Any]) -> torch.Tensor:
            with torch.no_grad(), self.compute_loss_context_manager():
                outputs = self.score(model, piece)
            found = (-outputs.log_probs.float().sum(), outputs.is_top1.sum(), outputs.label_mask.sum())
            return torch.stack([value.float() for value in found])

        pieces = slices(inputs, self._room.tokens)
        return torch.stack(list(side_by_side(sums_of, pieces, workers=self._room.workers_for(pieces)))).sum(0)

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
) -> Engine:
    """The trainer for `job`, ready to train."""
    patience = job.early_stopping_patience
    stopping = [EarlyStopping(early_stopping_patience=patience)] if patience and validation else []
    padding = pad_token_id(tokenizer)
    engine = kind(
        job=job,
        listener=listener,
        scorer=None if scored is None else AnswerScorer(scored, pad_token_id=padding, listener=listener),
        model=model,
        args=sft_arguments(job, has_validation=bool(validation)),
        train_dataset=dataset_of(train),
        eval_dataset=dataset_of(validation) if validation else None,
        data_collator=collate if job.is_padding_free else partial(collate_padded, pad_token_id=padding),
        processing_class=tokenizer,
        callbacks=[BestCheckpoint(listener), *stopping, *callbacks],
    )
    engine.remove_callback(PrinterCallback)
    if job.torch_compile:
        engine.compile_layers()
    return engine


def train(engine: Engine, job: TrainJob, *, metrics: MetricsCallback) -> TrainResult:
    """Trains to the end, or to the step after SIGINT or SIGTERM."""
    started = time.perf_counter()
    with SignalCallback() as signals:
        engine.add_callback(metrics)
        engine.add_callback(signals)
        with only_tensors(job.resume_from):
            engine.train(resume_from_checkpoint=str(job.resume_from) if job.resume_from else None)
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
        peak_memory_bytes=peak_memory_bytes(job.device),
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
