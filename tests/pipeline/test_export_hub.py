"""Uploads by the real client to a hub on loopback, each in a process of its own: what is sent, and what is not."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import truetune
import warm
from conftest import CHATML, byte_tokenizer, tiny_model, write_jsonl
from hub import TOKEN
from truetune.inference.generate import Sampling, load_trained
from writable_hub import WritableHub, running_writable_hub

ROWS = [
    {"instruction": f"Where is zanzibar number {n}?", "output": f"on shelf {n} of the mauve room"} for n in range(24)
]
SENT = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "chat_template.jinja",
    "parity.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "truetune.json",
}


_PROGRAM = """
import contextlib, io, json, os, sys
from truetune.environment import set_environment
set_environment()
from truetune.cli import main
for line in sys.stdin:
    asked = json.loads(line)
    os.environ.pop("HF_TOKEN", None)
    os.environ.update({"HF_TOKEN": asked["token"]} if asked["token"] else {})
    out, told = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(told):
        status = main(asked["words"])
    print(json.dumps({"status": status, "out": out.getvalue(), "told": told.getvalue()}), flush=True)
"""


@dataclass
class Shell:
    """Runs `truetune export RUN --to hub` in a process that knows no hub but the one on loopback."""

    hub: WritableHub
    process: subprocess.Popen[str]
    said: str = ""
    status: int = 0

    def export(self, run: Path | str, *words: str, token: str | None = TOKEN) -> Any:
        """The JSON that is printed; the words on stderr where it fails."""
        assert self.process.stdin
        assert self.process.stdout
        place = () if "-o" in words else ("-o", "user/name")
        command = ["export", str(run), "--to", "hub", *place, *words, "--json"]
        self.process.stdin.write(json.dumps({"token": token, "words": command}) + "\n")
        self.process.stdin.flush()
        found = json.loads(self.process.stdout.readline())
        self.said, self.status = found["told"], found["status"]
        assert TOKEN not in found["out"] + self.said
        return json.loads(found["out"]) if self.status == 0 else self.said


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    home = tmp_path_factory.mktemp("home")
    with running_writable_hub() as hub:
        environment = {**os.environ, **hub.environment(), "HF_HOME": str(home)}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen([sys.executable, "-c", _PROGRAM], env=environment, cwd=home, **pipes) as process:
            yield Shell(hub, process)
            assert process.stdin
            process.stdin.close()


@pytest.fixture
def shell(running: Shell) -> Shell:
    """The same process, with a hub on which nothing has happened."""
    running.hub.reset()
    return running


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secret-place") / "my-base"
    tiny_model().save_pretrained(folder)
    byte_tokenizer(chat_template=CHATML).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A base\n")
    return folder


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runs")
    data = write_jsonl(place / "rows.jsonl", ROWS)
    settings: dict[str, Any] = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "test_size": 4}
    truetune.train(model=str(base), data=str(data), output_dir=place / "run", **settings)
    return place / "run"


def test_an_adapter_is_sent_privately_in_one_commit_and_read_back(shell: Shell, run: Path) -> None:
    told = shell.export(run)
    there = shell.hub.files("user/name")
    assert set(there) - {".gitattributes"} == SENT == set(told["sent"])
    assert there["adapter_model.safetensors"] == (run / "adapter" / "adapter_model.safetensors").read_bytes()
    assert shell.hub.repositories["models", "user/name"].private
    assert told["is_private"]
    assert told["verified"]
    assert told["path"] == f"{shell.hub.endpoint}/user/name"
    assert shell.hub.commits == 1


def test_nothing_private_leaves_the_machine(shell: Shell, run: Path, base: Path) -> None:
    shell.export(f"{run}@1")
    shell.export(run)
    assert shell.hub.commits == 2
    sent = b"\n".join(shell.hub.received)
    assert b"adapter_model.safetensors" in sent
    for private in (str(base), str(run), "secret-place", "zanzibar", "mauve", "--to", str(Path.home()) + "/"):
        assert private.encode() not in sent, private
    for name in shell.hub.files("user/name"):
        assert not name.endswith((".pt", ".pth", ".bin", ".jsonl", "run.json", "config.yaml")), name
    assert json.loads(shell.hub.files("user/name")["adapter_config.json"])["base_model_name_or_path"] == "my-base"


def test_the_card_tells_the_run_and_its_code_gives_the_trained_answer(
    shell: Shell, run: Path, base: Path, tmp_path: Path
) -> None:
    shell.export(run, "--base-name", "org/base", "--revision", "v2")
    there = shell.hub.files("user/name", "v2")
    assert "README.md" not in shell.hub.files("user/name", "main")
    card = there["README.md"].decode()
    report = json.loads((run / "data-report.json").read_text())
    record, stats = json.loads((run / "run.json").read_text()), report["stats"]
    for words in (
        "base_model: org/base",
        "license: mit",
        "| rows from | rows.jsonl |",
        f"| rows trained on | {stats['train_rows']} |",
        f"| training loss, at the end | {record['final_loss']:.4f} |",
        f"| validation loss | {record['eval_loss']:.4f} |",
        record["model"]["fingerprint"],
        json.loads((run / "adapter" / "manifest.json").read_text())["files"]["adapter_model.safetensors"]["sha256"],
    ):
        assert words in card
    folder = tmp_path / "fetched"
    folder.mkdir()
    for name, data in there.items():
        (folder / name).write_bytes(data)
    (code,) = re.findall(r"```python\n(.*?)\n```", card, re.DOTALL)
    code = code.replace("'org/base'", repr(str(base))).replace("'user/name'", repr(str(folder)))
    code = code.replace("max_new_tokens=256", "max_new_tokens=8")
    done = subprocess.run(warm.python("-c", code), capture_output=True, text=True, check=True)
    trained = load_trained(folder, base_model=str(base))
    answer = trained.generate("What is the capital of France?", sampling=Sampling(max_new_tokens=8))
    assert done.stdout.rstrip("\n") == answer.text.rstrip("\n")


def test_an_upload_that_broke_off_sends_only_what_is_missing(shell: Shell, run: Path) -> None:
    shell.hub.breaks_at_commit = True
    assert "the upload broke off" in shell.export(run)
    assert "what is there already is not sent again" in shell.said
    assert (shell.status, shell.hub.puts, shell.hub.commits) == (1, 1, 0)
    shell.hub.breaks_at_commit = False
    assert set(shell.export(run)["sent"]) == SENT
    assert (shell.hub.puts, shell.hub.commits) == (1, 1)
    again = shell.export(run)
    assert (again["sent"], set(again["skipped"])) == ([], SENT)
    assert (shell.hub.puts, shell.hub.commits) == (1, 1)


def test_a_file_that_the_hub_holds_otherwise_is_told(shell: Shell, run: Path) -> None:
    shell.hub.damages = "adapter_config.json"
    told = shell.export(run)
    assert shell.status == 1
    assert "adapter_config.json is not what was sent" in told


def test_without_a_token_nothing_is_read_and_a_wrong_one_or_one_that_may_not_write_is_told(
    shell: Shell, run: Path
) -> None:
    told = shell.export("no-such-run", token=None)
    assert "there is no token for the hub" in told
    assert "hf auth login" in told
    assert "HF_TOKEN" in told
    wrong = "hf_" + "x" * 30
    assert "the hub does not accept the token" in shell.export(run, token=wrong)
    assert wrong not in shell.said
    shell.hub.role = "read"
    assert "may only read" in shell.export(run)
    shell.hub.role, shell.hub.forbidden = "write", True
    assert "the token may not write there" in shell.export(run)
    assert not shell.hub.puts
    assert not shell.hub.repositories


def test_a_repository_that_is_public_takes_nothing_without_public(shell: Shell, run: Path) -> None:
    shell.hub.makes_public = True
    assert "user/name is public" in shell.export(run)
    assert (shell.hub.puts, shell.hub.commits) == (0, 0)
    told = shell.export(run, "--public", "--license", "cc0-1.0")
    assert not told["is_private"]
    assert b"license: cc0-1.0" in shell.hub.files("user/name")["README.md"]


def test_a_card_that_somebody_wrote_is_kept_here_and_on_the_hub(shell: Shell, run: Path, tmp_path: Path) -> None:
    shell.export(run)
    written = shell.hub.files("user/name")["README.md"] + b"\nMine.\n"
    shell.hub.put_files("user/name", "main", {"README.md": written})
    assert shell.export(run)["card"] == "kept"
    assert shell.hub.files("user/name")["README.md"] == written
    own = tmp_path / "adapter"
    shutil.copytree(run / "adapter", own)
    (own / "README.md").write_text("# My own\n")
    assert shell.export(own, "-o", "user/other")["card"] == "kept"
    assert shell.hub.files("user/other")["README.md"] == b"# My own\n"
    (own / "README.md").write_text(f"# My own, of {own}\n")
    assert "README.md names a place of this machine" in shell.export(own, "-o", "user/third")
    assert ("models", "user/third") not in shell.hub.repositories


def test_merged_it_is_a_whole_model_that_was_checked(shell: Shell, run: Path, tmp_path: Path) -> None:
    told = shell.export(run, "--merged")
    assert told["check"]["prompts"] == told["check"]["equal"] + told["check"]["ties"] > 0
    there = shell.hub.files("user/name")
    assert "model.safetensors" in there
    assert "adapter_model.safetensors" not in there
    assert b"check of the merge" in there["README.md"]
    for name, data in there.items():
        (tmp_path / name).write_bytes(data)
    assert load_trained(tmp_path).generate("Where?").prompt_ids


def test_weights_that_are_not_as_training_saved_them_are_not_sent(shell: Shell, run: Path, tmp_path: Path) -> None:
    changed = tmp_path / "adapter"
    shutil.copytree(run / "adapter", changed)
    weights = changed / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert "adapter_model.safetensors is not what was written" in shell.export(changed)
    assert not shell.hub.repositories


def test_a_folder_of_gguf_files_goes_up_with_its_modelfile_and_nothing_else(shell: Shell, tmp_path: Path) -> None:
    folder = tmp_path / "exported"
    folder.mkdir()
    (folder / "model-q8_0.gguf").write_bytes(b"GGUF" + bytes(64))
    (folder / "Modelfile").write_text("FROM ./model-q8_0.gguf\n")
    (folder / "notes.txt").write_text("mine")
    told = shell.export(folder)
    assert told["kind"] == "gguf"
    assert set(told["sent"]) == {"README.md", "Modelfile", "model-q8_0.gguf"}


def test_what_was_made_of_a_run_keeps_its_card_s_facts_wherever_it_is_sent_from(
    shell: Shell, run: Path, base: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    truetune.export(run, elsewhere, to="adapter")
    shell.export(elsewhere)
    card = shell.hub.files("user/name")["README.md"].decode()
    record = json.loads((run / "run.json").read_text())
    for words in (
        "# name\n",
        "'user/name'",
        "license: mit",
        "| rows from | rows.jsonl |",
        f"| training loss, at the end | {record['final_loss']:.4f} |",
        record["model"]["fingerprint"],
        "| check on its base |",
        "| adapter_model.safetensors |",
    ):
        assert words in card, words
    assert "was not at hand" not in card
    assert "elsewhere" not in card
    assert "card.json" not in shell.hub.files("user/name")
    (elsewhere / "README.md").write_text("# Mine\n")
    assert shell.export(elsewhere)["card"] == "kept"


def test_an_upload_of_which_nothing_arrived_leaves_no_repository(shell: Shell, run: Path) -> None:
    shell.hub.breaks_at_upload = True
    shell.export(run)
    assert shell.status == 1
    assert "is removed again: nothing had arrived there" in shell.said
    assert not shell.hub.repositories
    shell.hub.add("user/name", {"mine.txt": "mine"}, kind="models", private=True)
    shell.export(run)
    assert shell.status == 1
    assert set(shell.hub.files("user/name")) == {"mine.txt"}


def test_a_public_repository_is_told_before_anything_is_merged(shell: Shell, run: Path, base: Path) -> None:
    shell.hub.add("user/name", {}, kind="models")
    assert "user/name is public" in shell.export(run, "--merged")
    assert "merging" not in shell.said


def test_options_of_another_kind_of_export_are_refused(shell: Shell, run: Path) -> None:
    for words, told in (
        (("--quantize", "f16"), "--quantize is not for --to hub"),
        (("--no-check",), "--no-check is not for --to hub"),
        (("-o", "no-user"), "write USER/NAME"),
        (("--base-name", "/a/path"), "write ORG/MODEL"),
    ):
        assert told in shell.export(run, *words)
        assert shell.status == 2
    assert not shell.hub.requests
