"""lm-evaluation-harness (EleutherAI): its tasks, asked of a loaded model, and what the model was really sent.

Gao et al., "A framework for few-shot language model evaluation", Zenodo 10.5281/zenodo.10256836.
"""

import difflib
import importlib.util
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truetune.data.examples import Message
from truetune.errors import BackendError, ConfigError, DataError, TruetuneError, first_line
from truetune.inference.generate import TrainedModel
from truetune.inference.prompts import Prompts
from truetune.model.tokenizer import with_chat_template

if TYPE_CHECKING:
    from truetune.inference.harness_model import Tell, WatchedModel

INSTALL = "run: pip install 'truetune[lm-eval]'"
_SEED = 1234
"""The harness's own, of the examples that it shows and of what is drawn."""
_RESAMPLES = 1000
"""Of the standard errors that no formula gives. The harness's 100,000 take minutes of all cores."""
_SHOWN = 8
"""Tokens that are shown of a prompt that differs."""


def require_harness() -> None:
    """BackendError with the remedy where it is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise BackendError("--lm-eval needs lm-evaluation-harness", hint=INSTALL)


# --- tasks ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tasks:
    """Tasks and groups of the harness by their names, their data read."""

    tasks: Mapping[str, Any]
    groups: Mapping[str, Any]

    @property
    def figures(self) -> list[str]:
        """What can be measured of them, by the names that thresholds use."""
        found = [figure for name, task in self.tasks.items() for figure in _figures(name, task)]
        for name, group in self.groups.items():
            found += [figure for task in group.get_all_tasks() for figure in _figures(name, task)]
        return list(dict.fromkeys(found))


def figure_name(task: str, metric: str, filter_name: str) -> str:
    """As thresholds name it: arc_easy.acc, or gsm8k.exact_match,strict-match where answers are filtered."""
    return f"{task}.{metric}" if filter_name == "none" else f"{task}.{metric},{filter_name}"


def load_tasks(names: Sequence[str], *, include: Path | None = None, num_fewshot: int | None = None) -> Tasks:
    """The tasks, groups or tags of these names, with their data. `include` is a folder of tasks of one's own (YAML).

    `num_fewshot` is how many examples are shown, unless a task forbids any; by default as many as each task asks for.
    Raises BackendError without the harness, ConfigError for a name or a task that cannot be used, DataError for data
    that cannot be had.
    """
    require_harness()
    if include is not None and not include.is_dir():
        raise ConfigError(f"--include {include}: there is no such folder")
    with _quiet():
        manager = _manager(names, include)
        for name in names:
            _require_known(name, manager.all_tasks)
        found = [_loaded(manager, name) for name in names]
    tasks = {name: task for each in found for name, task in each["tasks"].items()}
    for name, task in tasks.items():
        _require_plain(name, task)
        own = task.get_config("num_fewshot")
        task.set_config("num_fewshot", 0 if own == 0 else num_fewshot if num_fewshot is not None else own or 0)
    return Tasks(tasks, {name: group for each in found for name, group in each.get("groups", {}).items()})


def _manager(names: Sequence[str], include: Path | None) -> Any:
    from lm_eval.tasks import TaskManager

    if include is None:
        return TaskManager()
    # Reading the 14,683 of the harness (0.4.13) took 17 s on a slow core: tasks of one's own need not wait for them.
    own = TaskManager(include_path=str(include), include_defaults=False)
    return own if all(_is_all_own(own, name) for name in names) else TaskManager(include_path=str(include))


def _is_all_own(own: Any, name: str) -> bool:
    """Is it a task of one's own, or a group of nothing else? A tag may stand at tasks of the harness as well."""
    if name not in own.all_groups:
        return name in own.all_subtasks
    members = own.task_index[name].cfg.get("task")
    return isinstance(members, list) and all(isinstance(each, str) and _is_all_own(own, each) for each in members)


def _require_known(name: str, known: Sequence[str]) -> None:
    if name in known:
        return
    close = difflib.get_close_matches(name, known, n=3)
    near = f"did you mean {', '.join(close)}? " if close else ""
    raise ConfigError(
        f"--lm-eval: there is no task {name}",
        hint=f"{near}lm-eval ls tasks lists them; --include FOLDER adds your own",
    )


def _loaded(manager: Any, name: str) -> Mapping[str, Any]:
    try:
        found: Mapping[str, Any] = manager.load([name])
    except ImportError as error:
        raise BackendError(f"the task {name} needs a package: {first_line(error)}", hint="install it") from error
    except OSError as error:  # Also what datasets and the hub raise: a ConnectionError, a FileNotFoundError.
        raise DataError(
            f"the data of the task {name} cannot be had: {first_line(error)}",
            hint="most tasks read theirs from the Hugging Face hub: check the network and HF_HUB_OFFLINE",
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError, IndexError) as error:
        raise ConfigError(f"the task {name} cannot be used: {first_line(error)}", hint="see its YAML file") from error
    if not found["tasks"]:
        raise ConfigError(f"the group {name} has no tasks", hint="name them under `task:` in its YAML file")
    return found


