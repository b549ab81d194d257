"""lm-evaluation-harness asks the trained model, by its own template and stops, and what it sent is told as it was."""

import importlib.util
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import truetune
from conftest import CHATML, arithmetic_rows, byte_tokenizer, tiny_model, write_jsonl
from heard import Heard
from truetune.cli import main
from truetune.errors import BackendError, CheckpointError, ConfigError, DataError
from truetune.inference import harness

pytest.importorskip("lm_eval")

KNOWN = [("hi", "yo"), ("bye", "so long"), ("more", "ok!")]
ROWS = [{"instruction": asked, "output": said} for asked, said in KNOWN]
DOCUMENTS = [{"question": asked, "answer": said} for asked, said in KNOWN]
ANSWERS = {
    "output_type": "generate_until",
    "generation_kwargs": {"until": ["</s>"], "max_gen_toks": 24},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
CHOICES = {
    "output_type": "multiple_choice",
    "doc_to_choice": [said for _, said in KNOWN],
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}


def task(folder: Path, name: str, settings: Mapping[str, Any], *, documents: Any = DOCUMENTS) -> Path:
    """A folder with a task of ours in it; YAML takes JSON as it is."""
    folder.mkdir(exist_ok=True)
    data = write_jsonl(folder / f"{name}.jsonl", documents)
    document = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_target": "answer",
        **settings,
    }
    (folder / f"{name}.yaml").write_text(json.dumps(document))
    return folder


def trained(folder: Path, rows: Any = ROWS, *, tokenizer: Any = None, **settings: Any) -> truetune.Run:
    base = folder / "base"
    sizes = {"hidden_size": 64, "intermediate_size": 128}
    tiny_model(**{**sizes, **settings.pop("shape", {})}).save_pretrained(base)
    (tokenizer or byte_tokenizer(chat_template=CHATML)).save_pretrained(base)
    options = {"precision": "fp32", "num_train_epochs": 2, "learning_rate": 1e-2, "save_strategy": "no"}
    return truetune.train(model=str(base), data=rows, output_dir=folder / "run", **{**options, **settings})


@pytest.fixture(scope="module", autouse=True)
def read_once() -> Iterator[None]:
    """The harness's own thousands of tasks are read once for all of these tests, which takes seconds."""
    from lm_eval.tasks import _index

    read, own = _index.load_yaml, Path(_index.__file__).parent
    kept: dict[Path, dict[str, Any]] = {}

    def load(path: Path, **options: Any) -> dict[str, Any]:
        if own not in path.parents:
            return read(path, **options)
        if path not in kept:
            kept[path] = read(path, **options)
        return {**kept[path]}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_index, "load_yaml", load)
        yield


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    task(folder, "said", ANSWERS)
    task(folder, "chosen", CHOICES)
    group = {
        "group": "both",
        "task": ["chosen"],
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
    }
    (folder / "both.yaml").write_text(json.dumps(group))
    return folder


@pytest.fixture(scope="module")
def knowing(tmp_path_factory: pytest.TempPathFactory) -> truetune.Run:
    """An adapter that knows its rows by heart."""
    folder = tmp_path_factory.mktemp("knowing")
    sure = {"initializer_range": 0.2}  # Of weights so large an adapter can make a model that is sure of its answers.
    return trained(folder, num_train_epochs=60, per_device_train_batch_size=3, r=16, shape=sure)


@pytest.fixture(scope="module")
def found(knowing: truetune.Run, tasks: Path) -> truetune.TaskEvaluation:
    return truetune.evaluate_tasks(knowing, ["said", "chosen"], include=tasks)


def copied(run: truetune.Run, folder: Path) -> Path:
    shutil.copytree(run.directory, folder)
    return folder


# --- figures ----------------------------------------------------------------------------------------------


