"""What the command line takes: the parser, and which of its words are a file and which are settings."""

import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn


class _Parser(argparse.ArgumentParser):
    """argparse with a suggestion for a misspelt command or option, and our form of an error."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\nhint: {self.prog} --help shows what it takes\n")


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command's name and its options; exits with status 2 for what is not right."""
    parser = command_parser()
    options, rest = parser.parse_known_args(arguments)
    options.given = list(arguments)
    unknown = [word for word in rest if word.startswith("-") or not hasattr(options, "words")]
    if unknown:
        parser.error(f"unknown argument {unknown[0]}{_suggestion(unknown[0], options)}")
    if hasattr(options, "words"):
        _sort_words(parser, options, rest)
    return options


def _sort_words(parser: _Parser, options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Tells the config file (or DATA) from key=value settings; argparse stops at the first option between them."""
    words = [*options.words, *rest]
    if getattr(options, "resume", None) and ("=" in options.resume or _is_config(options.resume)):
        words.append(options.resume)
        options.resume = "newest"
    options.settings = [word for word in words if "=" in word and not Path(word).exists()]
    names = [word for word in words if word not in options.settings]
    if len(names) > 1:
        parser.error(f"one file is expected, got {', '.join(names)}; settings are written key=value")
    options.config = None
    if options.takes == "config":
        options.config = names[0] if names else None
    elif names and _is_config(names[0]):
        options.config = names[0]
    elif names:
        options.data = names[0]


def _is_config(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _suggestion(word: str, options: argparse.Namespace) -> str:
    known = [option for action in options.parser._actions for option in action.option_strings]
    close = difflib.get_close_matches(word.partition("=")[0], known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def command_parser() -> _Parser:
    """The parser of every command; the manual's reference is written from it."""
    parser = _Parser(
        prog="truetune",
        description="Fine-tune language models on your own data, and be told the truth about it.",
        epilog="Start with: truetune demo",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    parser.add_argument("--traceback", action="store_true", help="show where in the code an error arose")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, title="commands")

    demo = _command(commands, "demo", "fine-tune a real 135M model offline, before and after shown")
    demo.add_argument("--output-dir", help="the run's directory (default: runs/demo-<n>)")
    demo.add_argument("--overwrite", action="store_true", help="replace the run in --output-dir")
    demo.add_argument("--seed", type=int, default=42, help="of the rows and the training (default: 42)")
    _add_words(demo, takes="config", metavar="key=value")
    demo.set_defaults(model=None, data=None)

    train = _command(commands, "train", "train a model as a config file, or flags and settings, say")
    _add_settings(train, takes="config", metavar="RUN.yaml | key=value")
    train.add_argument("--output-dir", help="the run's directory (default: runs/<data>-<n>)")
    train.add_argument(
        "--resume",
        nargs="?",
        const="newest",
        metavar="auto|PATH",
        help="go on from the newest complete checkpoint; auto: or start where there is none; PATH: from this one",
    )
    train.add_argument(
        "--num-processes", type=_positive, metavar="N", help="train in N processes here, with a GPU or cores each"
    )
    train.add_argument("--overwrite", action="store_true", help="replace the run in the output directory")
    train.add_argument("--dry-run", action="store_true", help="check everything, train nothing, write nothing")

    plan = _command(commands, "plan", "steps, tokens, memory, time, disk, and why each setting is what it is")
    _add_settings(plan, takes="config", metavar="RUN.yaml | key=value")
    plan.add_argument("--device", metavar="DEVICE", help='plan for another machine: "RTX 4090", h100:8')
    plan.add_argument(
        "--parallel",
        choices=("ddp", "fsdp"),
        default=None,
        help="of several devices: each holds everything (ddp), or its share (fsdp); else as training.strategy",
    )
    plan.add_argument("--probe", action="store_true", help="train a few real steps here, and plan by what they took")
    plan.add_argument(
        "--fit", action="store_true", help="write what makes the run fit into RUN.yaml; without one, print it"
    )
    plan.add_argument("--price-per-hour", type=float, metavar="PRICE", help="of the whole machine: tells the cost")
    plan.add_argument("--json", action="store_true", help="print the plan as JSON")

    find_lr = _command(commands, "find-lr", "a learning rate for this run, from a short test of many")
    _add_settings(find_lr, takes="config", metavar="RUN.yaml | key=value")
    find_lr.add_argument("--steps", type=_positive, help="how many rates to try (default: 40 to 80, by the rows)")
    find_lr.add_argument("--json", action="store_true", help="print the curve and the suggestion as JSON")

    verify = _command(commands, "verify", "whether a run's files are what was written, and can be gone on from")
    verify.add_argument("run_directory", metavar="RUN", help="a run's directory")
    verify.add_argument("--base", help="the base model, where the recorded one is not there")
    verify.add_argument(
        "--resume-proof",
        nargs="?",
        const=8,
        type=_positive,
        metavar="STEPS",
        help="train so many steps (8) on the run's rows, and half of them again from a checkpoint: the same bits?",
    )
    verify.add_argument("--json", action="store_true", help="print what was found as JSON")

    _add_ledger(_command(commands, "runs", "the runs there are: status, model, data, settings, losses, speed"))

    compare = _command(commands, "compare", "in what runs differ, and whether their figures do by more than noise")
    compare.add_argument("run_directories", nargs="+", metavar="RUN", help="runs' directories, two or more")
    compare.add_argument("--json", action="store_true", help="print all that is compared as JSON")

    sweep = _command(commands, "sweep", "a run for each way to choose the settings, one after the other")
    _add_settings(sweep, takes="config", metavar="RUN.yaml | key=value,value")
    sweep.add_argument("--output-dir", help="the sweep's folder (default: runs/<data>-sweep-<n>)")
    sweep.add_argument("--retry", action="store_true", help="try runs again that failed before")
    sweep.add_argument(
        "--dry-run", action="store_true", help="tell steps, time, memory and disk of all, train nothing"
    )
    sweep.add_argument("--json", action="store_true", help="print the runs, the best first, as JSON")

    _add_launch(_command(commands, "launch", "a run as a cluster starts it: a job script, or each machine's command"))

    generate = _command(commands, "generate", "answers from a trained model: to one prompt, or to a file of them")
    _add_trained(generate)
    _add_asked(generate)
    _add_sampling(generate)

    chat = _command(commands, "chat", "talk to a trained model")
    _add_trained(chat)
    chat.add_argument("--tools", metavar="FILE", help="tools that the model may call, as OpenAI has them")
    chat.add_argument("--compare-base", action="store_true", help="show the base model's answers, too")
    _add_sampling(chat)

    evaluate = _command(commands, "eval", "loss and answers of a trained model beside its base's, and what it forgot")
    _add_evaluation(evaluate)

    report = _command(commands, "report", "a run as one page to look at: curves, answers, rows, plan, settings")
    _add_report(report)

    merge = _command(commands, "merge", "adapter and base as one model, proved to answer as they do")
    merge.add_argument("run_directory", metavar="RUN", help="a run's directory, an adapter's folder, or RUN@STEP")
    merge.add_argument("-o", "--output", metavar="DIR", required=True, help="the folder to write")
    merge.add_argument("--base", help="the base, where the recorded one is quantized, or not there")
    merge.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="how the weights are stored (auto, the default: as the base's are)",
    )
    merge.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    merge.add_argument("--overwrite", action="store_true", help="replace the merged model in DIR")
    merge.add_argument("--json", action="store_true", help="print path, check, dtype and sizes as JSON")

    export = _command(commands, "export", "a trained model as other programs load it, checked in llama.cpp")
    _add_export(export)

    serve = _command(commands, "serve", "a trained model behind an OpenAI-compatible endpoint, checked first")
    _add_serve(serve)

    check = _command(commands, "check", "everything that would ruin the run, before it costs anything")
    _add_settings(check, takes="data", metavar="DATA | RUN.yaml | key=value")
    check.add_argument("--json", action="store_true", help="print rows, problems and counts as JSON")
    check.add_argument("--sarif", metavar="FILE", help="write the findings as SARIF, for code hosts")
    check.add_argument(
        "--score",
        nargs="?",
        const=1000,
        type=_positive,
        metavar="ROWS",
        help="with a model: its loss on so many rows (1000), the most and the least surprising told",
    )
    check.add_argument("--html", metavar="FILE", help="write a page that shows the data, its findings and their rows")
    check.add_argument(
        "--fix", metavar="OUT", help="write a cleaned copy (.jsonl, .json, .csv, .parquet), and its changes"
    )
    check.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="what --fix fills the placeholder {{NAME}} with",
    )
    check.add_argument("--overwrite", action="store_true", help="replace the file of --fix")
    check.add_argument("--explain", metavar="CODE", help="the page of a rule (TT101, or its name); all: every rule")
    check.add_argument("--select", metavar="CODES", help="rules to hold the data against: TT1,TT205,secret")
    check.add_argument("--ignore", metavar="CODES", help="rules to leave out")
    check.add_argument(
        "--fail-on", choices=("error", "warning", "note", "never"), help="exit with 1 at such findings (error)"
    )

    prepare = _command(commands, "prepare", "tokens ready for training, kept on disk")
    _add_settings(prepare, takes="data", metavar="DATA | RUN.yaml | key=value")
    prepare.add_argument("--json", action="store_true", help="print the report and where the rows lie as JSON")

    inspect = _command(commands, "inspect", "what the model reads and what it learns, row by row")
    _add_settings(inspect, takes="data", metavar="DATA | RUN.yaml | key=value")
    inspect.add_argument("--rows", type=_positive, default=3, help="how many rows to show (default: 3)")
    inspect.add_argument("--json", action="store_true", help="print rows, tokens and labels as JSON")

    init = _command(commands, "init", "a complete config for these rows and this model, with reasons")
    _add_settings(init, takes="data", metavar="DATA | key=value")
    init.add_argument("-o", "--output", help="the file to write (default: print it)")
    init.add_argument("--overwrite", action="store_true", help="replace the file")

    imported = _command(commands, "import", "another tool's config, or a training script, as a run.yaml")
    imported.add_argument("file", metavar="FILE", help="a .yaml or .json of another tool, or a .py, which is not run")
    imported.add_argument(
        "--from",
        dest="tool",
        metavar="TOOL",
        help="whose it is: axolotl, llamafactory, trl, unsloth, litgpt, script (default: told from its keys)",
    )
    imported.add_argument("-o", "--output", help="the file to write (default: print it)")
    imported.add_argument("--overwrite", action="store_true", help="replace the file")
    imported.add_argument("--json", action="store_true", help="print what became of each key as JSON")

    _command(commands, "schema", "the JSON Schema of config files, for editors")

    models = _command(commands, "models", "the models on this machine; of one, what it needs and what is unusual")
    models.add_argument("name", nargs="?", metavar="NAME", help="a hub id, a folder, a .gguf file, or demo")
    models.add_argument("--json", action="store_true", help="print what was found as JSON")
    models.add_argument("--trust-remote-code", action="store_true", help="run the code that comes with NAME")

    doctor = _command(commands, "doctor", "what this machine and its environment can do")
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")
    return parser


