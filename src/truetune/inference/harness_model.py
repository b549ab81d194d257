"""A loaded model as lm-evaluation-harness asks it. Imported only where that is installed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from truetune.data.store import evenly

_WATCHED = 16
"""Prompts of a kind of request that are kept, from the first to the last in even steps."""

Tell = Callable[[str, int, int], None]
"""Is told the kind of request, how many are done, and of how many."""


@dataclass(frozen=True, slots=True)
class Sent:
    """The ids that a prompt became; behind it, where `is_scored`, those of an answer that is scored."""

    ids: tuple[int, ...]
    is_scored: bool


class WatchedModel(HFLM):
    """The harness's own model class, whose answers stop where training's do, and which keeps what it is sent.

    `sent` has some prompts' ids as the model gets them, `conversations` the turns that a prompt was made of, `cut`
    how many requests were longer than the model can read: the harness cuts those from the left.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, stop_token_ids: Sequence[int], batch_size: int, tell: Tell
    ) -> None:
        # In bf16, a sum of log-probabilities would be rounded to three digits: they are taken in float32.
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, softmax_dtype="float32")
        self.sent: dict[str, Sent] = {}
        self.conversations: dict[str, list[dict[str, Any]]] = {}
        self.cut = 0
        self._stop_token_ids = list(stop_token_ids)
        self._watched: set[str] = set()
        self._tell = tell

    def next_logits(self, ids: Sequence[int]) -> torch.Tensor:
        """The float32 logits of (vocabulary,) behind `ids`, on the CPU, by the call that the harness makes."""
        logits: torch.Tensor = self._model_call(torch.tensor([list(ids)], device=self.device))[0, -1]
        return logits.float().cpu()

    # --- what the harness calls -----------------------------------------------------------------------

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
        self._begin("likelihoods", requests)
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
        self._begin("texts", requests)
        return super().loglikelihood_rolling(requests, disable_tqdm=True)

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
        self._begin("answers", requests)
        return super().generate_until(requests, disable_tqdm=True)

    def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
        text: str = super().apply_chat_template(chat_history, add_generation_prompt=add_generation_prompt)
        self.conversations[text] = chat_history
        return text

    def _loglikelihood_tokens(self, requests: Any, **options: Any) -> Any:
        for texts, prompt, scored in requests:
            self.cut += texts is not None and len(prompt) + len(scored) > self.max_length + 1
            if texts is not None and texts[0] in self._watched:
                self.sent.setdefault(texts[0], Sent((*prompt, *scored), is_scored=True))
        return super()._loglikelihood_tokens(requests, **options)

    def tok_batch_encode(self, strings: Any, left_truncate_len: int | None = None, **options: Any) -> Any:
        ids, mask = super().tok_batch_encode(strings, left_truncate_len=left_truncate_len, **options)
        for text, row, is_real in zip(strings, ids, mask.bool(), strict=True):
            if left_truncate_len is not None and int(is_real.sum()) >= left_truncate_len:
                self.cut += len(self.tok_encode(text)) > left_truncate_len
            if text in self._watched:
                self.sent.setdefault(text, Sent(tuple(row[is_real].tolist()), is_scored=False))
        return ids, mask

    def _model_generate(self, context: Any, max_length: int, stop: Any, **options: Any) -> Any:
        options.setdefault("eos_token_id", self._stop_token_ids)
        return super()._model_generate(context, max_length, stop, **options)

    def _begin(self, kind: str, requests: Any) -> None:
        prompts = [text for text in dict.fromkeys(each.args[0] for each in requests) if text]
        if kind != "texts":  # Those are scored as they are, without a prompt.
            self._watched.update(prompts[place] for place in evenly(len(prompts), _WATCHED))
        self.set_cache_hook(_Counter(kind, len(requests), self._tell))


class _Counter:
    """Stands where the harness would keep its answers, which it hands over one by one."""

    def __init__(self, kind: str, total: int, tell: Tell) -> None:
        self.kind, self.done, self.total, self._tell = kind, 0, total, tell

    def add_partial(self, *_: Any) -> None:
        self.done += 1
        self._tell(self.kind, self.done, self.total)