def test_a_model_that_knows_the_answers_scores_beside_its_base_that_does_not(found: truetune.TaskEvaluation) -> None:
    figures = {each.name: each for each in found.figures}
    said, chosen = figures["said.exact_match"], figures["chosen.acc"]
    assert (said.tuned, said.base) == (1.0, 0.0)
    assert said.comparison is not None
    assert (said.comparison.difference, said.comparison.wins, said.comparison.losses) == (1.0, 3, 0)
    assert chosen.tuned == 1.0
    rights = [each.base_scores["acc"] for each in found.samples if each.task == "chosen" and each.base_scores]
    assert chosen.base == pytest.approx(sum(rights) / len(KNOWN))
    assert found.values == {"said.exact_match": 1.0, "chosen.acc": 1.0}
    assert found.tasks["said"].documents == found.tasks["said"].of == 3


def test_a_likelihood_is_the_one_of_a_plain_forward_pass_in_float32(
    knowing: truetune.Run, found: truetune.TaskEvaluation
) -> None:
    model = truetune.load(knowing)
    sample = next(each for each in found.samples if each.task == "chosen")
    for (_, answer), (told, _) in zip(KNOWN, sample.tuned, strict=True):
        prompt = model.prompt_ids(model.as_example("hi"))
        ids = [*prompt, *model.tokenizer(answer)["input_ids"]]
        with torch.no_grad():
            scores = model.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        # The harness counts the line break that the prompt ends with to the answer.
        expected = sum(float(scores[place - 1, ids[place]]) for place in range(len(prompt) - 1, len(ids)))
        assert told == pytest.approx(expected, abs=1e-3)


def test_answers_end_where_the_training_s_do(found: truetune.TaskEvaluation) -> None:
    said = [each for each in found.samples if each.task == "said"]
    assert [(each.document, each.tuned) for each in said] == [(n, [answer]) for n, (_, answer) in enumerate(KNOWN)]
    assert said[0].prompt == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert said[0].scores == {"exact_match": 1.0}


def test_a_group_s_figure_stands_beside_its_tasks(knowing: truetune.Run, tasks: Path) -> None:
    made = truetune.evaluate_tasks(
        knowing, "both", include=tasks, limit=2, compare_base=False, fail_under={"both.acc": 1.1, "chosen.acc": 1.0}
    )
    assert made.values == {"chosen.acc": 1.0, "both.acc": 1.0}
    assert (made.tasks["chosen"].documents, made.tasks["chosen"].of) == (2, 3)
    assert made.missed == ("both.acc is 1, and must be at least 1.1",)
    assert all(each.base is None and each.comparison is None for each in made.figures)


def test_requests_in_a_batch_score_as_they_do_alone(
    knowing: truetune.Run, tasks: Path, found: truetune.TaskEvaluation
) -> None:
    together = truetune.evaluate_tasks(knowing, ["said", "chosen"], include=tasks, batch_size=3, compare_base=False)
    assert together.values == found.values
    for one, other in zip(together.samples, found.samples, strict=True):
        if one.task == "chosen":
            assert [each[0] for each in one.tuned] == pytest.approx([each[0] for each in other.tuned], abs=1e-3)


# --- proof ------------------------------------------------------------------------------------------------


def test_the_proof_holds_the_model_its_adapter_and_its_prompts(found: truetune.TaskEvaluation) -> None:
    proof = found.proof
    assert proof.answers is not None
    assert proof.answers.is_same
    assert proof.answers.prompts >= 3
    assert proof.max_abs_logit_difference is not None
    assert proof.max_abs_logit_difference > 0.1
    assert (proof.prompts.compared, proof.prompts.equal, proof.prompts.left_out) == (3, 3, 0)
    assert list(proof.warnings()) == []


def test_the_adapter_is_proved_to_be_on_where_no_base_is_compared(
    knowing: truetune.Run, tasks: Path, found: truetune.TaskEvaluation
) -> None:
    alone = truetune.evaluate_tasks(knowing, "said", include=tasks, limit=1, compare_base=False)
    assert alone.proof.max_abs_logit_difference is not None
    assert alone.proof.max_abs_logit_difference > 0.1


