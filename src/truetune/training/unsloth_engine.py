"""Our trainer as Unsloth's: imported in its process only, behind unsloth, so that SFTTrainer is Unsloth's own."""

from typing import Any

from truetune.data.examples import IGNORED
from truetune.training.batches import real_tokens
from truetune.training.trl import Engine


class UnslothEngine(Engine):
    """The loss is the one Unsloth's model computes, which never holds all logits on a GPU."""

    tells_accuracy = False
    computes_side_by_side = False
    generates = False

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The supervised tokens' mean loss over the whole step. Rows with weights need each token's."""
        if "loss_weights" in inputs or num_items_in_batch is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        outputs = model(**inputs, num_items_in_batch=num_items_in_batch, use_cache=False)
        supervised = (inputs["labels"][:, 1:] != IGNORED).sum()
        self._step.add(supervised=supervised, tokens=real_tokens(inputs))
        return (outputs.loss, outputs) if return_outputs else outputs.loss
