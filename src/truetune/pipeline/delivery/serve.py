"""`truetune serve`: a server that exists, told to serve a trained model, and proved over HTTP before it is used."""

import shlex
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from truetune.config.load import load_config
from truetune.errors import BackendError, ConfigError
from truetune.inference.http_parity import Endpoint, HttpParity
from truetune.inference.opened import Opened, open_trained
from truetune.inference.parity import Fixtures, told_answers
from truetune.inference.quantization import choose_quantization
from truetune.inference.server_process import ServerProcess, choose_port
from truetune.inference.servers import (
    Address,
    Command,
    ServedModel,
    ServerName,
    command_of,
    find_program,
    is_loopback,
    is_there,
    require_fitting,
    sampling_of,
)
from truetune.listener import Listener, LogListener
from truetune.model.fixtures import MAX_NEW_TOKENS
from truetune.model.source import DEMO, cache_directory, demo_file
from truetune.pipeline.delivery.exported import title_of
from truetune.pipeline.delivery.served_check import ServedCheck
from truetune.pipeline.delivery.served_files import ServedFiles, Wanted, gguf_files, is_exportable, whole_files
from truetune.runs.trained import run_of

_CONTEXT = 8192
"""Tokens of a request where no run tells how long its rows may be: a model's own limit may take all memory."""


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """How to serve. `port` None is 8000, or a free one; `context_length` None is what training read."""

    server: Literal["auto"] | ServerName = "auto"
    host: str = "127.0.0.1"
    port: int | None = None
    api_key: str | None = field(default=None, repr=False)
    quantize: str = "auto"
    context_length: int | None = None
    check: bool = True
    base_model: str | None = None
    llama_cpp: str | None = None
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"


class Serving:
    """A server that runs until `close`, the end of a `with` block, or the end of this process.

    `url` is what clients take as their base URL, `model` the name they ask for; `parity` what the check found, None
    where there was none; `seconds` how long it took to start and check.
    """

    def __init__(
        self,
        process: ServerProcess,
        *,
        server: ServerName,
        address: Address,
        model: ServedModel,
        parity: HttpParity | None,
        chats: bool,
        seconds: float,
    ) -> None:
        self.server, self.model, self.parity, self.seconds = server, model.name, parity, seconds
        self.url, self.context_length, self.log = f"{address.url}/v1", model.context_length, process.log
        self._process, self._chats, self._asks_key = process, chats, address.api_key is not None

    def as_json(self) -> dict[str, Any]:
        """As `truetune serve --json` prints it."""
        return {
            "server": self.server,
            "url": self.url,
            "model": self.model,
            "context_length": self.context_length,
            "parity": self.parity and self.parity.as_json(),
            "seconds": round(self.seconds, 1),
            "log": str(self.log),
        }

    def told(self) -> list[str]:
        """As `truetune serve` prints it."""
        length = f", {self.context_length:,} tokens a request" if self.context_length else ""
        check = told_answers(self.parity, where=" over HTTP") if self.parity else "nothing was asked"
        return [f"{self.server} serves {self.model} at {self.url}{length}", f"checked: {check}", f"log: {self.log}"]

    def example(self) -> str:
        """A request, as a line for a shell."""
        key = ' -H "Authorization: Bearer $API_KEY"' if self._asks_key else ""
        if self._chats:
            path, body = "chat/completions", '"messages": [{"role": "user", "content": "Hello"}]'
        else:
            path, body = "completions", '"prompt": "Hello", "max_tokens": 64'
        words = shlex.quote(f'{{"model": "{self.model}", {body}}}')
        return f"curl {self.url}/{path} -H 'Content-Type: application/json'{key} -d {words}"

    def wait(self) -> int:
        """The server's exit status, when it ends."""
        return self._process.wait()

    def failure(self, status: int) -> BackendError:
        """That it has ended by itself, with its last words."""
        return self._process.failure(status)

    def ask_to_end(self) -> None:
        """Has it end in order, and does not wait for it; may be called by a signal's handler."""
        self._process.ask_to_end()

    def close(self) -> None:
        """Ends the server."""
        self._process.end()

    def __enter__(self) -> "Serving":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def serve_run(name: str | Path, settings: ServeSettings, *, listener: Listener | None = None) -> Serving:
    """Starts a server with the model of a run (or RUN@STEP, a folder, a .gguf file), asked its recorded prompts.

    An adapter is merged first, for llama.cpp into a GGUF, in truetune's cache, where it is found again. Raises
    ConfigError or BackendError before weights load where that cannot be, BackendError for a server that dies, and
    CheckpointError for one whose answers are not those of training: it is ended then.
    """
    listener = listener or LogListener()
    plan = _plan(name, settings, listener)
    program = find_program(plan.server, llama_cpp=settings.llama_cpp)
    address = Address(settings.host, choose_port(settings.host, settings.port), settings.api_key)
    files = plan.files(listener)
    check = plan.check(files, listener)
    recorded = check.recorded() if check else None
    model = plan.model(files, recorded)
    began = time.monotonic()
    log = cache_directory() / "served" / "logs" / f"{plan.title}-{address.port}.log"
    listener.say(f"starting {plan.server} with {model.path}; what it prints goes to {log}")
    command = command_of(plan.server, program, model, address, device=settings.device)
    process = ServerProcess(command, log=log)
    try:
        endpoint = Endpoint(address.url, model.name, settings.api_key)
        process.wait_until(endpoint.is_ready, listener)
        parity = check.proved(plan.server, endpoint, recorded) if check and recorded else None
    except BaseException:
        process.end()
        raise
    return Serving(
        process,
        server=plan.server,
        address=address,
        model=model,
        parity=parity,
        chats=plan.chats,
        seconds=time.monotonic() - began,
    )


