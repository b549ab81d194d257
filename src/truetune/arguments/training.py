"""What the commands take that decide and train a run: demo, train, plan, find-lr, verify."""

from typing import Any

from truetune.arguments.options import Parser, add_command, add_settings, add_words, positive


def add_commands(commands: Any) -> None:
    """Adds them, in this order."""
    _add_demo(add_command(commands, "demo", "fine-tune a real 135M model offline, before and after shown"))
    _add_train(add_command(commands, "train", "train a model as a config file, or flags and settings, say"))
    _add_plan(add_command(commands, "plan", "steps, tokens, memory, time, disk, and why each setting is what it is"))
    _add_find_lr(add_command(commands, "find-lr", "a learning rate for this run, from a short test of many"))
    _add_verify(
        add_command(commands, "verify", "whether a run's files are what was written, and can be gone on from")
    )


def _add_demo(parser: Parser) -> None:
    parser.add_argument("--output-dir", help="the run's directory (default: runs/demo-<n>)")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in --output-dir")
    parser.add_argument("--seed", type=int, default=42, help="of the rows and the training (default: 42)")
    add_words(parser, takes="settings", metavar="key=value")
    parser.set_defaults(model=None, data=None)


def _add_train(parser: Parser) -> None:
    add_settings(parser, takes="config", metavar="RUN.yaml | key=value")
    parser.add_argument("--output-dir", help="the run's directory (default: runs/<data>-<n>)")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="newest",
        metavar="auto|PATH",
        help="go on from the newest complete checkpoint; auto: or start where there is none; PATH: run or checkpoint",
    )
    parser.add_argument(
        "--num-processes", type=positive, metavar="N", help="train in N processes here, with a GPU or cores each"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the run in the output directory")
    parser.add_argument("--dry-run", action="store_true", help="check everything, train nothing, write nothing")


def _add_plan(parser: Parser) -> None:
    add_settings(parser, takes="config", metavar="RUN.yaml | key=value")
    parser.add_argument("--device", metavar="DEVICE", help='plan for another machine: "RTX 4090", h100:8')
    parser.add_argument(
        "--parallel",
        choices=("ddp", "fsdp"),
        default=None,
        help="of several devices: each holds everything (ddp), or its share (fsdp); else as training.strategy",
    )
    parser.add_argument(
        "--probe", action="store_true", help="train a few real steps here, and plan by what they took"
    )
    parser.add_argument(
        "--fit", action="store_true", help="write what makes the run fit into RUN.yaml; without one, print it"
    )
    parser.add_argument("--price-per-hour", type=float, metavar="PRICE", help="of the whole machine: tells the cost")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")


def _add_find_lr(parser: Parser) -> None:
    add_settings(parser, takes="config", metavar="RUN.yaml | key=value")
    parser.add_argument("--steps", type=positive, help="how many rates to try (default: 40 to 80, by the rows)")
    parser.add_argument("--json", action="store_true", help="print the curve and the suggestion as JSON")


def _add_verify(parser: Parser) -> None:
    parser.add_argument("run_directory", metavar="RUN", help="a run's directory")
    parser.add_argument("--base", help="the base model, where the recorded one is not there")
    parser.add_argument(
        "--resume-proof",
        nargs="?",
        const=8,
        type=positive,
        metavar="STEPS",
        help="train so many steps (8) on the run's rows, and half of them again from a checkpoint: the same bits?",
    )
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")
