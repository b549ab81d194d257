"""How the servers that exist are told to serve a model: the command of each, as training had it."""

import ipaddress
import json
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from truetune.errors import BackendError, ConfigError
from truetune.inference.llama_cpp import INSTALL as INSTALL_LLAMA_CPP
from truetune.inference.llama_cpp import is_installed
from truetune.model.source import metadata_has

ServerName = Literal["transformers", "llama.cpp", "vllm"]

SLOTS = 4
"""So many requests llama.cpp answers at once, each with the whole context: llama-server's own number."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What is served: a folder, or a .gguf file. `name` is what clients call it.

    `dtype` is torch's name of how it is stored; `sampling` what its generation_config.json says of requests that say
    nothing: temperature, top_k, top_p, min_p, repetition_penalty.
    """

    path: Path
    name: str
    dtype: str
    context_length: int | None = None
    sampling: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server listens. `api_key` is asked of every request, where there is one."""

    host: str
    port: int
    api_key: str | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        """Where this machine reaches it: http://127.0.0.1:8000."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Command:
    """What starts a server: `shown` is the program as people write it, `program` as it is found here.

    `environment` comes on top of this process's; secrets are in it and nowhere else. Paths hold in `folder`.
    """

    shown: str
    program: tuple[str, ...]
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    folder: Path | None = None

    def as_json(self) -> dict[str, Any]:
        """As `truetune serve --print --json` prints it: `environment` names what is to be set, and tells no value."""
        return {
            "command": [*self.shown.split(), *self.arguments],
            "folder": self.folder and str(self.folder),
            "environment": sorted(self.environment),
        }

    def as_text(self) -> str:
        """A line for a shell, with a dollar sign and the name in the place of each secret."""
        secrets = "".join(f'{name}="${name}" ' for name in self.environment if name.endswith("_API_KEY"))
        line = f"{secrets}{self.shown} {shlex.join(self.arguments)}"
        return f"cd {shlex.quote(str(self.folder))} && {line}" if self.folder else line


@dataclass(frozen=True, slots=True)
class Server:
    """What a server can do. `greedy` is what a request says beside temperature 0 so that nothing else plays a part.

    `takes_ids` is False where a prompt can be told as text only; `key` is the variable for the key it asks for, None
    where it asks for none.
    """

    name: ServerName
    takes_ids: bool
    key: str | None
    greedy: Mapping[str, Any]


SERVERS: Mapping[ServerName, Server] = {
    each.name: each
    for each in (
        # frequency_penalty is what `transformers serve` calls repetition_penalty - 1.
        Server("transformers", takes_ids=False, key=None, greedy={"frequency_penalty": 0}),
        Server(
            "llama.cpp",
            takes_ids=True,
            key="LLAMA_API_KEY",
            greedy={"top_k": 1, "repeat_penalty": 1.0, "reasoning_format": "none"},
        ),
        Server("vllm", takes_ids=True, key="VLLM_API_KEY", greedy={"repetition_penalty": 1.0}),
    )
}


def require_fitting(server: ServerName, *, api_key: str | None, quantize: str, file: Path | None) -> None:
    """ConfigError for what a server cannot do: ask for a key, serve a .gguf `file`, store weights in fewer bits."""
    if api_key and SERVERS[server].key is None:
        raise ConfigError(
            f"{server} serve asks for no key", hint="use --server llama.cpp or vllm, or put a proxy before it"
        )
    if file and server != "llama.cpp":
        raise ConfigError(f"{server} is given folders, and {file} is for llama.cpp", hint="serve the run itself")
    if quantize != "auto" and (file or server != "llama.cpp"):
        what = f"{file} is stored as it is" if file else f"{server} serves weights as they are stored"
        raise ConfigError(f"--quantize: {what}", hint="it is for runs and folders that llama.cpp serves")


