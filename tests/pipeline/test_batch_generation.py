"""`truetune generate --input`: every row answered once, in order, whatever interrupts it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import truetune
from conftest import arithmetic_rows, write_jsonl
from heard import FAST, Heard
from truetune.cli import main
from truetune.errors import DataError
from truetune.inference.generate import Sampling, TrainedModel, load_trained
from truetune.model import hardware
from truetune.pipeline import generate
from truetune.pipeline.generate import answer_file

SHORT = Sampling(max_new_tokens=8)
ROWS: list[dict[str, Any]] = [
    {"prompt": "Add 1 and 2"},
    {"instruction": "Add 2 and 3", "output": "5", "answer": "five"},
    {"messages": [{"role": "user", "content": "Add 3 and 4, and tell me how you came to it"}]},
    {"prompt": "Add", "input": "4 and 5", "system": "Be brief"},
    {"prompt": "Add 5 and 6", "completion": "11"},
    {"instruction": "hi"},
]


@pytest.fixture(scope="module")
def run(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("answering")
    data = write_jsonl(folder / "rows.jsonl", arithmetic_rows(24))
    settings = {**FAST, "max_steps": 3, "save_strategy": "no"}
    truetune.train(model=str(tiny_base), data=data, output_dir=folder / "run", **settings)
    return folder / "run"


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "prompts.jsonl", ROWS)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("batch_size", ["auto", 2])
def test_each_row_has_its_answer_in_the_rows_order(run: Path, asked: Path, tmp_path: Path, batch_size: Any) -> None:
    done = answer_file(run, asked, tmp_path / "out.jsonl", sampling=SHORT, batch_size=batch_size)
    assert (done.rows, done.before) == (6, 0)
    model = load_trained(run)
    alone = [
        model.generate("Add 1 and 2", sampling=SHORT),
        model.generate("Add 2 and 3", sampling=SHORT),
        model.generate(ROWS[2]["messages"][0]["content"], sampling=SHORT),
        model.generate("Add", input="4 and 5", system="Be brief", sampling=SHORT),
        model.generate("Add 5 and 6", sampling=SHORT),
        model.generate("hi", sampling=SHORT),
    ]
    written = lines(tmp_path / "out.jsonl")
    assert [line["answer"] for line in written] == [answer.text for answer in alone]
    assert [line["prompt_tokens"] for line in written] == [len(answer.prompt_ids) for answer in alone]
    assert written[0].keys() == {"prompt", "answer", "stop_reason", "prompt_tokens", "answer_tokens"}
    assert (written[1]["input_answer"], written[1]["output"]) == ("five", "5")
    assert done.answer_tokens == sum(line["answer_tokens"] for line in written)


def test_what_is_answered_is_kept_and_a_cut_line_is_mended(run: Path, asked: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    answer_file(run, asked, out, sampling=SHORT)
    whole = out.read_bytes()
    every = whole.splitlines(keepends=True)
    marked = every[0].replace(b'"stop_reason": "', b'"stop_reason": "kept, not ')
    for left in (b"", marked, marked + every[1] + every[2][:-1], marked + every[1][:20]):
        out.write_bytes(left)
        done = answer_file(run, asked, out, sampling=SHORT)
        assert done.before == left.count(b"\n")
        assert out.read_bytes() == (left[: left.rfind(b"\n") + 1] + b"".join(every[done.before :]))
    heard = Heard()
    assert answer_file(run, asked, out, sampling=SHORT, listener=heard).before == 6
    assert "all 6 rows are answered" in heard.text()


def test_an_interrupt_leaves_whole_lines_and_the_rest_follows(
    run: Path, asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, expected = tmp_path / "out.jsonl", tmp_path / "expected.jsonl"
    answer_file(run, asked, expected, sampling=SHORT)
    given: Callable[..., Any] = TrainedModel.answers

    def interrupted(*args: Any, **options: Any) -> Any:
        for count, found in enumerate(given(*args, **options)):
            if count == 3:
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr(TrainedModel, "answers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        answer_file(run, asked, out, sampling=SHORT, batch_size=1)
    assert 0 < len(lines(out)) < 6
    monkeypatch.undo()
    answer_file(run, asked, out, sampling=SHORT)
    assert out.read_bytes() == expected.read_bytes()


def test_answers_to_other_rows_or_of_another_sampling_are_not_gone_on_with(
    run: Path, asked: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    answer_file(run, asked, out, sampling=SHORT)
    before = out.read_bytes()
    with pytest.raises(DataError, match="another sampling"):
        answer_file(run, asked, out, sampling=Sampling(max_new_tokens=9))
    write_jsonl(asked, [ROWS[0], {"prompt": "another"}, *ROWS[2:]])
    with pytest.raises(DataError, match=r"out\.jsonl, line 2: is no answer to .*prompts\.jsonl, line 2"):
        answer_file(run, asked, out, sampling=SHORT)
    write_jsonl(asked, ROWS[:2])
    with pytest.raises(DataError, match=r"line 3: has no row in the input"):
        answer_file(run, asked, out, sampling=SHORT)
    assert out.read_bytes() == before
    assert answer_file(run, asked, out, sampling=SHORT, overwrite=True).rows == len(lines(out)) == 2


def test_rows_that_cannot_be_asked_are_named_before_the_weights_load(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = {"prompt": "x" * 5000}
    bad = write_jsonl(tmp_path / "bad.jsonl", [ROWS[0], {"prompt": ""}, {"other": 1}, long, {"messages": "no"}])
    monkeypatch.setattr(generate, "load_opened", lambda *_, **__: pytest.fail("the weights were loaded"))
    with pytest.raises(DataError) as caught:
        answer_file(run, bad, tmp_path / "out.jsonl", sampling=SHORT)
    told = caught.value.message.splitlines()
    assert [line.partition(": ")[0].rpartition("line ")[2][:1] for line in told] == ["2", "3", "4", "5"]
    assert "the model reads 4,096" in told[2]
    assert not (tmp_path / "out.jsonl").exists()


def test_the_command_answers_a_file_and_tells_what_it_did(
    run: Path, asked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", str(run), "--input", str(asked), "--output", str(tmp_path / "out.jsonl")]
    assert main([*words, "--max-new-tokens", "8", "--json"]) == 0
    told = capsys.readouterr()
    document = json.loads(told.out)
    assert (document["rows"], document["before"]) == (6, 0)
    assert "batch_size: " in told.err
    assert main([*words, "--max-new-tokens", "8"]) == 0
    assert "6 answers, 0 of them new" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "one of --prompt, --messages and --input is needed"),
        (("--prompt", "hi", "--input", "there"), "--context"),
        (("--input", "rows.jsonl"), "--input and --output go together"),
        (("--input", "a", "--output", "b", "--compare-base"), "--compare-base does not go with --input"),
        (("--prompt", "hi", "--top-p", "2"), "top_p"),
        (("--prompt", "hi", "--tools", "nowhere.json"), "cannot read nowhere.json"),
    ],
)
def test_a_command_that_cannot_be_meant_is_refused_at_once(
    words: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "nowhere", *words]) == 2
    assert told in capsys.readouterr().err


def test_the_base_answers_beside_the_tuned_model(
    run: Path,
    tiny_base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hardware, "has_native_bf16", lambda device: False)  # It computes as the run did, in fp32.
    shutil.copytree(run, tmp_path / "run")
    asked = ["--prompt", "Add 1 and 2", "--max-new-tokens", "6", "--json"]
    assert main(["generate", str(tmp_path / "run"), *asked, "--compare-base"]) == 0
    both = json.loads(capsys.readouterr().out)
    assert main(["generate", str(tiny_base), *asked]) == 0
    base = json.loads(capsys.readouterr().out)
    assert both["prompt_ids"] == base["prompt_ids"]
    assert both["base"]["text"] == base["text"]


def test_a_conversation_with_tools_is_read_from_files(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = [{"role": "user", "content": "Add 1 and 2"}]
    (tmp_path / "turns.json").write_text(json.dumps({"messages": turns}))
    found = []
    for words in (["--messages", str(tmp_path / "turns.json")], ["--prompt", "Add 1 and 2"]):
        assert main(["generate", str(run), *words, "--max-new-tokens", "4", "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1]


def test_chat_takes_its_commands_from_a_pipe(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    said = f"/undo\nAdd 1 and 2\n/tokens\n/save {tmp_path / 'said.jsonl'}\n/save /nowhere/x\n/what\n/new\n/tokens\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(said))
    assert main(["chat", str(run), "--max-new-tokens", "3"]) == 0
    told = capsys.readouterr()
    assert "nothing to take back" in told.out
    assert f"1 row added to {tmp_path / 'said.jsonl'}" in told.out
    assert "tokens of 4,096" in told.out
    assert "unknown: /what" in told.out
    assert "0 tokens of 4,096" in told.out
    assert "/nowhere/x cannot be written" in told.err
    assert lines(tmp_path / "said.jsonl")[0]["messages"][0] == {"role": "user", "content": "Add 1 and 2"}
