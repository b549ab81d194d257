"""`truetune serve` hands over a real server that answers as the trained model does, or none."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import truetune
import warm
from commanded import refusal
from conftest import CHATML, arithmetic_rows, byte_tokenizer, tiny_model
from heard import Heard
from truetune.cli import main
from truetune.errors import BackendError, CheckpointError, ConfigError
from truetune.inference.http_parity import Endpoint, HttpParity, Reader, replay_over_http
from truetune.inference.parity import read_fixtures
from truetune.inference.servers import SERVERS
from truetune.model.fixtures import Fixture, Fixtures

SERVER_NAMES = ("llama.cpp", "transformers")
QUESTION = "Add 3 and 4"
PYTHON = sys.executable


@pytest.fixture(scope="module", autouse=True)
def warmed() -> Iterator[None]:
    """The servers, and what stands between them and this process, need not load the libraries."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", warm.executable())
        patch.setenv("WARM_PYTHON", warm.executable())
        yield


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of these tests' own, which the servers' processes see, too."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRUETUNE_CACHE", str(folder))
        yield folder


def trained(folder: Path, *, template: str | None = CHATML, **settings: Any) -> truetune.Run:
    base = folder / "base"
    tiny_model(hidden_size=64, intermediate_size=128).save_pretrained(base)
    byte_tokenizer(chat_template=template).save_pretrained(base)
    options = {"num_train_epochs": 20, "learning_rate": 1e-2, "precision": "fp32", "save_strategy": "no", **settings}
    rows = arithmetic_rows(12)
    return truetune.train(model=str(base), data=rows, output_dir=folder / "desk", packing=False, **options)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> truetune.Run:
    return trained(tmp_path_factory.mktemp("serve"), max_length=256)