def test_an_adapter_that_changes_nothing_is_told(tmp_path: Path, tasks: Path) -> None:
    idle, heard = trained(tmp_path, max_steps=1, learning_rate=1e-30), Heard()
    made = truetune.evaluate_tasks(idle, "said", include=tasks, listener=heard)
    assert made.proof.max_abs_logit_difference == 0.0
    assert "the training has changed nothing" in heard.text()


def test_a_model_that_does_not_give_its_recorded_answers_is_refused(
    knowing: truetune.Run, tasks: Path, tmp_path: Path
) -> None:
    folder = copied(knowing, tmp_path / "changed")
    weights = folder / "adapter" / "adapter_model.safetensors"
    save_file({name: -value if "lora_A" in name else value for name, value in load_file(weights).items()}, weights)
    with pytest.raises(CheckpointError, match="does not answer as it did when it was trained"):
        truetune.evaluate_tasks(folder, "said", include=tasks)


FORMATS: dict[str, dict[str, Any]] = {
    "instructions in a chat template": {},
    "conversations": {
        "rows": [
            {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}
            for asked, said in KNOWN
        ]
    },
    "a format text": {"template": "alpaca"},
    "completions": {"rows": [{"prompt": asked, "completion": f" {said}"} for asked, said in KNOWN]},
    "bare texts": {"rows": [{"text": f"{asked} {said}"} for asked, said in KNOWN]},
}


@pytest.mark.parametrize("name", FORMATS)
def test_the_harness_s_prompts_are_those_of_the_training(name: str, tmp_path: Path, tasks: Path) -> None:
    made = truetune.evaluate_tasks(
        trained(tmp_path, **FORMATS[name]), ["said", "chosen"], include=tasks, compare_base=False
    )
    prompts = made.proof.prompts
    assert (prompts.compared, prompts.equal, prompts.first_difference) == (3, 3, None)
    assert made.record["as_chat"] == (name not in ("completions", "bare texts"))


def test_examples_are_earlier_turns_and_the_same_for_both_models(knowing: truetune.Run, tmp_path: Path) -> None:
    folder = task(tmp_path / "shown", "shown", {**ANSWERS, "fewshot_split": "test"})
    made = truetune.evaluate_tasks(knowing, "shown", include=folder, num_fewshot=1)
    assert made.tasks["shown"].num_fewshot == 1
    assert all(each.prompt.count("<|im_start|>") == 4 for each in made.samples)
    assert made.proof.prompts.equal == made.proof.prompts.compared == 3
    again = truetune.evaluate_tasks(knowing, "shown", include=folder, num_fewshot=1, compare_base=False)
    assert [each.prompt for each in again.samples] == [each.prompt for each in made.samples]


def test_a_second_beginning_of_sequence_is_told(tmp_path: Path, tasks: Path) -> None:
    """The tokenizer puts a BOS before every text, and the template, which training follows to the letter, none."""
    run, heard = trained(tmp_path, tokenizer=byte_tokenizer(chat_template=CHATML, adds_bos=True)), Heard()
    proof = truetune.evaluate_tasks(run, "said", include=tasks, compare_base=False, listener=heard).proof
    assert (proof.prompts.compared, proof.prompts.equal) == (3, 0)
    assert proof.prompts.first_difference is not None
    assert proof.prompts.first_difference.startswith("from token 1 on the harness sends '<s>")
    assert "3 of 3 prompts of the harness are not what training makes of them" in heard.text()


def test_an_answer_that_the_harness_begins_has_no_counterpart(knowing: truetune.Run, tmp_path: Path) -> None:
    folder = task(tmp_path / "begun", "begun", {**ANSWERS, "gen_prefix": "Well,"})
    prompts = truetune.evaluate_tasks(knowing, "begun", include=folder, compare_base=False).proof.prompts
    assert (prompts.compared, prompts.left_out) == (0, 3)


