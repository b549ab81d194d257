"""What the commands take that make another form of a trained model: merge, export."""

import argparse
import re
from typing import Any

from truetune.arguments.options import Parser, add_command, add_device


def add_commands(commands: Any) -> None:
    """Adds them, in this order."""
    _add_merge(add_command(commands, "merge", "adapter and base as one model, proved to answer as they do"))
    export = add_command(commands, "export", "a trained model as other programs load it, checked in llama.cpp")
    _add_export(export)
    _add_hub(export)


def _add_merge(parser: Parser) -> None:
    parser.add_argument("run_directory", metavar="RUN", help="a run's directory, an adapter's folder, or RUN@STEP")
    parser.add_argument("-o", "--output", metavar="DIR", required=True, help="the folder to write")
    parser.add_argument("--base", help="the base, where the recorded one is quantized, or not there")
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="how the weights are stored (auto, the default: as the base's are)",
    )
    add_device(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace the merged model in DIR")
    parser.add_argument("--json", action="store_true", help="print path, check, dtype and sizes as JSON")


def _add_export(parser: Parser) -> None:
    parser.add_argument("run_directory", metavar="RUN", help="a run's directory, a folder of weights, or RUN@STEP")
    parser.add_argument(
        "--to",
        type=_target,
        choices=("gguf", "ollama", "vllm", "adapter", "gguf-adapter", "hub"),
        required=True,
        help="one .gguf file; a folder with that and a Modelfile; a folder for vllm serve; the adapter alone, in "
        "PEFT's format, or as a .gguf that llama.cpp puts over its base; the hub",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="PATH",
        help="the file or folder to write (default: here, named after the run); of the hub, USER/NAME",
    )
    parser.add_argument(
        "--quantize",
        default="auto",
        metavar="TYPE",
        help="f32, f16, bf16, q8_0, q6_k, q5_k_m, q4_k_m, q4_0, or auto (the default): as the model is stored",
    )
    parser.add_argument("--base", help="the base, where the recorded one is quantized, or not there")
    add_device(parser, help="to merge on")
    parser.add_argument(
        "--llama-cpp", metavar="DIR", help="llama.cpp's source: its converter writes the GGUF (default: $LLAMA_CPP)"
    )
    check = parser.add_mutually_exclusive_group()
    check.add_argument(
        "--require-check",
        dest="check",
        action="store_const",
        const="require",
        default="try",
        help="an error where llama.cpp, which is asked, is missing",
    )
    check.add_argument("--no-check", dest="check", action="store_const", const="skip", help="ask no prompts")
    parser.add_argument("--with-base", action="store_true", help="of a gguf-adapter: its base's GGUF beside it")
    parser.add_argument("--adapter", action="store_true", help="for vllm: the adapter on its base, not merged")
    parser.add_argument("--overwrite", action="store_true", help="replace the export at PATH")
    parser.add_argument("--json", action="store_true", help="print path, format, size and check as JSON")


def _target(text: str) -> str:
    """What to export to; the way in which weights are stored is another option's."""
    if re.fullmatch(r"i?q\d\w*|b?f(16|32)", text.lower()):
        raise argparse.ArgumentTypeError(f"{text} is how weights are stored: write --to gguf --quantize {text}")
    return text.lower()


def _add_hub(parser: Parser) -> None:
    hub = parser.add_argument_group("with --to hub")
    hub.add_argument("--public", action="store_true", help="everybody may read it (default: private)")
    hub.add_argument("--revision", metavar="BRANCH", help="the branch to write to (default: main)")
    hub.add_argument("--merged", action="store_true", help="base and adapter as one model, merged and checked first")
    hub.add_argument("--base-name", metavar="ORG/MODEL", help="the base's name on the hub, where it was a folder")
    hub.add_argument("--license", help="of the model, as the hub names it: apache-2.0 (default: the base's)")