def _command(commands: Any, name: str, help: str) -> _Parser:
    parser: _Parser = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
    parser.add_argument("--traceback", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    parser.set_defaults(command=name, parser=parser)
    return parser


def _add_ledger(parser: _Parser) -> None:
    parser.add_argument(
        "folders", nargs="*", metavar="FOLDER", help="where to look, runs among others (default: runs)"
    )
    parser.add_argument(
        "--sort",
        choices=("started", "loss", "eval_loss", "steps", "speed", "seconds", "memory", "name"),
        default="started",
        help="the newest (the default), the lowest loss, the most steps, the fastest … first",
    )
    parser.add_argument("--reverse", action="store_true", help="the other way round")
    parser.add_argument("--status", help="with commas: running, finished, stopped, failed, dead, unreadable")
    parser.add_argument("--model", metavar="WORD", help="runs whose model has this in its name")
    parser.add_argument("--data", metavar="WORD", help="runs whose data has this in its name")
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="key=value",
        help="runs with this setting: r=8; may be repeated",
    )
    parser.add_argument("--limit", type=_positive, metavar="N", help="show so many")
    parser.add_argument("--json", action="store_true", help="print them as JSON")


def _add_launch(parser: _Parser) -> None:
    _add_settings(parser, takes="config", metavar="RUN.yaml | key=value")
    parser.add_argument(
        "--print",
        dest="form",
        choices=("slurm", "torchrun"),
        required=True,
        help="a script for sbatch that goes on behind its time limit; or the command for each machine",
    )
    parser.add_argument("--output-dir", help="the run's directory (default: runs/<config>-<job>, by its number)")
    parser.add_argument("--nodes", type=_positive, default=1, metavar="N", help="machines (default: 1)")
    parser.add_argument(
        "--gpus-per-node", type=_count, metavar="N", help="GPUs of each, a process for each (default: 1; on CPUs 0)"
    )
    parser.add_argument(
        "--ntasks-per-node", type=_positive, metavar="N", help="processes on each (default: one a GPU, or one)"
    )
    parser.add_argument("--cpus-per-task", type=_positive, metavar="N", help="cores of each process")
    slurm = parser.add_argument_group("with --print slurm")
    slurm.add_argument("--time", help="the time limit: 24:00:00, 2-12 (days-hours) (default: the partition's)")
    slurm.add_argument(
        "--stop-before",
        type=_positive,
        default=300,
        metavar="SECONDS",
        help="when to stop and save before the limit: a step and a checkpoint must fit (default: 300)",
    )
    slurm.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another option of sbatch: partition=gpu, account=lab; may be repeated",
    )
    slurm.add_argument(
        "--setup",
        action="append",
        default=[],
        metavar="LINE",
        help="a line of shell before the training: 'module load cuda'; may be repeated",
    )


