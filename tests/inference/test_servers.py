"""Each server is told model, place, context and sampling in its own words, and a key where nobody can read it."""

import json
from pathlib import Path

import pytest

from truetune.errors import BackendError, ConfigError
from truetune.inference.llama_cpp_server import _options
from truetune.inference.server_process import choose_port
from truetune.inference.servers import (
    SERVERS,
    Address,
    Command,
    ServedModel,
    ServerName,
    command_of,
    find_program,
    is_loopback,
    require_fitting,
    sampling_of,
)

MODEL = ServedModel(Path("/models/desk"), "desk", "bfloat16", 2048, {"temperature": 0.6, "top_k": 20})
PLACE = Address("127.0.0.1", 8000)


def command(server: ServerName, place: Address = PLACE, **options: str) -> Command:
    return command_of(server, (), MODEL, place, **options)


def test_transformers_is_given_the_folder_by_its_name_and_asks_nobody_for_anything() -> None:
    made = command("transformers", device="cpu")
    words = "desk --host 127.0.0.1 --port 8000 --device cpu --dtype bfloat16"
    assert made.as_text() == f"cd /models && transformers serve {words}"
    assert made.environment == {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}


def test_llama_cpp_has_the_whole_context_in_every_slot_and_the_models_sampling() -> None:
    assert command("llama.cpp", device="cpu").as_text() == (
        "llama-server --model /models/desk --alias desk --host 127.0.0.1 --port 8000 --jinja --ctx-size 8192 "
        "--parallel 4 --n-gpu-layers 0 --temp 0.6 --top-k 20"
    )


def test_vllm_is_told_the_dtype_and_the_context() -> None:
    assert command("vllm").as_text() == (
        "vllm serve /models/desk --served-model-name desk --host 127.0.0.1 --port 8000 --dtype bfloat16 "
        "--max-model-len 2048"
    )


def test_the_server_inside_xllamacpp_takes_every_word_of_llama_server() -> None:
    asked = _options(command("llama.cpp", device="cpu").arguments)
    assert (asked.model, asked.alias, asked.host, asked.port) == ("/models/desk", "desk", "127.0.0.1", 8000)
    assert (asked.ctx_size, asked.parallel, asked.n_gpu_layers, asked.temp, asked.top_k) == (8192, 4, 0, 0.6, 20)


@pytest.mark.parametrize(("server", "variable"), [("llama.cpp", "LLAMA_API_KEY"), ("vllm", "VLLM_API_KEY")])
def test_a_key_is_in_the_environment_and_in_nothing_that_is_shown(server: ServerName, variable: str) -> None:
    made = command(server, Address("0.0.0.0", 8000, "secret-key"))
    assert made.environment[variable] == "secret-key"
    assert made.as_text().startswith(f'{variable}="${variable}" ')
    assert "secret-key" not in repr(made) + made.as_text() + json.dumps(made.as_json()) + " ".join(made.arguments)
    assert "secret-key" not in repr(Address("0.0.0.0", 8000, "secret-key"))


def test_what_a_server_cannot_do_is_refused() -> None:
    fits = {"api_key": None, "quantize": "auto", "file": None}
    for server in SERVERS:
        require_fitting(server, **fits)
    with pytest.raises(ConfigError, match="asks for no key"):
        require_fitting("transformers", **{**fits, "api_key": "secret"})
    with pytest.raises(ConfigError, match=r"desk\.gguf is for llama\.cpp"):
        require_fitting("vllm", **{**fits, "file": Path("desk.gguf")})
    with pytest.raises(ConfigError, match="serves weights as they are stored"):
        require_fitting("transformers", **{**fits, "quantize": "q8_0"})
    with pytest.raises(ConfigError, match="is stored as it is"):
        require_fitting("llama.cpp", **{**fits, "quantize": "q8_0", "file": Path("desk.gguf")})


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("localhost", "http://localhost:8000"),
        ("10.1.2.3", "http://10.1.2.3:8000"),
    ],
)
def test_the_url_is_one_by_which_this_machine_reaches_it(host: str, url: str) -> None:
    assert Address(host, 8000).url == url


def test_only_loopback_addresses_are_this_machines_alone() -> None:
    assert [host for host in ("127.0.0.1", "127.3.2.1", "::1", "localhost") if not is_loopback(host)] == []
    assert [host for host in ("0.0.0.0", "::", "10.1.2.3", "desk.example") if is_loopback(host)] == []


def test_sampling_is_what_the_generation_config_asks_for(tmp_path: Path) -> None:
    file = tmp_path / "generation_config.json"
    assert sampling_of(tmp_path) == {}
    file.write_text(json.dumps({"do_sample": True, "temperature": 0.7, "top_p": None, "max_length": 20}))
    assert sampling_of(tmp_path) == {"temperature": 0.7}
    file.write_text(json.dumps({"temperature": 0.7}))
    assert sampling_of(tmp_path) == {}


def test_llama_server_is_found_where_it_is_named(tmp_path: Path) -> None:
    built = tmp_path / "llama.cpp" / "build" / "bin"
    built.mkdir(parents=True)
    (built / "llama-server").touch()
    for named in (tmp_path / "llama.cpp", built, built / "llama-server"):
        assert find_program("llama.cpp", llama_cpp=str(named)) == (str(built / "llama-server"),)
    with pytest.raises(BackendError, match="holds no llama-server"):
        find_program("llama.cpp", llama_cpp=str(tmp_path))


def test_a_host_that_is_none_is_told() -> None:
    with pytest.raises(ConfigError, match=r"999\.1\.1\.1 is no address"):
        choose_port("999.1.1.1", None)
