"""What a step's batches compute: TRL's SFTTrainer with our loss, slice by slice, and in several processes.

`Engine` (trl.py) adds what comes between steps.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from trl import SFTTrainer

from truetune.data.collate import collate
from truetune.errors import BackendError
from truetune.listener import Listener
from truetune.model.compiled import CompiledLayers
from truetune.model.fused_lora import cast_once
from truetune.model.hardware import lacks_compiler
from truetune.model.loss import Head, LanguageHead, provable_head
from truetune.model.side_by_side import WORKERS, obstacle, side_by_side
from truetune.model.slices import TOKENS, largest, slices
from truetune.training.batches import real_tokens, without_weights
from truetune.training.job import TrainJob
from truetune.training.monitor import Stopwatch
from truetune.training.room import CHECKPOINTING, Room, persist
from truetune.training.scores import Scores, score_logits, score_supervised
from truetune.training.step import Step, random_state, seed_of
from truetune.training.strategies import Strategy, strategy_of
from truetune.training.world import World, deal


class Computing(SFTTrainer):
    """SFTTrainer whose steps are exact sums over their supervised tokens, however they are cut and dealt out."""

    tells_accuracy = True
    """False where not every training batch tells how many tokens it predicts right."""

    computes_side_by_side = True
    """False where the model's code is another than transformers', and may not allow it."""

    def __init__(self, *, job: TrainJob, listener: Listener, world: World | None = None, **options: Any) -> None:
        self.world = world or World()
        self.strategy: Strategy = strategy_of(job, self.world)
        super().__init__(**options)
        self.job = job
        # Gemma 3n and 4 say no, and Trainer then averages micro-batches whatever their tokens; the loss here is ours.
        self.model_accepts_loss_kwargs = True
        self.listener = listener
        self.watch = Stopwatch()
        self._step = Step()
        self._own: Sequence[int] = ()
        self._place = 0
        self._fillers = 0
        self._shortest: dict[str, Any] = {}
        self._restore_random = random_state()
        tokens, can_be_cut = TOKENS.get(self.args.device.type), not self.aux_loss_enabled
        can_be_cut = can_be_cut and not self.strategy.is_collective
        self._room = Room(tokens, can_be_cut=can_be_cut, workers=self._workers())
        self._plain, self._head = self.model, provable_head(self.model)
        self._layers = CompiledLayers()
        # TRL 1.16 stores a quantised base's adapter in bf16; trainable weights stay fp32 here.
        for parameter in self.model.parameters():
            if parameter.requires_grad and getattr(self.model, "is_quantized", False):
                parameter.data = parameter.data.float()

    def _move_model_to_device(self, model: Any, device: Any) -> None:
        """Trainer's; a model that is shared out goes to its devices a layer at a time."""
        if not self.strategy.is_collective:
            super()._move_model_to_device(model, device)

    # --- the loss -----------------------------------------------------------------------------------------------

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
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss / self.current_gradient_accumulation_steps
        self._step.add(supervised=count, tokens=real_tokens(inputs))
        if self.tells_accuracy:
            self._step.add(correct=outputs.is_top1.sum())
        return (loss, outputs) if return_outputs else loss

    def score(self, model: Any, inputs: dict[str, Any]) -> Scores:
        """The next tokens' `log_probs` and `is_top1`, (rows, length - 1), zero where `label_mask` is not set."""
        return self.strategy.forward(lambda: self._score(model, inputs))

    def _score(self, model: Any, inputs: dict[str, Any]) -> Scores:
        if self._head is not None and model is self._plain and not self.aux_loss_enabled:
            with self.accelerator.autocast():
                return score_supervised(self._head_now(self._head), inputs)
        return score_logits(model, inputs)

    def _head_now(self, head: LanguageHead) -> LanguageHead:
        """The head with the model's weights of this moment, where they are put together for it."""
        if not self.strategy.is_collective:
            return head
        model: Any = self.model
        causal = model.get_base_model() if hasattr(model, "get_base_model") else model
        return replace(head, head=Head.of(causal))

    # --- a step -------------------------------------------------------------------------------------------------

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """All batches of a step, in every process, with the number of their tokens; each computes its share."""
        batches, tokens = super().get_batch_samples(*args, **kwargs)
        sizes = [each["input_ids"].numel() for each in batches]
        self._own, self._place = self.world.share(sizes), 0
        if self.strategy.is_collective and batches:
            self._fillers = max(map(len, deal(sizes, self.world.size))) - len(self._own)
            self._shortest = batches[sizes.index(min(sizes))]
            self.strategy.begin(len(self._own) + self._fillers)
        return batches, tokens

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
        """The batch's share of the step's loss and gradient; with a step's last batch, those of all processes."""
        self.watch.begin()
        place, self._place = self._place, self._place + 1
        if self.world.size == 1:
            return self._computed(model, inputs, num_items_in_batch, place)
        if place in self._own:
            self._computed(model, inputs, num_items_in_batch, place)
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        self._fill_up(model, num_items_in_batch)
        return self._added_up()

    def _computed(self, model: Any, inputs: dict[str, Any], tokens: Any, place: int) -> Any:
        """A batch of this process's, computed slice by slice.

        Where memory runs out, all of the step's batches so far are computed again, less at a time.
        """
        self._step.begin(inputs, place)
        batches = {place: inputs}

        def start_over(failure: str) -> None:
            self._step.start_over()
            model.zero_grad()
            batches.update(self._step.batches)
            where = f"step {self.state.global_step + 1}"
            self._give_way(failure, list(batches.values()), where, model=self.model)

        def learn() -> Any:
            return [self._learn(model, batches[each], tokens, each) for each in sorted(batches)][-1]

        return persist(learn, start_over)

    def _fill_up(self, model: Any, tokens: Any) -> None:
        """Where no process computes alone, those with fewer batches go through the shortest one, for nothing."""
        while self._fillers > 0:
            self._fillers -= 1
            with self._step.left_out():
                self._learned_together(model, self._shortest, tokens, weight=0.0)

    def _added_up(self) -> Any:
        """The step's loss, with sums and gradients of all processes in each of them."""
        if (scaler := self.accelerator.scaler) is not None:
            scaler.scale(torch.zeros((), device=self.args.device))  # Without a batch it would not know its scale yet.
        self.strategy.add_up([each for each in self.model.parameters() if each.requires_grad])
        return self._step.share(self.world.sum, with_correct=self.tells_accuracy, device=self.args.device)

    def _learn(self, model: Any, batch: dict[str, Any], count: Any, place: int) -> Any:
        if self.world.size > 1:
            # Dropout by the batch's place in the run: the same whoever computes it, now or in a resumed run.
            torch.manual_seed(seed_of(self.job.seed, self.state.global_step, place))
        pieces = slices(batch, self._room.tokens)
        with cast_once(self.model), self._layers.in_use():
            if self.strategy.is_collective:
                losses = [self._learned_together(model, each, count) for each in pieces]
            elif (workers := self._room.workers_for(pieces)) > 1:
                losses = list(self._learned_side_by_side(model, pieces, count, workers))
            else:
                losses = [super(Computing, self).training_step(model, each, count) for each in pieces]
        loss = torch.stack(losses).sum()
        self._step.add(loss=loss)
        return loss

    def _learned_together(
        self, model: Any, piece: dict[str, Any], count: Any, *, weight: float = 1.0
    ) -> torch.Tensor:
        """The loss of a piece that all processes help to compute, with its gradients by a weight."""
        model.train()
        with self.compute_loss_context_manager():
            loss = self.compute_loss(model, self._prepare_inputs(piece), num_items_in_batch=count)
        self.strategy.backward(loss * weight)
        return loss.detach()

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
        is_plain = not (args.gradient_checkpointing or args.activation_offloading or self.strategy.is_collective)
        can = self.computes_side_by_side and args.device.type == "cpu" and is_plain
        return WORKERS if can and obstacle(self.model) is None else 1

    # --- an evaluation --------------------------------------------------------------------------------------------

    def sums_of(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """Loss, tokens predicted right and supervised tokens of a batch; less at a time where memory runs out."""

        def give_way(failure: str) -> None:
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

    # --- compiled layers ------------------------------------------------------------------------------------------

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

    # --- where memory runs out ------------------------------------------------------------------------------------

    def _give_way(self, failure: str, batches: Sequence[dict[str, Any]], place: str, *, model: Any) -> None:
        """Makes room for the batches; BackendError where nothing is left to do, with the last step saved."""
        clear_device_cache(garbage_collection=True)
        before, kept = largest(batches, self._room.tokens), not getattr(self.model, f"is_{CHECKPOINTING}")
        # The others wait within the same layer: what is computed again would meet them somewhere else.
        measure = None if self.strategy.is_collective else self._room.give_way(batches, model=model)
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
        raise NotImplementedError