def _add_settings(parser: _Parser, *, takes: str, metavar: str) -> None:
    _add_words(parser, takes=takes, metavar=metavar)
    parser.add_argument("--model", help="a hub id, a folder, a .gguf file, or demo")
    parser.add_argument("--data", help="a file, a folder, a glob or a hub id")


def _add_words(parser: _Parser, *, takes: str, metavar: str) -> None:
    parser.add_argument("words", nargs="*", metavar=metavar, help="settings win over the file, flags over neither")
    parser.set_defaults(takes=takes)


def _add_trained(parser: _Parser) -> None:
    parser.add_argument(
        "run_directory", metavar="RUN", help="a run's directory, a folder of weights, RUN@STEP, or a base model"
    )
    parser.add_argument("--base", help="the base model, where the recorded one is not there")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    parser.add_argument("--system", default="", help="a system message")
    parser.add_argument("--max-new-tokens", type=_positive, default=256, help="the longest answer (default: 256)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (the default) is greedy")
    parser.add_argument("--top-p", type=float, default=1.0, help="draw from the likeliest tokens of this much")


def _add_asked(parser: _Parser) -> None:
    parser.add_argument("--prompt", help="what to ask; - reads it from standard input")
    parser.add_argument("--context", default="", help="the input of an instruction")
    parser.add_argument("--messages", metavar="FILE", help="a conversation to go on with, as OpenAI has it")
    parser.add_argument("--tools", metavar="FILE", help="tools that the model may call, as OpenAI has them")
    parser.add_argument("--compare-base", action="store_true", help="show the base model's answer beside it")
    parser.add_argument("--input", metavar="FILE", help="rows to answer: prompts, or rows as they are trained on")
    parser.add_argument("--output", metavar="FILE", help="the answers to --input, gone on with if they are there")
    parser.add_argument(
        "--batch-size", type=_positive_or_auto, default="auto", help="rows at a time (auto, the default: by memory)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file of --output")
    parser.add_argument("--json", action="store_true", help="print prompt_ids, text, stop_reason and more as JSON")


