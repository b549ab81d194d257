"""What the commands take that ask a trained model: generate, chat."""

from typing import Any

from truetune.arguments.options import Parser, add_command, add_device, positive, positive_or_auto


def add_commands(commands: Any) -> None:
    """Adds them, in this order."""
    generate = add_command(commands, "generate", "answers from a trained model: to one prompt, or to a file of them")
    _add_trained(generate)
    _add_asked(generate)
    _add_sampling(generate)
    chat = add_command(commands, "chat", "talk to a trained model")
    _add_trained(chat)
    chat.add_argument("--tools", metavar="FILE", help="tools that the model may call, as OpenAI has them")
    chat.add_argument("--compare-base", action="store_true", help="show the base model's answers, too")
    _add_sampling(chat)


def _add_trained(parser: Parser) -> None:
    parser.add_argument(
        "run_directory", metavar="RUN", help="a run's directory, a folder of weights, RUN@STEP, or a base model"
    )
    parser.add_argument("--base", help="the base model, where the recorded one is not there")
    add_device(parser)
    parser.add_argument("--system", default="", help="a system message")
    parser.add_argument("--max-new-tokens", type=positive, default=256, help="the longest answer (default: 256)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (the default) is greedy")
    parser.add_argument("--top-p", type=float, default=1.0, help="draw from the likeliest tokens of this much")


def _add_asked(parser: Parser) -> None:
    parser.add_argument("--prompt", help="what to ask; - reads it from standard input")
    parser.add_argument("--context", default="", help="the input of an instruction")
    parser.add_argument("--messages", metavar="FILE", help="a conversation to go on with, as OpenAI has it")
    parser.add_argument("--tools", metavar="FILE", help="tools that the model may call, as OpenAI has them")
    parser.add_argument("--compare-base", action="store_true", help="show the base model's answer beside it")
    parser.add_argument("--input", metavar="FILE", help="rows to answer: prompts, or rows as they are trained on")
    parser.add_argument("--output", metavar="FILE", help="the answers to --input, gone on with if they are there")
    parser.add_argument(
        "--batch-size", type=positive_or_auto, default="auto", help="rows at a time (auto, the default: by memory)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file of --output")
    parser.add_argument("--json", action="store_true", help="print prompt_ids, text, stop_reason and more as JSON")


def _add_sampling(parser: Parser) -> None:
    parser.add_argument("--top-k", type=int, default=0, help="draw from so many of the likeliest tokens")
    parser.add_argument("--min-p", type=float, default=0.0, help="leave out what is rare beside the likeliest")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, help="above 1: say the same less often")
    parser.add_argument("--seed", type=int, help="of what is drawn: the same answers again")
    parser.add_argument(
        "--stop", nargs="+", action="extend", default=[], metavar="TEXT", help="end the answer before this text, too"
    )
