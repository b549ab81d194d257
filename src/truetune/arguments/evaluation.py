"""What `truetune eval` takes: the rows or tasks, what is measured, and thresholds."""

from typing import Any

from truetune.arguments.options import Parser, add_command, add_device, count, positive


def add_commands(commands: Any) -> None:
    """Adds it."""
    evaluate = add_command(
        commands, "eval", "loss and answers of a trained model beside its base's, and what it forgot"
    )
    _add_evaluation(evaluate)
    _add_tasks(evaluate)


def _add_evaluation(parser: Parser) -> None:
    parser.add_argument("run_directory", metavar="RUN", help="a run's directory, a folder of weights, or RUN@STEP")
    parser.add_argument("--data", help="rows in any format (default: the run's own validation rows)")
    parser.add_argument("--base", help="the base model, where the recorded one is not there")
    add_device(parser)
    parser.add_argument(
        "--metrics",
        default="auto",
        help="of the answers, with commas: auto (the default, by what the rows expect), exact_match, "
        "normalized_match, number_match, json, regex, rouge_l, bleu, tool_calls",
    )
    parser.add_argument("--regex", metavar="PATTERN", help="what the metric regex looks for in an answer")
    parser.add_argument(
        "--limit",
        type=positive,
        help="rows to answer, spread evenly (default: 100); of each task, its first documents (default: all)",
    )
    parser.add_argument("--max-new-tokens", type=positive, default=256, help="the longest answer (default: 256)")
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


def _add_tasks(parser: Parser) -> None:
    parser.add_argument(
        "--lm-eval", metavar="TASKS", help="ask tasks of lm-evaluation-harness, with commas, instead of rows"
    )
    tasks = parser.add_argument_group("with --lm-eval")
    tasks.add_argument("--include", metavar="FOLDER", help="tasks of your own, as the harness's YAML files")
    tasks.add_argument("--num-fewshot", type=count, metavar="N", help="examples to show (default: by task)")
    tasks.add_argument("--batch-size", type=positive, default=1, help="requests at a time (default: 1)")