def is_loopback(host: str) -> bool:
    """True for an address that only this machine reaches."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def command_of(
    server: ServerName, program: tuple[str, ...], model: ServedModel, address: Address, *, device: str = "auto"
) -> Command:
    """The command by which `server` serves the model there."""
    key = SERVERS[server].key
    secret = {key: address.api_key} if key and address.api_key else {}
    match server:
        case "transformers":
            return _transformers(program, model, address, device)
        case "llama.cpp":
            return Command("llama-server", program, _llama_cpp(model, address, device), secret)
        case "vllm":
            return Command("vllm serve", program, _vllm(model, address), secret)


def _transformers(program: tuple[str, ...], model: ServedModel, address: Address, device: str) -> Command:
    """It calls a model by the path that it was given, so that path is the name, from the folder above."""
    words = (model.path.name, *_listen(address), "--device", device, "--dtype", model.dtype)
    # The folder is here: nothing is asked of the hub, and not of PyPI whether there is a newer version either.
    environment = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
    return Command("transformers serve", program, words, environment, model.path.parent)


def _llama_cpp(model: ServedModel, address: Address, device: str) -> tuple[str, ...]:
    words = ["--model", str(model.path), "--alias", model.name, *_listen(address), "--jinja"]
    if model.context_length:
        words += ["--ctx-size", str(model.context_length * SLOTS), "--parallel", str(SLOTS)]
    if device == "cpu":
        words += ["--n-gpu-layers", "0"]
    for name, value in model.sampling.items():
        words += [_OPTIONS[name], f"{value:g}"]
    return tuple(words)


_OPTIONS = {
    "temperature": "--temp",
    "top_k": "--top-k",
    "top_p": "--top-p",
    "min_p": "--min-p",
    "repetition_penalty": "--repeat-penalty",
}
"""generation_config.json's names in llama-server's words."""


def _vllm(model: ServedModel, address: Address) -> tuple[str, ...]:
    """The dtype is said, since vLLM would compute what is stored in float32 in half of that."""
    words = [str(model.path), "--served-model-name", model.name, *_listen(address), "--dtype", model.dtype]
    if model.context_length:
        words += ["--max-model-len", str(model.context_length)]
    return tuple(words)


def _listen(address: Address) -> tuple[str, ...]:
    return ("--host", address.host, "--port", str(address.port))


def sampling_of(folder: Path) -> dict[str, float]:
    """What generation_config.json says of requests that say nothing; empty where it asks for no sampling."""
    try:
        settings = json.loads((folder / "generation_config.json").read_bytes())
    except (OSError, ValueError):
        return {}
    if not settings.get("do_sample"):
        return {}
    return {name: settings[name] for name in _OPTIONS if settings.get(name) is not None}


# --- what is installed ------------------------------------------------------------------------------------


def find_program(server: ServerName, *, llama_cpp: str | None = None) -> tuple[str, ...]:
    """How the server is started here. BackendError, with how to install it, where it is not."""
    match server:
        case "transformers":
            return _transformers_program()
        case "llama.cpp":
            return _llama_cpp_program(llama_cpp)
        case "vllm":
            if found := shutil.which("vllm"):
                return (found, "serve")
            raise BackendError("vllm is not installed", hint="see docs.vllm.ai; --print shows its command")


def is_there(server: ServerName, *, llama_cpp: str | None = None) -> bool:
    """True if it can be started here."""
    try:
        find_program(server, llama_cpp=llama_cpp)
    except BackendError:
        return False
    return True


def _transformers_program() -> tuple[str, ...]:
    if lacking := [name for name in ("fastapi", "uvicorn", "openai") if not metadata_has(name)]:
        raise BackendError(
            f"`transformers serve` needs {' and '.join(lacking)}", hint="run: pip install 'truetune[serve]'"
        )
    # -P: a folder in the working directory must not stand for a library.
    return (sys.executable, "-P", "-m", "transformers.cli.transformers", "serve")


def _llama_cpp_program(named: str | None) -> tuple[str, ...]:
    """llama-server where it is named, or on the PATH; else the server inside xllamacpp, told in the same words."""
    if named:
        return (_in_folder(Path(named)),)
    if found := shutil.which("llama-server"):
        return (found,)
    if is_installed():
        return (sys.executable, "-P", "-m", "truetune.inference.llama_cpp_server")
    raise BackendError(
        "llama.cpp's server is not here", hint=f"{INSTALL_LLAMA_CPP}; or name the folder of llama-server: --llama-cpp"
    )


def _in_folder(named: Path) -> str:
    places = (named, named / "llama-server", named / "bin" / "llama-server", named / "build" / "bin" / "llama-server")
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise BackendError(
            f"{named} holds no llama-server", hint="name the program, or the folder that it is built in"
        )
    return str(found.absolute())