def _add_sampling(parser: _Parser) -> None:
    parser.add_argument("--top-k", type=int, default=0, help="draw from so many of the likeliest tokens")
    parser.add_argument("--min-p", type=float, default=0.0, help="leave out what is rare beside the likeliest")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, help="above 1: say the same less often")
    parser.add_argument("--seed", type=int, help="of what is drawn: the same answers again")
    parser.add_argument(
        "--stop", nargs="+", action="extend", default=[], metavar="TEXT", help="end the answer before this text, too"
    )


def _add_export(parser: _Parser) -> None:
    parser.add_argument("run_directory", metavar="RUN", help="a run's directory, a folder of weights, or RUN@STEP")
    parser.add_argument(
        "--to",
        choices=("gguf", "ollama", "vllm", "adapter", "gguf-adapter", "hub"),
        required=True,
        help="one .gguf file; a folder with that and a Modelfile; a folder for vllm serve; the adapter alone, in "
        "PEFT's format, or as a .gguf that llama.cpp puts over its base; the hub",
    )
    parser.add_argument(
        "-o", "--output", metavar="PATH", required=True, help="the file or folder to write; of the hub, USER/NAME"
    )
    parser.add_argument(
        "--quantize",
        default="auto",
        metavar="TYPE",
        help="f32, f16, bf16, q8_0, q6_k, q5_k_m, q4_k_m, q4_0, or auto (the default): as the model is stored",
    )
    parser.add_argument("--base", help="the base, where the recorded one is quantized, or not there")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="to merge on")
    parser.add_argument(
        "--llama-cpp", metavar="DIR", help="llama.cpp's source: its converter writes the GGUF (default: $LLAMA_CPP)"
    )
    check = parser.add_mutually_exclusive_group()
    check.add_argument("--require-check", dest="check", action="store_const", const="require", default="try")
    check.add_argument("--no-check", dest="check", action="store_const", const="skip", help="ask no prompts")
    parser.add_argument("--with-base", action="store_true", help="of a gguf-adapter: its base's GGUF beside it")
    parser.add_argument("--adapter", action="store_true", help="for vllm: the adapter on its base, not merged")
    parser.add_argument("--overwrite", action="store_true", help="replace the export at PATH")
    parser.add_argument("--json", action="store_true", help="print path, format, size and check as JSON")
    _add_hub(parser)


