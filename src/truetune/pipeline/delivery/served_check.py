"""Whether a running server's model is the trained one: what was recorded of it, and what the server answers."""

from dataclasses import dataclass
from pathlib import Path

from truetune.errors import CheckpointError
from truetune.inference.http_parity import Endpoint, HttpParity, Reader, replay_over_http
from truetune.inference.opened import Opened
from truetune.inference.parity import FILE as PARITY
from truetune.inference.parity import Fixtures
from truetune.inference.servers import SERVERS, ServerName
from truetune.listener import Listener
from truetune.model.fixtures import read_file
from truetune.pipeline.delivery.adapter_base import was_trained_quantised
from truetune.pipeline.delivery.llama_cpp_check import rows_answers
from truetune.pipeline.delivery.served_files import ServedFiles, whole_folder
from truetune.pipeline.delivery.whole_model import WholeModel, answered

ENOUGH = 0.8
"""The share of a quantised model's answers that should be the recorded ones; below it is warned."""
_ALL_THE_SAME = "the server was stopped; --no-check serves it all the same"


@dataclass(frozen=True, slots=True)
class ServedCheck:
    """The check of one served model, over the base that is named, if one is."""

    opened: Opened
    files: ServedFiles
    base_model: str | None
    listener: Listener

    def recorded(self) -> Fixtures:
        """What was recorded, the rows' prompts too; for a model without, the answers that it gives now."""
        found = read_file(self.files.folder / PARITY) or Fixtures((), "float32")
        if rows := self._rows():
            found = Fixtures((*found.fixtures, *rows.fixtures), rows.dtype)
        if not found.fixtures and not self.opened.is_adapter:
            self.listener.say("no answers were recorded with it: a few prompts are asked now, and compared")
            found = answered(WholeModel(whole_folder(self.opened), ""))
        return found

    def _rows(self) -> Fixtures | None:
        """What was recorded of the run's rows; None where that was over a base that is quantised, or another one."""
        folder = Path(self.opened.source.path)
        if self.base_model or (self.opened.is_adapter and was_trained_quantised(folder)):
            return None
        return rows_answers(folder)

    def proved(self, server: ServerName, endpoint: Endpoint, recorded: Fixtures) -> HttpParity:
        """What the running server answers. CheckpointError if that is not what the trained model does."""
        found = replay_over_http(
            endpoint,
            SERVERS[server],
            recorded,
            reader=self._reader(),
            dtype=self.files.computed,
            listener=self.listener,
        )
        if found.other_prompt:
            raise CheckpointError(
                f"the server does not prompt as training did: {found.other_prompt}", hint=_ALL_THE_SAME
            )
        if self.files.is_exact and not found.is_same:
            raise CheckpointError(
                f"over HTTP it is not the trained model: {found.first_difference}", hint=_ALL_THE_SAME
            )
        self._warn(found)
        return found

    def _reader(self) -> Reader:
        template = self.opened.template
        closing = template.terminator.strip()
        stops = (closing,) if closing and not template.terminator_is_token else ()
        if stops:
            self.listener.warn(f'answers end with {closing!r}, no single token: requests must name it ("stop")')
        return Reader(self.opened.tokenizer, template.stop_token_ids, stops)

    def _warn(self, found: HttpParity) -> None:
        if found.adds_system:
            self.listener.warn(
                "it tells the model system messages, which the training's template leaves out: send none"
            )
        if found.not_asked:
            self.listener.warn(f"{found.not_asked} prompts cannot be told to this server, which takes text alone")
        if found.equal_rate < ENOUGH:
            self.listener.warn(
                f"stored as {self.files.stored} it gives {found.equal_rate:.0%} of the recorded answers: "
                "--quantize stores it in more bits"
            )
