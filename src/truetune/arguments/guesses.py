"""What people type who know other tools, and what it is here: for the hint of an error, nothing is done by it."""

import difflib
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

_COMMANDS: Mapping[str, str] = {
    **dict.fromkeys(("finetune", "fine-tune", "fine_tune", "tune", "fit", "run", "start", "sft", "lora"), "train"),
    **dict.fromkeys(("training", "pretrain", "learn"), "train"),
    **dict.fromkeys(("resume", "continue", "restart"), "train --resume"),
    **dict.fromkeys(("validate", "lint", "data", "analyze", "analyse", "stats", "test-data"), "check"),
    **dict.fromkeys(("fix", "clean", "dedupe", "dedup", "repair"), "check DATA --fix OUT"),
    **dict.fromkeys(("show", "view", "preview", "head", "cat", "look", "print"), "inspect"),
    **dict.fromkeys(("preprocess", "tokenize", "process"), "prepare"),
    **dict.fromkeys(("config", "configure", "new", "create", "setup", "template", "quickstart"), "init"),
    **dict.fromkeys(("migrate", "translate"), "import"),
    **dict.fromkeys(("estimate", "memory", "dry-run", "cost"), "plan"),
    **dict.fromkeys(("evaluate", "evaluation", "test", "score", "benchmark", "bench", "metrics"), "eval"),
    **dict.fromkeys(("infer", "inference", "predict", "ask", "prompt", "complete", "answer", "query"), "generate"),
    **dict.fromkeys(("talk", "interactive", "repl", "shell"), "chat"),
    **dict.fromkeys(("fuse", "merge-adapter", "merge_adapter", "merge-lora", "save"), "merge"),
    **dict.fromkeys(("convert", "gguf", "ollama", "quantize", "vllm"), "export"),
    **dict.fromkeys(("push", "upload", "publish"), "export RUN --to hub"),
    **dict.fromkeys(("server", "api", "host", "deploy"), "serve"),
    **dict.fromkeys(("list", "ls", "history", "status", "jobs"), "runs"),
    **dict.fromkeys(("dashboard", "ui", "webui", "gui", "monitor", "watch", "tensorboard"), "report --serve"),
    **dict.fromkeys(("diff",), "compare"),
    **dict.fromkeys(("grid", "search", "hyperparameters", "hpo"), "sweep"),
    **dict.fromkeys(("lr-find", "lr_find", "lrfind", "find_lr"), "find-lr"),
    **dict.fromkeys(("env", "info", "environment", "diagnose", "debug"), "doctor"),
    **dict.fromkeys(("model", "download"), "models"),
    **dict.fromkeys(("rules", "explain"), "check --explain all"),
    "help": "--help",
    "version": "--version",
}

_OPTIONS: Mapping[str, Sequence[str]] = {
    "--data": (
        *("file", "dataset", "datasets", "data-path", "data-file", "dataset-name", "dataset-path", "train-file"),
        *("train-data", "training-data", "training-file", "train", "path", "csv", "jsonl", "d", "input", "rows"),
    ),
    "--model": (
        *("model-name", "model-name-or-path", "model-path", "model-id", "base-model", "base", "pretrained-model"),
        *("m", "checkpoint"),
    ),
    "--output-dir": ("output", "out", "save-dir", "output-path", "o", "run", "run-dir", "name", "save"),
    "--output": ("out", "out-dir", "output-dir", "save", "dir", "file"),
    "--resume": ("resume-from-checkpoint", "resume-from", "continue", "restart", "r"),
    "--overwrite": ("force", "f", "overwrite-output-dir", "yes", "y", "replace"),
    "--num-processes": ("gpus", "num-gpus", "nproc", "nproc-per-node", "n-gpus", "ngpus"),
    "--dry-run": ("dry", "check", "test", "n"),
    "--prompt": ("question", "query", "text", "input", "p", "message", "ask", "instruction"),
    "--max-new-tokens": ("max-tokens", "max-length", "length", "num-tokens", "n-predict"),
    "--rows": ("n", "num-rows", "head", "samples", "num-samples", "limit", "count"),
    "--quantize": ("quantization", "quant", "type", "outtype", "q", "quantization-method"),
    "--to": ("format", "target", "type"),
    "--fix": ("repair", "clean"),
    "--html": ("report", "page", "html-report"),
}
"""What other tools call our options, by option; of one name for several the first that the command has is meant."""


def unknown_command(word: str, known: Collection[str]) -> str:
    """The hint for a first word that is no command: what is meant, or where commands are listed."""
    if meant := _COMMANDS.get(word.lower()):
        return f"did you mean truetune {meant}?"
    if is_file := _of_file(word):
        return is_file
    close = difflib.get_close_matches(word, [*known, *_COMMANDS], n=1, cutoff=0.7)
    if close:
        return f"did you mean truetune {_COMMANDS.get(close[0], close[0])}?"
    return "truetune --help lists the commands"


def _of_file(word: str) -> str | None:
    """What is done with a file that was given without a command."""
    path, name = Path(word).expanduser(), shlex.quote(word)
    if is_config(word):
        return f"to train as it says: truetune train {name}"
    if (path / "run.json").is_file():
        return f"that is a run: truetune chat {name} asks it, truetune report {name} shows how it went"
    if path.exists() or is_data(word):
        return f"truetune check {name} looks at the data, truetune train --model M --data {name} trains on it"
    return None


def is_config(name: str) -> bool:
    """True of the name of a config."""
    return name.endswith((".yaml", ".yml"))


def is_data(name: str) -> bool:
    """True of the name of a file of rows; a .json file is one where it holds a list, else it may be a config."""
    from truetune.data.streams import KINDS, suffix_of

    if suffix_of(name) != ".json":
        return suffix_of(name) in KINDS
    try:
        with Path(name).expanduser().open(encoding="utf-8-sig") as text:
            return text.read(1_000).lstrip().startswith("[")
    except (OSError, UnicodeDecodeError):
        return False


