"""What `truetune serve` takes: the model, the server, and its check."""

from typing import Any

from truetune.arguments.options import add_command, add_device, port, positive


def add_commands(commands: Any) -> None:
    """Adds it."""
    parser = add_command(commands, "serve", "a trained model behind an OpenAI-compatible endpoint, checked first")
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
    parser.add_argument("--port", type=port, help="a port, or 0 for any (default: 8000, or any where that is taken)")
    parser.add_argument("--api-key", metavar="KEY", help="what requests must bring as a bearer token")
    parser.add_argument(
        "--quantize",
        default="auto",
        metavar="TYPE",
        help="for llama.cpp, as export has it (default: as it is stored)",
    )
    parser.add_argument(
        "--context-length",
        type=positive,
        metavar="TOKENS",
        help="of a request (default: as long as training's rows)",
    )
    parser.add_argument("--base", help="the base, where the recorded one is quantized, or not there")
    add_device(parser)
    parser.add_argument(
        "--llama-cpp",
        metavar="PATH",
        help="llama-server, or the folder it is in (default: on the PATH, or xllamacpp)",
    )
    parser.add_argument("--check-only", action="store_true", help="start the server, check it, and end it again")
    parser.add_argument("--no-check", action="store_true", help="ask no prompts")
    parser.add_argument("--print", action="store_true", help="print the server's command, and start nothing")
    parser.add_argument("--json", action="store_true", help="print server, url, model and parity as JSON")