def _add_report(parser: _Parser) -> None:
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUN",
        help="a run's directory; with --serve runs, or folders of them (default: runs)",
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="the page to write (default: RUN/report.html)")
    parser.add_argument("--json", action="store_true", help="print path, size and what is missing as JSON")
    parser.add_argument("--serve", action="store_true", help="show the runs there are, as they go on, in a browser")
    serve = parser.add_argument_group("with --serve")
    serve.add_argument("--host", help="where to listen (default: 127.0.0.1, this machine; elsewhere with a key)")
    serve.add_argument("--port", type=_port, help="a port, or 0 for any (default: 8770, or any if taken)")
    serve.add_argument("--key", action="store_true", help="ask for a key on this machine, too: others may use it")


def _add_serve(parser: _Parser) -> None:
    parser.add_argument(
        "run_directory", metavar="RUN", help="a run's directory, a folder of weights, RUN@STEP, or a .gguf file"
    )
    parser.add_argument(
        "--server",
        choices=("auto", "transformers", "llama.cpp", "vllm"),
        default="auto",
        help="auto (the default): vllm, llama.cpp or transformers, the first that is installed",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="where to listen (default: 127.0.0.1, this machine alone)"
    )
    parser.add_argument("--port", type=_port, help="a port, or 0 for any (default: 8000, or any where that is taken)")
    parser.add_argument("--api-key", metavar="KEY", help="what requests must bring as a bearer token")
    parser.add_argument(
        "--quantize",
        default="auto",
        metavar="TYPE",
        help="for llama.cpp, as export has it (default: as it is stored)",
    )
    parser.add_argument(
        "--context-length",
        type=_positive,
        metavar="TOKENS",
        help="of a request (default: as long as training's rows)",
    )
    parser.add_argument("--base", help="the base, where the recorded one is quantized, or not there")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    parser.add_argument(
        "--llama-cpp",
        metavar="PATH",
        help="llama-server, or the folder it is in (default: on the PATH, or xllamacpp)",
    )
    parser.add_argument("--check-only", action="store_true", help="start the server, check it, and end it again")
    parser.add_argument("--no-check", action="store_true", help="ask no prompts")
    parser.add_argument("--print", action="store_true", help="print the server's command, and start nothing")
    parser.add_argument("--json", action="store_true", help="print server, url, model and parity as JSON")