def _require_plain(name: str, task: Any) -> None:
    """ConfigError for a task that needs what is not given here."""
    if getattr(task, "UNSAFE_CODE", False):
        raise ConfigError(f"the task {name} runs code that the model writes", hint="run it with lm-eval in a sandbox")
    if getattr(task, "MULTIMODAL", False):
        raise ConfigError(f"the task {name} shows images or sounds, and this model reads text")


def _figures(name: str, task: Any) -> list[str]:
    filters = [each["name"] for each in task.get_config("filter_list") or ()] or ["none"]
    return [figure_name(name, metric, each) for metric in task.aggregation() for each in filters]


@contextmanager
def _quiet() -> Iterator[None]:
    """The harness's log, of what it was told to do and of its own defaults, is not the user's."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


# --- asking -----------------------------------------------------------------------------------------------


def asks_as_chat(trained: TrainedModel) -> bool:
    """True of a model that was trained on turns or instructions, which a template puts into its prompts."""
    has_template = trained.template.servers_chat_template is not None
    return has_template and trained.prompt_format.row_format in ("chat", "instruction")


def watched(trained: TrainedModel, *, batch_size: int, tell: "Tell") -> "WatchedModel":
    """The loaded model as the harness asks it: with the chat template of its training, and its stops."""
    from truetune.inference.harness_model import WatchedModel

    tokenizer = with_chat_template(trained.tokenizer, trained.template.servers_chat_template)
    with _quiet():
        return WatchedModel(
            trained.model,
            tokenizer,
            stop_token_ids=trained.template.stop_token_ids,
            batch_size=batch_size,
            tell=tell,
        )


def ask(model: "WatchedModel", tasks: Tasks, prompts: Prompts, *, limit: int | None, as_chat: bool) -> dict[str, Any]:
    """What the harness makes of the model, as its `evaluate` returns it: results, samples, counts.

    Every call shows the same examples and draws the same, so that two models can be compared row by row. Examples are
    earlier turns where the model was trained on such, and a part of the question where it was not.
    """
    import torch
    from lm_eval.evaluator import evaluate

    for task in tasks.tasks.values():
        task.set_fewshot_seed(seed=_SEED)
    with _quiet(), torch.random.fork_rng():
        torch.manual_seed(_SEED)
        found: dict[str, Any] = evaluate(
            lm=model,
            task_dict={"tasks": dict(tasks.tasks), "groups": dict(tasks.groups)},
            limit=limit,
            bootstrap_iters=_RESAMPLES,
            apply_chat_template=as_chat,
            fewshot_as_multiturn=as_chat and prompts.keeps_turns,
        )
    return found


# --- what was sent ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SentPrompts:
    """Of the harness's prompts, how many were compared with those that training makes, and how many are the same.

    `left_out` have no counterpart: the harness begins the answer itself, or training refuses the turns.
    """

    compared: int
    equal: int
    left_out: int
    first_difference: str | None


def compare_prompts(model: "WatchedModel", prompts: Prompts, *, as_chat: bool) -> SentPrompts:
    """Holds the ids that the model was sent against the training's own rendering of the same turns."""
    found = [(sent, _own_ids(model, text, prompts, as_chat=as_chat)) for text, sent in model.sent.items()]
    pairs = [(sent, own) for sent, own in found if own is not None]
    told = [_difference(sent.ids, own, prompts.tokenizer, is_whole=not sent.is_scored) for sent, own in pairs]
    return SentPrompts(
        compared=len(pairs),
        equal=told.count(None),
        left_out=len(found) - len(pairs),
        first_difference=next((each for each in told if each), None),
    )


def _own_ids(model: "WatchedModel", text: str, prompts: Prompts, *, as_chat: bool) -> list[int] | None:
    try:
        if not as_chat:
            return prompts.ids(prompts.of_words(text))
        turns = [Message(turn["role"], turn["content"]) for turn in model.conversations[text]]
        return prompts.ids(prompts.of_turns(turns)) if turns[-1].role != "assistant" else None
    except TruetuneError:
        return None


def _difference(sent: Sequence[int], own: Sequence[int], tokenizer: Any, *, is_whole: bool) -> str | None:
    """In words, where the ids part; None for the same prompt, behind which a scored answer may stand."""
    begun = sent if is_whole else sent[: len(own)]
    if list(begun) == list(own):
        return None
    place = next((n for n, (one, other) in enumerate(zip(begun, own, strict=False)) if one != other), None)
    place = min(len(begun), len(own)) if place is None else place
    theirs, ours = (tokenizer.decode(ids[place : place + _SHOWN]) for ids in (begun, own))
    return f"from token {place + 1} on the harness sends {theirs!r}, and training's prompt has {ours!r}"
