"""A stream trains on every row once a pass, goes on exactly where it was, and never holds more than two blocks."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import truetune
from conftest import CHATML, arithmetic_rows, byte_tokenizer, write_jsonl
from heard import FAST, Heard
from truetune.config.load import load_config
from truetune.errors import CheckpointError, ConfigError, DataError
from truetune.pipeline.backends import settle
from truetune.pipeline.prepare import PreparedDataset, prepare_rows
from truetune.pipeline.stream_blocks import BlockMaker
from truetune.runs.checkpoints import checkpoints_in, read_manifest, state_digests, untimed
from truetune.training.trl import Engine

CHAT = byte_tokenizer(chat_template=CHATML)
SIZE = 10
"""Rows of a block; a step has four sequences, so that blocks end within steps and with them."""
SETTINGS: dict[str, Any] = {
    **FAST,
    "streaming": True,
    "shuffle_buffer_size": SIZE,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_length": 64,
    "packing": False,
    "lora_dropout": 0.1,
    "save_strategy": "steps",
    "save_steps": 1,
    "save_total_limit": None,
}
ROWS = arithmetic_rows(34)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRUETUNE_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Thirty-four rows in two files."""
    folder = tmp_path_factory.mktemp("data")
    return [str(write_jsonl(folder / "a.jsonl", ROWS[:19])), str(write_jsonl(folder / "b.jsonl", ROWS[19:]))]


@contextmanager
def computed(folders: list[int] | None = None) -> Iterator[list[str]]:
    """The texts of the rows that are learned meanwhile, in order; and how many blocks the disk has then."""
    seen: list[str] = []
    learn = Engine._learn

    def spied(self: Any, model: Any, batch: Any, *others: Any) -> Any:
        starts = (batch["position_ids"][0] == 0).nonzero()[:, 0].tolist()
        ids = batch["input_ids"][0].tolist()
        seen.extend(CHAT.decode(ids[start:end]) for start, end in zip(starts, [*starts[1:], len(ids)], strict=True))
        if folders is not None:
            folders.append(len(block_folders()))
        return learn(self, model, batch, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "_learn", spied)
        yield seen


def block_folders() -> list[Path]:
    from truetune.model.source import cache_directory

    return list((cache_directory() / "streams").glob("*/*"))


def train(base: Path, files: Any, folder: Path, **settings: Any) -> truetune.Run:
    named = {**SETTINGS, "data.path": files, **settings}
    return truetune.train(model=str(base), output_dir=folder, **named)