def serving_command(name: str | Path, settings: ServeSettings, *, listener: Listener | None = None) -> Command:
    """The command that `serve_run` would start; the files that it names are made, and the server need not be here."""
    listener = listener or LogListener()
    plan = _plan(name, settings, listener)
    files = plan.files(listener)
    address = Address(settings.host, 8000 if settings.port is None else settings.port, settings.api_key)
    return command_of(plan.server, (), plan.model(files, None), address, device=settings.device)


# --- what is served, and by which server ------------------------------------------------------------------


def _plan(name: str | Path, settings: ServeSettings, listener: Listener) -> "_Plan":
    """What will be done, known before weights load. ConfigError for settings that do not fit."""
    if settings.quantize != "auto":
        choose_quantization(settings.quantize, dtype="float32")
    file = _gguf_file(Path(name))
    opened = None if file else open_trained(name, base_model=settings.base_model, listener=listener)
    server = _server(opened, settings)
    require_fitting(server, api_key=settings.api_key, quantize=settings.quantize, file=file)
    if not settings.api_key and not is_loopback(settings.host):
        listener.warn(f"{settings.host} is reached from other machines, and no key is asked for: see --api-key")
    return _Plan(name, settings, server, opened, file)


def _gguf_file(path: Path) -> Path | None:
    """The .gguf that is named, or the only one of an exported folder; None for anything else."""
    if str(path) == DEMO and not path.is_dir():
        return demo_file()
    if path.suffix == ".gguf" and not path.is_dir():
        if not path.is_file():
            raise BackendError(f"model file not found: {path}")
        return path
    files = sorted(path.glob("*.gguf")) if path.is_dir() and not (path / "config.json").is_file() else []
    if len(files) > 1:
        raise ConfigError(f"{path} holds {len(files)} .gguf files", hint=f"name the one to serve, as {files[0]}")
    return files[0] if files else None


def _server(opened: Opened | None, settings: ServeSettings) -> ServerName:
    """The server that is asked for; else the first that is here and can serve it as it was trained."""
    if settings.server != "auto":
        return settings.server
    if opened is None or settings.quantize != "auto" or settings.llama_cpp:
        return "llama.cpp"
    if is_there("vllm"):
        return "vllm"
    if is_there("llama.cpp", llama_cpp=settings.llama_cpp) and is_exportable(opened, settings.base_model):
        return "llama.cpp"
    if is_there("transformers") and not settings.api_key:
        return "transformers"
    raise BackendError(
        "there is no server here that can serve it",
        hint="pip install 'truetune[llama-cpp]' or 'truetune[serve]', or vllm; a named one tells what it lacks",
    )


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is served, as far as it is known without its weights: `opened`, or a `file` for llama.cpp."""

    name: str | Path
    settings: ServeSettings
    server: ServerName
    opened: Opened | None
    file: Path | None

    @property
    def title(self) -> str:
        """What clients call it: the run's name, or the file's."""
        return self.file.stem if self.file else title_of(self.name)

    @property
    def chats(self) -> bool:
        """True where conversations are what it was trained on."""
        return self.opened is None or self.opened.format.row_format in ("chat", "instruction")

    def files(self, listener: Listener) -> ServedFiles:
        """What the server is given, made where it is not there yet."""
        if self.opened is None:
            assert self.file
            return ServedFiles(self.file, self.file.parent, "float16")
        settings = self.settings
        wanted = Wanted(
            self.name,
            self.title,
            quantize=settings.quantize,
            base_model=settings.base_model,
            device=settings.device,
            llama_cpp=settings.llama_cpp,
            does_check=settings.check,
        )
        make = gguf_files if self.server == "llama.cpp" else whole_files
        return make(self.opened, wanted, listener)

    def check(self, files: ServedFiles, listener: Listener) -> ServedCheck | None:
        """How the server will be checked; None, which is told, where there is nothing to check it by."""
        if self.opened is None or not self.settings.check:
            if self.settings.check:
                listener.warn("no answers are recorded with a .gguf file: serve the run that it was made of")
            return None
        return ServedCheck(self.opened, files, self.settings.base_model, listener)

    def model(self, files: ServedFiles, recorded: Fixtures | None) -> ServedModel:
        """What the server is told of it."""
        name = files.path.name if self.server == "transformers" else self.title
        return ServedModel(files.path, name, files.dtype, self._context(recorded), sampling_of(files.folder))

    def _context(self, recorded: Fixtures | None) -> int | None:
        """The tokens of a request: as many as training's rows may have, as far as the model can read."""
        if self.settings.context_length or self.opened is None:
            return self.settings.context_length
        most, run = self.opened.context_length, run_of(Path(self.opened.source.path))
        wanted = load_config(run.config).config.data.max_length if run and run.config.is_file() else _CONTEXT
        asked = max((len(each.prompt_ids) for each in recorded.fixtures), default=0) if recorded else 0
        wanted = max(wanted, asked + MAX_NEW_TOKENS)
        return min(wanted, most) if most else wanted