def test_requests_that_the_harness_cuts_are_counted(tmp_path: Path) -> None:
    long = [*DOCUMENTS, {"question": "x" * 200, "answer": "yo"}]
    folder = task(tmp_path / "long", "long", ANSWERS, documents=long)
    task(folder, "longer", CHOICES, documents=long)
    run, heard = trained(tmp_path, shape={"max_position_embeddings": 128}, max_length=128), Heard()
    proof = truetune.evaluate_tasks(run, ["long", "longer"], include=folder, compare_base=False, listener=heard).proof
    assert proof.cut == 1 + len(KNOWN)
    assert "4 requests are longer than the model can read" in heard.text()


# --- what is refused, before weights load -----------------------------------------------------------------


@pytest.fixture(scope="module")
def weightless(knowing: truetune.Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose weights cannot be loaded: whatever is told of it was told before."""
    folder = copied(knowing, tmp_path_factory.mktemp("weightless") / "run")
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"")
    return folder


def test_an_unknown_task_is_told_with_those_of_like_names(weightless: Path, tasks: Path) -> None:
    with pytest.raises(ConfigError, match="there is no task chosn") as refused:
        truetune.evaluate_tasks(weightless, ["said", "chosn"], include=tasks)
    assert "did you mean chosen" in str(refused.value.hint)


def test_the_harness_s_own_tasks_are_read_only_where_they_are_asked_for(tasks: Path, tmp_path: Path) -> None:
    """There are thousands, and reading them takes many seconds."""
    mixed = shutil.copytree(tasks, tmp_path / "mixed")
    for name, members in (("around", ["both", "said"]), ("beyond", ["both", "arc_easy"])):
        (mixed / f"{name}.yaml").write_text(json.dumps({"group": name, "task": members}))
    (mixed / "empty.yaml").write_text(json.dumps({"group": "empty"}))
    for names, are_asked_for in (
        (["around"], False),
        (["both", "said"], False),
        (["empty"], True),
        (["beyond"], True),
    ):
        known = harness._manager(names, mixed).all_tasks
        assert {"both", "said", "around"} <= set(known)
        assert ("hellaswag" in known) is are_asked_for


@pytest.mark.parametrize("members", [{}, {"task": []}])
def test_a_group_of_no_tasks_is_refused(members: dict[str, Any], weightless: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text(json.dumps({"group": "empty", **members}))
    with pytest.raises(ConfigError, match="the group empty has no tasks"):
        truetune.evaluate_tasks(weightless, "empty", include=tmp_path)


def test_a_task_whose_data_lie_on_the_hub_is_told_offline(weightless: Path) -> None:
    with pytest.raises(DataError, match="the data of the task arc_easy cannot be had") as refused:
        truetune.evaluate_tasks(weightless, "arc_easy")
    assert "HF_HUB_OFFLINE" in str(refused.value.hint)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**ANSWERS, "output_type": "answers"}, "the task wrong cannot be used: .*output_type"),
        ({**ANSWERS, "test_split": "tset"}, "the task wrong cannot be used"),
        ({**ANSWERS, "unsafe_code": True}, "the task wrong runs code that the model writes"),
        ({**ANSWERS, "doc_to_image": "question"}, "shows images or sounds"),
    ],
)
def test_a_task_that_cannot_be_asked_is_refused(
    settings: dict[str, Any], message: str, weightless: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        truetune.evaluate_tasks(weightless, "wrong", include=task(tmp_path / "wrong", "wrong", settings))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ()}, "no task is named"),
        ({"limit": 0}, "--limit must be at least 1"),
        ({"num_fewshot": -1}, "--num-fewshot must be at least 0"),
        ({"batch_size": 0}, "--batch-size must be at least 1"),
        ({"include": "nowhere"}, "there is no such folder"),
        ({"fail_under": {"said.acc": 0.5}}, "there is no figure said.acc"),
        ({"fail_over": {"eval_loss": 2.0}}, "there is no figure eval_loss"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    options: dict[str, Any], message: str, weightless: Path, tasks: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        truetune.evaluate_tasks(weightless, **{"tasks": "said", "include": tasks, **options})


def test_without_the_harness_its_install_line_is_told(
    weightless: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "lm_eval" else there(name, *rest)
    )
    with pytest.raises(BackendError, match="needs lm-evaluation-harness") as refused:
        truetune.evaluate_tasks(weightless, "said", include=tasks)
    assert "pip install 'truetune[lm-eval]'" in str(refused.value.hint)


# --- the command ------------------------------------------------------------------------------------------


def test_everything_is_stored_in_the_run_and_nothing_replaced(knowing: truetune.Run, tasks: Path) -> None:
    one, two = (
        truetune.evaluate_tasks(knowing, ["said", "chosen"], include=tasks, limit=1, compare_base=False)
        for _ in range(2)
    )
    assert one.path is not None
    assert one.path.parent == knowing.directory / "evaluations" / "lm-eval"
    assert one.path.name.startswith("said+chosen-")
    assert one.path != two.path
    stored = json.loads(one.path.read_text())
    assert stored == json.loads(json.dumps(one.as_json()))
    assert stored["record"]["versions"]["lm-eval"]
    assert stored["record"]["settings"]["include"] == str(tasks)
    samples = [json.loads(line) for line in one.path.with_suffix(".samples.jsonl").read_text().splitlines()]
    assert [(each["task"], each["document"]) for each in samples] == [("said", 0), ("chosen", 0)]
    assert not list((knowing.directory / "evaluations").glob("*.json"))


def test_the_command_prints_one_document_and_exits_by_its_thresholds(
    knowing: truetune.Run, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["eval", str(knowing.directory), "--lm-eval", "said, chosen", "--include", str(tasks), "--no-base"]
    capsys.readouterr()
    status = main([*command, "--json", "--limit", "1", "--fail-under", "said.exact_match=0.5"])
    printed = json.loads(capsys.readouterr().out)
    assert status == 0
    assert [each["name"] for each in printed["figures"]] == ["said.exact_match", "chosen.acc"]
    assert printed["proof"]["answers"]["prompts"] >= 3
    out = tmp_path / "found.json"
    assert main([*command, "--fail-over", "said.exact_match=0.5", "--output", str(out)]) == 1
    shown = capsys.readouterr()
    assert "said.exact_match is 1, and must be at most 0.5" in shown.err
    assert "3 of 3 prompts are training's, token by token" in shown.out
    assert json.loads(out.read_text())["missed"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lm-eval", "said", "--metrics", "bleu", "--data", "x.jsonl"], "--data, --metrics is for rows"),
        (["--lm-eval", "said", "--loss-only"], "--loss-only is for rows"),
        (["--num-fewshot", "2"], "--num-fewshot is for tasks"),
        (["--include", "here", "--batch-size", "4"], "--include, --batch-size is for tasks"),
    ],
)
def test_options_of_the_other_kind_are_refused(
    words: list[str], message: str, weightless: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(weightless), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_base_is_asked_by_itself(knowing: truetune.Run, tasks: Path, found: truetune.TaskEvaluation) -> None:
    alone = truetune.evaluate_tasks(knowing.config.model.name_or_path, "chosen", include=tasks)
    beside = next(each.base for each in found.figures if each.name == "chosen.acc")
    assert alone.values == {"chosen.acc": beside}
    assert alone.path is None
    assert alone.proof.max_abs_logit_difference is None


def test_after_full_training_the_base_is_loaded_beside(tmp_path: Path, tasks: Path) -> None:
    run = trained(tmp_path, arithmetic_rows(12), method="full")
    made = truetune.evaluate_tasks(run, "chosen", include=tasks)
    base = truetune.evaluate_tasks(run.config.model.name_or_path, "chosen", include=tasks)
    assert {each.name: each.base for each in made.figures} == base.values
    assert made.proof.max_abs_logit_difference is not None
    assert made.proof.max_abs_logit_difference > 0