def _add_hub(parser: _Parser) -> None:
    hub = parser.add_argument_group("with --to hub")
    hub.add_argument("--public", action="store_true", help="everybody may read it (default: private)")
    hub.add_argument("--revision", metavar="BRANCH", help="the branch to write to (default: main)")
    hub.add_argument("--merged", action="store_true", help="base and adapter as one model, merged and checked first")
    hub.add_argument("--base-name", metavar="ORG/MODEL", help="the base's name on the hub, where it was a folder")
    hub.add_argument("--license", help="of the model, as the hub names it: apache-2.0 (default: the base's)")


def _add_evaluation(parser: _Parser) -> None:
    parser.add_argument("run_directory", metavar="RUN", help="a run's directory, a folder of weights, or RUN@STEP")
    parser.add_argument("--data", help="rows in any format (default: the run's own validation rows)")
    parser.add_argument("--base", help="the base model, where the recorded one is not there")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    parser.add_argument(
        "--metrics",
        default="auto",
        help="of the answers, with commas: auto (the default, by what the rows expect), exact_match, "
        "normalized_match, number_match, json, regex, rouge_l, bleu, tool_calls",
    )
    parser.add_argument("--regex", metavar="PATTERN", help="what the metric regex looks for in an answer")
    parser.add_argument(
        "--limit",
        type=_positive,
        help="rows to answer, spread evenly (default: 100); of each task, its first documents (default: all)",
    )
    parser.add_argument("--max-new-tokens", type=_positive, default=256, help="the longest answer (default: 256)")
    parser.add_argument("--no-base", action="store_true", help="leave the base out")
    parser.add_argument("--loss-only", action="store_true", help="generate no answers")
    parser.add_argument("--no-forgetting", action="store_true", help="leave out the general instructions and texts")
    parser.add_argument("--reference", metavar="FILE", help="another model's answers to the rows (.jsonl)")
    for option, what in (("--fail-under", "less"), ("--fail-over", "more")):
        parser.add_argument(
            option,
            nargs="+",
            action="append",
            default=[],
            metavar="FIGURE=NUMBER",
            help=f"exit with 1 where a figure is {what}: exact_match=0.8",
        )
    parser.add_argument("--output", metavar="FILE", help="write the JSON there, too")
    parser.add_argument("--json", action="store_true", help="print figures, comparison and rows as JSON")
    _add_tasks(parser)


def _add_tasks(parser: _Parser) -> None:
    parser.add_argument(
        "--lm-eval", metavar="TASKS", help="ask tasks of lm-evaluation-harness, with commas, instead of rows"
    )
    tasks = parser.add_argument_group("with --lm-eval")
    tasks.add_argument("--include", metavar="FOLDER", help="tasks of your own, as the harness's YAML files")
    tasks.add_argument("--num-fewshot", type=_count, metavar="N", help="examples to show (default: by task)")
    tasks.add_argument("--batch-size", type=_positive, default=1, help="requests at a time (default: 1)")


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a positive whole number (got {text!r})")
    return number


def _count(text: str) -> int:
    return 0 if text == "0" else _positive(text)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 2**16):
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 65535 (got {text!r})")
    return int(text)


def _positive_or_auto(text: str) -> Any:
    return text if text == "auto" else _positive(text)


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import version

        parser.exit(0, f"truetune {version('truetune')}\n")