@pytest.fixture(scope="module")
def merged(run: truetune.Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return truetune.merge(run, tmp_path_factory.mktemp("merged") / "whole").path


@pytest.fixture
def altered(merged: Path, tmp_path: Path) -> Path:
    """The merged model as a folder that may be changed: without the manifest, nobody else notices."""
    folder = tmp_path / "whole"
    shutil.copytree(merged, folder)
    (folder / "manifest.json").unlink()
    return folder


def post(url: str, body: dict[str, Any], key: str | None = None) -> Any:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.load(reply)


def asked(served: Any, question: str = QUESTION, key: str | None = None) -> str:
    messages = [{"role": "user", "content": question}]
    body = {"model": served.model, "messages": messages, "temperature": 0, "max_tokens": 16}
    return str(post(f"{served.url}/chat/completions", body, key)["choices"][0]["message"]["content"])


def listens(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def port_of(served: Any) -> int:
    return int(served.url.removesuffix("/v1").rpartition(":")[2])


def free_port() -> int:
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        return int(tried.getsockname()[1])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("server", SERVER_NAMES)
def test_a_run_is_served_and_answers_as_it_was_trained(run: truetune.Run, server: Any) -> None:
    before = contents(run.directory)
    with truetune.serve(run, server=server, port=0, device="cpu") as served:
        assert served.parity is not None
        assert (served.parity.prompts, served.parity.equal, served.parity.not_asked) == (6, 6, 0)
        assert served.parity.other_prompt is None
        assert (served.server, served.model) == (server, "desk")
        assert asked(served) == truetune.load(run).generate(QUESTION).text
        port = port_of(served)
        assert listens(port)
    assert not listens(port)
    assert contents(run.directory) == before


def test_what_was_made_to_be_served_is_found_again(run: truetune.Run) -> None:
    first, second = Heard(), Heard()
    for heard in (first, second):
        truetune.serve(run, server="transformers", port=0, device="cpu", check=False, listener=heard).close()
    assert "merging" not in second.text()
    assert "kept for the next time" in second.text()


def test_a_run_by_a_format_text_is_served_with_that_format_as_its_chat_template(tmp_path: Path) -> None:
    run = trained(tmp_path, template=None)
    heard = Heard()
    with truetune.serve(run, server="llama.cpp", port=0, device="cpu", listener=heard) as served:
        assert served.parity is not None
        assert served.parity.is_same
        assert asked(served) == truetune.load(run).generate(QUESTION).text
        assert served.parity.adds_system
    assert "warning: it tells the model system messages" in heard.text()


def test_a_full_run_and_its_checkpoint_are_served(tmp_path: Path) -> None:
    run = trained(tmp_path, method="full", save_strategy="epoch", num_train_epochs=2)
    step = min(int(path.name.rpartition("-")[2]) for path in (run.directory / "checkpoints").iterdir())
    for name in (run.directory, f"{run.directory}@{step}"):
        with truetune.serve(name, server="transformers", port=0, device="cpu") as served:
            assert served.parity is not None
            assert served.parity.equal == served.parity.prompts > 1


def test_check_only_starts_checks_and_ends_the_server(run: truetune.Run, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["serve", str(run.directory), "--server", "llama.cpp", "--port", "0", "--check-only", "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == {"server", "url", "model", "context_length", "parity", "seconds", "log"}
    assert found["context_length"] == 256
    assert found["parity"]["equal"] == found["parity"]["prompts"]
    assert not listens(int(found["url"].removesuffix("/v1").rpartition(":")[2]))


def test_weights_in_few_bits_are_served_and_told_to_be_other_ones(run: truetune.Run) -> None:
    with truetune.serve(run, server="llama.cpp", quantize="q8_0", port=0, device="cpu") as served:
        assert served.parity is not None
        assert served.parity.other_prompt is None
        assert asked(served)


# --- what is not handed over --------------------------------------------------------------------------------


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    return refusal(capsys, "serve", *words)


@pytest.mark.parametrize("server", SERVER_NAMES)
def test_a_server_that_prompts_otherwise_is_not_handed_over(
    altered: Path, server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = altered / "chat_template.jinja"
    file.write_text(file.read_text(encoding="utf-8").replace("user", "person").replace("<|im_end|>\n", "<|im_end|>"))
    port = free_port()
    status, told = refused(capsys, altered, "--server", server, "--port", port, "--device", "cpu")
    assert status == 1
    assert "does not prompt as training did" in told
    assert not listens(port)


def test_other_weights_are_not_handed_over(altered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_model(hidden_size=64, intermediate_size=128, seed=3).save_pretrained(altered)
    port = free_port()
    status, told = refused(capsys, altered, "--server", "transformers", "--port", port, "--device", "cpu")
    assert status == 1
    assert "over HTTP it is not the trained model" in told
    assert not listens(port)
    truetune.serve(altered, server="transformers", port=port, device="cpu", check=False).close()


def test_weights_that_were_changed_since_they_were_written_are_refused(merged: Path, tmp_path: Path) -> None:
    shutil.copytree(merged, tmp_path / "whole")
    tiny_model(hidden_size=64, intermediate_size=128, seed=3).save_pretrained(tmp_path / "whole")
    with pytest.raises(CheckpointError, match="is not what was written"):
        truetune.serve(tmp_path / "whole", server="transformers", port=0)


def test_a_port_that_is_taken_is_told_before_anything_is_made(
    run: truetune.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRUETUNE_CACHE", str(tmp_path / "cache"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, told = refused(capsys, run.directory, "--server", "llama.cpp", "--port", port)
    assert status == 2
    assert f"port {port} of 127.0.0.1 is taken" in told
    assert not (tmp_path / "cache").exists()


def program(folder: Path, text: str) -> Path:
    """A program that stands for llama-server, for what the real one does not do here."""
    path = folder / "llama-server"
    path.write_text(f"#!{PYTHON}\n{text}\n")
    path.chmod(0o755)
    return path


def test_a_server_that_dies_is_told_with_its_last_words(
    run: truetune.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dying = program(tmp_path, "import sys; print('loading'); sys.exit('cannot map the file')")
    status, told = refused(capsys, run.directory, "--server", "llama.cpp", "--port", "0", "--llama-cpp", dying)
    assert status == 1
    assert "has ended by itself (exit status 1)" in told
    assert "cannot map the file" in told
    assert "its output: " in told


def test_another_server_at_the_address_does_not_pass_for_ours(run: truetune.Run, tmp_path: Path) -> None:
    """It answers, but not for this model; ours, which found no place, has died."""
    late = program(tmp_path, "import sys, time; time.sleep(1); sys.exit('address in use')")
    with truetune.serve(run, server="transformers", port=0, device="cpu", check=False) as other:
        endpoint = Endpoint(other.url.removesuffix("/v1"), "another")
        assert not endpoint.is_ready()
        assert Endpoint(endpoint.url, other.model).is_ready()
    with pytest.raises(BackendError, match="address in use"):
        truetune.serve(run, server="llama.cpp", port=0, llama_cpp=late)


# --- what a replay tells ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def replayed(run: truetune.Run) -> Iterator[Callable[..., HttpParity]]:
    """Asks a real server recorded prompts as they may be changed."""
    fixtures = read_fixtures(run.directory)
    assert fixtures
    tokenizer = truetune.load(run).tokenizer
    with truetune.serve(run, server="llama.cpp", port=0, device="cpu", check=False) as served:
        endpoint = Endpoint(served.url.removesuffix("/v1"), served.model)

        def ask(change: Callable[[Fixture], Fixture], dtype: str = "float32") -> HttpParity:
            changed = Fixtures(tuple(map(change, fixtures.fixtures)), "float32")
            reader = Reader(tokenizer, (257, 260))
            return replay_over_http(
                endpoint, SERVERS["llama.cpp"], changed, reader=reader, dtype=dtype, listener=Heard()
            )

        yield ask


def test_another_token_is_a_tie_only_where_it_led_by_no_more_than_rounding(
    replayed: Callable[..., HttpParity],
) -> None:
    def at(margin: float) -> Callable[[Fixture], Fixture]:
        return lambda each: replace(
            each, answer_ids=(ord("Q"), *each.answer_ids[1:]), margins=(margin, *each.margins[1:])
        )

    unchanged = replayed(lambda each: each)
    assert (unchanged.equal, unchanged.first_difference) == (unchanged.prompts, None)
    close = replayed(at(1e-3))
    assert (close.equal, close.ties, close.is_same) == (0, close.prompts, True)
    far = replayed(at(0.1))
    assert (far.equal, far.ties, far.is_same) == (0, 0, False)
    assert far.first_difference
    assert replayed(at(0.1), "bfloat16").is_same


def test_an_answer_where_the_trained_model_gives_none_is_another_one(replayed: Callable[..., HttpParity]) -> None:
    found = replayed(lambda each: replace(each, answer_ids=(257,), margins=(9.0,)))
    assert (found.equal, found.ties, found.is_same) == (0, 0, False)
    assert found.first_difference


def test_a_prompt_of_other_length_is_told_as_another_prompt(replayed: Callable[..., HttpParity]) -> None:
    found = replayed(lambda each: replace(each, prompt_ids=(*each.prompt_ids, 10)) if each.messages else each)
    assert found.other_prompt
    assert "tokens of a conversation" in found.other_prompt
    assert not found.is_same


# --- keys, signals, files -----------------------------------------------------------------------------------


def test_a_key_is_asked_for_and_stands_in_no_file(
    run: truetune.Run, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = "a-key-of-ours-4711"
    with truetune.serve(run, server="llama.cpp", port=0, device="cpu", api_key=key) as served:
        assert served.parity
        assert served.parity.is_same
        with pytest.raises(urllib.error.HTTPError, match="401"):
            asked(served)
        assert asked(served, key=key)
        assert key not in served.log.read_text(errors="replace") + repr(vars(served)) + served.example()
        assert "Bearer $API_KEY" in served.example()
    with pytest.raises(ConfigError, match="asks for no key"):
        truetune.serve(run, server="transformers", api_key=key)


def started(*words: object) -> "tuple[subprocess.Popen[str], dict[str, Any]]":
    """The command in a process of its own, once it has handed over."""
    command = warm.truetune("serve", *words, "--port", "0", "--json")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ})
    assert process.stdout
    assert process.stderr
    line = process.stdout.readline()
    assert line, process.stderr.read()
    return process, json.loads(line)


@pytest.mark.parametrize(
    ("server", "number", "status"),
    [
        ("llama.cpp", signal.SIGTERM, 143),
        ("llama.cpp", signal.SIGKILL, -signal.SIGKILL),
        ("transformers", signal.SIGINT, 130),
    ],
)
def test_the_server_ends_with_the_command_however_that_ends(
    run: truetune.Run, server: str, number: signal.Signals, status: int
) -> None:
    process, found = started(run.directory, "--server", server, "--device", "cpu")
    port = int(found["url"].removesuffix("/v1").rpartition(":")[2])
    assert listens(port)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == status
    deadline = time.monotonic() + 20
    while listens(port) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not listens(port)


def test_the_command_ends_with_the_server(run: truetune.Run, tmp_path: Path) -> None:
    """A server that answers once for its model, and then ends by itself."""
    short = program(
        tmp_path,
        "import http.server, sys\n"
        "class Reply(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200); self.end_headers()\n"
        '        self.wfile.write(b\'{"data": [{"id": "desk"}]}\')\n'
        "server = http.server.HTTPServer(('127.0.0.1', int(sys.argv[sys.argv.index('--port') + 1])), Reply)\n"
        "server.handle_request(); server.handle_request(); sys.exit('out of memory')",
    )
    process, _ = started(run.directory, "--server", "llama.cpp", "--llama-cpp", short, "--no-check")
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert "out of memory" in told


def test_a_gguf_is_served_and_said_not_to_be_checked(
    run: truetune.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = truetune.export(run, tmp_path / "desk-f32.gguf").path
    status, told = refused(capsys, file, "--port", "0", "--check-only")
    assert status == 1
    assert "no answers are recorded with a .gguf file" in told
    with truetune.serve(tmp_path, port=0) as served:
        assert (served.server, served.model, served.parity) == ("llama.cpp", "desk-f32", None)
        assert asked(served) == truetune.load(run).generate(QUESTION).text


@pytest.mark.parametrize("server", ["vllm", *SERVER_NAMES])
def test_print_tells_the_command_whether_the_server_is_here_or_not(
    run: truetune.Run, server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["serve", str(run.directory), "--server", server, "--host", "0.0.0.0", "--print", "--no-check"]) == 2
    capsys.readouterr()
    assert main(["serve", str(run.directory), "--server", server, "--host", "0.0.0.0", "--print"]) == 0
    printed = capsys.readouterr()
    shown = {"vllm": "vllm serve", "transformers": "transformers serve", "llama.cpp": "llama-server"}[server]
    assert f"{shown} " in printed.out
    assert "desk" in printed.out
    assert "is reached from other machines" in printed.err


def test_options_that_do_not_go_together_are_refused(run: truetune.Run, capsys: pytest.CaptureFixture[str]) -> None:
    for words, told in (
        (("--check-only", "--no-check"), "do not go together"),
        (("--server", "transformers", "--quantize", "q8_0"), "serves weights as they are stored"),
        (("--server", "llama.cpp", "--quantize", "q9"), "no such quantization: q9"),
        (("--server", "transformers", "--api-key", "secret"), "asks for no key"),
    ):
        status, error = refused(capsys, run.directory, *words)
        assert status == 2
        assert told in error