@pytest.fixture(scope="module")
def whole(
    tiny_base: Path, files: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[truetune.Run, list[str]]:
    """Twenty steps of four rows: more than two passes; and the rows as they were learned."""
    with computed() as seen:
        run = train(tiny_base, files, tmp_path_factory.mktemp("runs") / "whole", max_steps=20)
    return run, seen


def wanted() -> Counter[str]:
    rendered = (
        f"<|im_start|>user\n{row['instruction']}<|im_end|>\n<|im_start|>assistant\n{row['output']}<|im_end|>\n"
        for row in ROWS
    )
    return Counter(rendered)


# --- which rows, in which order ------------------------------------------------------------------------------


def test_every_row_is_learned_once_a_pass_whatever_the_steps(whole: tuple[truetune.Run, list[str]]) -> None:
    _, seen = whole
    assert len(seen) == 80
    assert Counter(seen[:34]) == Counter(seen[34:68]) == wanted()
    assert not Counter(seen[68:]) - wanted()


def test_rows_are_shuffled_within_their_blocks_otherwise_in_each_pass(whole: tuple[truetune.Run, list[str]]) -> None:
    _, seen = whole
    in_order = list(wanted())
    for start in range(0, 34, SIZE):
        for epoch in (seen[:34], seen[34:68]):
            block, own = epoch[start : start + SIZE], in_order[start : start + SIZE]
            assert sorted(block) == sorted(own)
            assert len(own) < 5 or block != own
    assert seen[:SIZE] != seen[34 : 34 + SIZE]


def test_epochs_are_told_by_how_far_the_files_were_read(whole: tuple[truetune.Run, list[str]]) -> None:
    run, _ = whole
    epochs = [line["epoch"] for line in run.metrics if "loss" in line]
    assert epochs == sorted(epochs)
    assert epochs[-1] == pytest.approx(80 / 34, abs=0.15)
    assert epochs[7] == pytest.approx(32 / 34, abs=0.1)


def test_a_stream_of_one_block_learns_the_packs_of_an_ordinary_run(
    tiny_base: Path, files: list[str], tmp_path: Path
) -> None:
    """In another order, which hangs on the block."""
    settings = {"packing": True, "max_length": 128, "save_strategy": "no", "gradient_accumulation_steps": 1}
    with computed() as streamed:
        run = train(tiny_base, files, tmp_path / "streamed", shuffle_buffer_size=1_000, max_steps=9, **settings)
    ordinary = {"streaming": False, "num_train_epochs": 1, "test_size": 0}
    with computed() as learned:
        other = train(tiny_base, files, tmp_path / "ordinary", **{**settings, **ordinary})
    assert Counter(streamed[:34]) == Counter(learned) == wanted()
    assert run.config.data.packing is other.config.data.packing is True
    record, before = (json.loads((each.directory / "run.json").read_text()) for each in (run, other))
    assert record["data"]["rows_kept"] == before["data"]["rows_kept"] == 34


def test_blocks_are_packed_each_for_itself(tiny_base: Path, files: list[str], tmp_path: Path) -> None:
    with computed() as seen:
        train(tiny_base, files, tmp_path / "run", packing=True, max_length=128, max_steps=10, save_strategy="no")
    in_order = list(wanted())
    assert Counter(seen[:SIZE]) == Counter(in_order[:SIZE])
    assert Counter(seen[:34]) == wanted()


# --- going on ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 5, 9])
def test_a_run_goes_on_from_any_step_to_the_same_bits(
    step: int, whole: tuple[truetune.Run, list[str]], tmp_path: Path
) -> None:
    """Within a block, at its edge, in the second pass."""
    run, seen = whole
    copy = killed_behind(run, step, tmp_path)
    with computed() as learned:
        resumed = truetune.train(copy / "config.yaml", output_dir=copy, resume="newest")
    assert learned == seen[4 * step :]
    last, before = (checkpoints_in(each / "checkpoints")[0] for each in (copy, run.directory))
    assert state_digests(last) == state_digests(before)
    assert [untimed(line) for line in resumed.metrics] == [untimed(line) for line in run.metrics]
    report, other = (json.loads((each / "data-report.json").read_text()) for each in (copy, run.directory))
    assert report == other


def killed_behind(run: truetune.Run, step: int, folder: Path) -> Path:
    """The run as it was left behind that step."""
    copy = folder / "killed"
    shutil.copytree(run.directory, copy)
    shutil.rmtree(copy / "adapter")
    for checkpoint in checkpoints_in(copy / "checkpoints"):
        if int(checkpoint.name.partition("-")[2]) > step:
            shutil.rmtree(checkpoint)
    record = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps({**record, "status": "running"}))
    return copy