def unknown_options(
    words: Sequence[str], unknown: Sequence[str], *, command: str, known: Sequence[str], takes_settings: bool
) -> str | None:
    """The hint for options (and words) that the command does not take; None where nothing is like them.

    `words` is the whole command line, in which the values of the options stand.
    """
    named = [option for option in unknown if option.startswith("-")]
    settings = {option: text for option in named if (text := _setting(words, option))} if takes_settings else {}
    if takes_settings and (reason := next(filter(None, map(_refusal, named)), None)):
        return reason
    if not named:
        return _of_words(unknown, known)
    hints = [
        _of_option(words, option, command=command, known=known, takes_settings=takes_settings)
        for option in named
        if option not in settings
    ]
    if settings:
        hints.append(f"settings are written key=value: {' '.join(settings.values())}")
    return "; ".join(dict.fromkeys(filter(None, hints))).replace("?; ", "? ") or None


def _of_option(
    words: Sequence[str], option: str, *, command: str, known: Sequence[str], takes_settings: bool
) -> str | None:
    name = _spelled(option)
    if option in known:
        return f"options stand behind the command: truetune {command} {option}"
    if takes_settings and name in ("config", "c", "cfg", "config-file"):
        return f"a config is given without an option: truetune {command} {_value(words, option) or 'run.yaml'}"
    if name in ("run", "model", "run-dir", "adapter") and "--model" not in known:
        run = _value(words, option) or "RUN"
        return f"the run's directory is given without an option: truetune {command} {run}"
    meant = _option(name, known)
    return f"did you mean {meant}?" if meant else None


def _of_words(words: Sequence[str], known: Sequence[str]) -> str | None:
    """The option that words without one are most likely for."""
    text = shlex.quote(" ".join(words))
    if "--prompt" in known:
        return f"a question is given with --prompt {text}"
    if "--data" in known:
        return f"rows are given with --data {text}"
    return f"where to write is given with -o {text}" if "--output" in known else None


def _option(name: str, known: Sequence[str]) -> str | None:
    for option, others in _OPTIONS.items():
        if option in known and name in others:
            return option
    return next(iter(difflib.get_close_matches(f"--{name}", known, n=1, cutoff=0.7)), None)


def _spelled(option: str) -> str:
    """`lr-scheduler` of `--lr_scheduler=linear`."""
    return option.partition("=")[0].lstrip("-").replace("_", "-").lower()


def _value(words: Sequence[str], option: str) -> str | None:
    """What stands behind an option, or in it."""
    _, sign, value = option.partition("=")
    if sign:
        return value
    behind = words[words.index(option) + 1 :][:1] if option in words else []
    return next((word for word in behind if not word.startswith("-") and "=" not in word), None)


def _setting(words: Sequence[str], option: str) -> str | None:
    """The setting that an option of this name is, as it is written here."""
    from truetune.config.names import ALIASES
    from truetune.config.schema import setting_names

    leaf = _spelled(option).replace("-", "_").rpartition(".")[2]
    value = _value(words, option) or "true"
    ours = next((name for name in setting_names() if name.rpartition(".")[2] == leaf), _SETTINGS.get(leaf))
    alias = ALIASES.get(leaf)
    target = ours or (alias.target if alias else None)
    if target is None or target in _AS_OPTIONS:
        return None
    # Of another tool's name with values of its own, both are written as they are there.
    is_ours = ours or (alias and alias.translate(value) is value)
    return f"{_shortest(target) if is_ours else leaf}={shlex.quote(value)}"


_SETTINGS = {
    **dict.fromkeys(("batch_size", "bs", "train_batch_size"), "training.per_device_train_batch_size"),
    **dict.fromkeys(("steps", "num_steps", "iters", "max_iters"), "training.max_steps"),
}
"""Names that mean different things by tool: as an option of a command, most likely this."""

_AS_OPTIONS = ("data.path", "model.name_or_path", "output_dir", "training.num_processes")


def _refusal(option: str) -> str | None:
    """Why a setting of other tools is none here, where it is one of those."""
    from truetune.config.names import REFUSED

    name = _spelled(option).replace("-", "_")
    is_option = any(_spelled(option) in others for others in _OPTIONS.values())
    return f"{name}: {REFUSED[name]}" if name in REFUSED and name not in _SETTINGS and not is_option else None


def _shortest(name: str) -> str:
    """The setting's name, without its section where that is enough."""
    from truetune.config.schema import setting_names

    leaf = name.rpartition(".")[2]
    return leaf if [each.rpartition(".")[2] for each in setting_names()].count(leaf) == 1 else name


def several_files(names: Sequence[str]) -> str:
    """The hint for more files than one: the shell has put them in the place of a pattern, as a rule."""
    if Path(whole := " ".join(names)).exists():
        return f"quote a name that has spaces: {shlex.quote(whole)}"
    paths = [Path(name) for name in names]
    folders, suffixes = {path.parent for path in paths}, {path.suffix for path in paths}
    if len(folders) > 1 or len(suffixes) > 1:
        return "give one file, or the folder that holds them; settings are written key=value"
    folder, suffix = folders.pop(), suffixes.pop()
    return f"give the folder, {folder}, or a quoted pattern: '{folder / f'*{suffix}'}'"


def newest_run(root: Path = Path("runs")) -> str | None:
    """The run that was written to last, where runs are by default."""
    found: Iterable[Path] = root.glob("*/run.json")
    newest = max(found, key=lambda record: record.stat().st_mtime, default=None)
    return None if newest is None else str(newest.parent)
