"""What the commands take that make a config, or look at models and the machine."""

from typing import Any

from truetune.arguments.options import Parser, add_command, add_settings


def add_commands(commands: Any) -> None:
    """Adds them, in this order."""
    _add_init(add_command(commands, "init", "a complete config for these rows and this model, with reasons"))
    _add_import(add_command(commands, "import", "another tool's config, or a training script, as a run.yaml"))
    _add_output(add_command(commands, "schema", "the JSON Schema of config files, for editors"))
    _add_models(
        add_command(commands, "models", "the models on this machine; of one, what it needs and what is unusual")
    )
    doctor = add_command(commands, "doctor", "what this machine and its environment can do")
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")
    _add_completion(add_command(commands, "completion", "a script by which a shell completes truetune's words"))


def _add_init(parser: Parser) -> None:
    add_settings(parser, takes="data", metavar="DATA | key=value")
    _add_output(parser)


def _add_import(parser: Parser) -> None:
    parser.add_argument("file", metavar="FILE", help="a .yaml or .json of another tool, or a .py or .ipynb (not run)")
    parser.add_argument(
        "--from",
        dest="tool",
        metavar="TOOL",
        help="whose it is: axolotl, llamafactory, trl, unsloth, litgpt, script (default: told from its keys)",
    )
    _add_output(parser)
    parser.add_argument("--json", action="store_true", help="print what became of each key as JSON")


def _add_completion(parser: Parser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="whose words the script is in")
    _add_output(parser)


def _add_output(parser: Parser) -> None:
    parser.add_argument("-o", "--output", help="the file to write (default: print it)")
    parser.add_argument("--overwrite", action="store_true", help="replace the file")


def _add_models(parser: Parser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="a hub id, a folder, a .gguf file, or demo")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the code that comes with NAME")