def test_blocks_that_are_behind_are_not_read_again(
    whole: tuple[truetune.Run, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = []
    from truetune.pipeline import stream_blocks

    class Watched(stream_blocks.BlockReader):
        def __init__(self, files: Any, *, size: int, start: Any) -> None:
            starts.append((start.number, start.place.file, start.place.row))
            super().__init__(files, size=size, start=start)

    monkeypatch.setattr(stream_blocks, "BlockReader", Watched)
    copy = killed_behind(whole[0], 6, tmp_path)
    truetune.train(copy / "config.yaml", output_dir=copy, resume="newest", max_steps=7)
    assert starts == [(2, 1, 1)]


def test_a_longer_run_goes_on_behind_the_last_step(whole: tuple[truetune.Run, list[str]], tmp_path: Path) -> None:
    run, seen = whole
    copy = tmp_path / "longer"
    shutil.copytree(run.directory, copy)
    with computed() as learned:
        truetune.train(copy / "config.yaml", output_dir=copy, resume="newest", max_steps=26)
    assert Counter((seen + learned)[68:102]) == wanted()


@pytest.mark.parametrize(
    "change", [{"shuffle_buffer_size": 9}, {"streaming": False, "num_train_epochs": 3.0}, {"data": "other rows"}]
)
def test_a_stream_of_other_rows_or_blocks_is_another_run(
    change: dict[str, Any], whole: tuple[truetune.Run, list[str]], tmp_path: Path
) -> None:
    copy = killed_behind(whole[0], 3, tmp_path)
    if "data" in change:
        change = {"data": str(write_jsonl(tmp_path / "a.jsonl", arithmetic_rows(30)))}
    with pytest.raises(CheckpointError, match=r"cannot be resumed, it would be another run: .*data"):
        truetune.train(copy / "config.yaml", output_dir=copy, resume="newest", **change)


def test_the_position_stands_in_every_checkpoint(whole: tuple[truetune.Run, list[str]]) -> None:
    for checkpoint in checkpoints_in(whole[0].directory / "checkpoints"):
        state = json.loads((checkpoint / "trainer_state.json").read_text())
        kept = state["stateful_callbacks"]["StreamPosition"]["attributes"]
        done = 4 * state["global_step"]
        assert 0 <= done - kept["first"] < SIZE
        assert read_manifest(checkpoint)["identity"]["data.streaming"] is True


# --- what it takes -------------------------------------------------------------------------------------------


def test_two_blocks_at_most_are_on_the_disk_and_none_afterwards(
    tiny_base: Path, files: list[str], tmp_path: Path
) -> None:
    folders: list[int] = []
    with computed(folders):
        train(tiny_base, files, tmp_path / "run", shuffle_buffer_size=3, max_steps=6, save_strategy="no")
    assert max(folders) == 2
    assert not block_folders()


def test_the_first_block_alone_is_prepared_before_the_training(files: list[str]) -> None:
    prepared = head(files)
    assert (len(prepared.train), len(prepared.validation)) == (SIZE, 0)
    assert prepared.head is not None
    assert prepared.head.share == pytest.approx(SIZE / 34, abs=0.02)
    assert prepared.of_all(SIZE) == pytest.approx(34, abs=2)
    assert prepared.report.rows_read == SIZE


def head(files: Any, **settings: Any) -> PreparedDataset:
    named = {"model.name_or_path": "none", "data.path": files, "data.streaming": True, "training.max_steps": 9}
    config = load_config(None, settings={**named, "data.shuffle_buffer_size": SIZE, **settings}).config
    return prepare_rows(config, tokenizer=CHAT)


def test_files_written_anew_are_prepared_anew(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "a.jsonl", ROWS)
    first = head(str(data))
    assert head(str(data)).folder == first.folder
    write_jsonl(data, [*ROWS[:5], *ROWS[6:]])
    assert head(str(data)).fingerprint != first.fingerprint


def test_validation_rows_of_a_file_of_their_own_are_there_whole(
    tiny_base: Path, files: list[str], tmp_path: Path
) -> None:
    validation = write_jsonl(tmp_path / "validation.jsonl", arithmetic_rows(60)[40:])
    run = train(
        tiny_base,
        files,
        tmp_path / "run",
        validation_path=str(validation),
        max_steps=9,
        eval_steps=4,
        save_strategy="no",
        generate=2,
        generate_max_new_tokens=3,
    )
    evaluated = [line for line in run.metrics if "eval_loss" in line]
    assert [line["step"] for line in evaluated] == [0, 4, 8, 9]
    report = json.loads((run.directory / "data-report.json").read_text())
    assert report["stats"]["validation_rows"] == 20
    assert report["stats"]["train_rows"] == 34
    measured = truetune.evaluate(run, generate=False, compare_base=False)
    assert measured.rows == 20


def test_the_plan_takes_all_rows_to_be_like_the_first_block(tiny_base: Path, files: list[str]) -> None:
    heard = Heard()
    forecast = truetune.plan(model=str(tiny_base), max_steps=18, listener=heard, **{**SETTINGS, "data.path": files})
    assert forecast.plan.steps.total_steps == 18
    assert forecast.plan.steps.steps_per_epoch == pytest.approx(34 / 4, abs=1)
    assert "first block" in heard.text()


# --- what falls out ------------------------------------------------------------------------------------------


def test_a_row_that_cannot_be_used_is_told_with_its_line_and_counted_once(tiny_base: Path, tmp_path: Path) -> None:
    rows = [*ROWS[:25], {"instruction": "x", "output": ""}, *ROWS[25:]]
    data, heard = write_jsonl(tmp_path / "a.jsonl", rows), Heard()
    run = train(tiny_base, str(data), tmp_path / "run", max_steps=20, save_strategy="no", listener=heard)
    assert "warning: block 3 of the stream: 1 of 10 rows left out: empty-answer" in heard.text()
    assert f"{data}, line 26" in heard.text()
    report = json.loads((run.directory / "data-report.json").read_text())
    assert (report["rows_read"], report["rows_kept"], report["rejected"]) == (35, 34, {"empty-answer": 1})
    assert json.loads((run.directory / "run.json").read_text())["data"]["rows_read"] == 35


def test_a_block_without_a_usable_row_is_passed_over(tiny_base: Path, tmp_path: Path) -> None:
    rows = [*ROWS[:SIZE], *[{"foo": number} for number in range(2 * SIZE)], *ROWS[SIZE:]]
    with computed() as seen:
        train(
            tiny_base,
            str(write_jsonl(tmp_path / "a.jsonl", rows)),
            tmp_path / "run",
            max_steps=17,
            save_strategy="no",
        )
    assert Counter(seen[:34]) == Counter(seen[34:]) == wanted()


def test_a_first_block_without_a_usable_row_is_refused(tmp_path: Path) -> None:
    rows = [*[{"foo": number} for number in range(SIZE)], *ROWS]
    with pytest.raises(DataError, match=r"no usable|no row|unknown-format|none"):
        head(str(write_jsonl(tmp_path / "a.jsonl", rows)))


def test_a_pass_in_which_no_row_can_be_used_any_more_ends_the_run(tmp_path: Path) -> None:
    """Its files were written anew meanwhile."""
    data = write_jsonl(tmp_path / "a.jsonl", [{"foo": number} for number in range(25)])
    from truetune.data.blocks import BlockReader
    from truetune.data.sources import SourceFile
    from truetune.listener import Unheard
    from truetune.pipeline.prepare import Preparation

    prepared = head(str(write_jsonl(tmp_path / "b.jsonl", ROWS)))
    config = load_config(None, settings={"model.name_or_path": "none", "data.path": str(data)}).config
    preparation = Preparation(config, prepared.template, 64, None, Unheard())
    reader = BlockReader([SourceFile(data, "a.jsonl")], size=SIZE)
    with pytest.raises(DataError, match="no row of a whole pass can be used"):
        BlockMaker(preparation, reader, tmp_path / "blocks", processes=1).make(0)


def test_a_line_that_is_no_json_ends_the_run_with_its_last_step_saved(tiny_base: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "a.jsonl", ROWS)
    lines = data.read_text().splitlines()
    data.write_text("\n".join([*lines[:30], "{", *lines[30:]]))
    with pytest.raises(DataError, match=r"a\.jsonl, line 31"):
        train(tiny_base, str(data), tmp_path / "run", max_steps=20, save_strategy="no")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"
    newest = checkpoints_in(tmp_path / "run" / "checkpoints")[0]
    assert int(newest.name.partition("-")[2]) >= 5
    assert not block_folders()


def test_workers_of_any_number_prepare_the_same_blocks(files: list[str], tmp_path: Path) -> None:
    from truetune.data.blocks import BlockReader
    from truetune.listener import Unheard
    from truetune.pipeline.prepare import Preparation

    prepared = head(files)
    assert prepared.head is not None
    config = load_config(None, settings={"model.name_or_path": "none", "data.path": files}).config
    preparation = Preparation(config, prepared.template, 64, None, Unheard())
    digests = set()
    for processes in (1, 2):
        block = BlockReader(prepared.head.files, size=1_000).read()
        folder = tmp_path / str(processes)
        folder.mkdir()
        account, digest = preparation.write_block(folder, block, processes=processes)
        digests.add((digest, account.rows_kept))
    assert len(digests) == 1


def test_what_comes_at_an_epoch_s_end_by_default_comes_every_so_many_steps() -> None:
    named = {"model.name_or_path": "none", "data.path": "a.jsonl", "streaming": True, "max_steps": 5}
    heard = Heard()
    config = settle(load_config(None, settings=named).config, backend="trl", device="cpu", listener=heard)
    assert (config.evaluation.eval_strategy, config.checkpoints.save_strategy) == ("steps", "steps")
    assert "evaluation.eval_strategy: steps" in heard.text()
    ordinary = load_config(None, settings={**named, "streaming": False}).config
    assert settle(ordinary, backend="trl", device="cpu", listener=heard) == ordinary


# --- what a stream cannot have -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_steps": -1}, "data.streaming needs training.max_steps"),
        ({"test_size": 0.1}, "name validation rows in data.validation_path"),
        ({"group_by": "user"}, "data.group_by looks at all rows"),
        ({"strict": True}, "data.strict looks at all rows"),
        ({"data.path": [{"path": "a.jsonl", "weight": 2}]}, "leave weight out of data.path"),
        ({"generate": 2}, "evaluation.generate needs validation rows"),
        ({"eval_strategy": "epoch"}, "evaluation.eval_strategy is epoch"),
        ({"save_strategy": "epoch"}, "checkpoints.save_strategy is epoch"),
    ],
)
def test_what_all_rows_or_the_length_of_a_pass_would_be_needed_for_is_refused(
    settings: dict[str, Any], said: str
) -> None:
    named = {"model.name_or_path": "none", "data.path": "a.jsonl", "streaming": True, "max_steps": 5}
    assert load_config(None, settings=named).config.data.streaming
    with pytest.raises(ConfigError, match=said):
        load_config(None, settings={**named, **settings})


def test_rows_from_python_are_no_stream(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.streaming reads files"):
        truetune.train(model=str(tiny_base), data=ROWS, output_dir=tmp_path / "run", max_steps=2, **SETTINGS)
