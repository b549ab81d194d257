"""completion: the script by which a shell completes truetune's commands, options, settings, runs and files."""

import argparse
from collections.abc import Iterator, Mapping

from truetune.arguments.parse import command_parser
from truetune.commands.setup import wanted_file

_RUNS = r"find runs -maxdepth 3 -name run.json -exec dirname {} \; 2>/dev/null"
"""The runs there are, in words that every shell knows."""


def completion(options: argparse.Namespace) -> None:
    from truetune.console.output import show
    from truetune.files import named_refusals, write_text

    target = wanted_file(options)
    text = script(options.shell)
    if target is None:
        return show(text.rstrip("\n"))
    with named_refusals(target):
        write_text(target, text)
    return show(f"wrote {target}; a new {options.shell} that reads it completes truetune's words")


def script(shell: str) -> str:
    """What bash, zsh or fish reads to complete truetune's words. Nothing of truetune runs when it does so."""
    import shtab

    from truetune.config.resolve import bare_names
    from truetune.config.schema import setting_names

    parser = command_parser()
    for action in _actions(parser):
        if kind := _kind(action):
            action.complete = {each: word.format(kind) for each, word in _CALLED.items()}  # type: ignore[attr-defined]
    names = " ".join(f"{name}=" for name in (*setting_names(), *bare_names()))
    functions = _FUNCTIONS[shell].replace("RUNS", _RUNS).replace("SETTINGS", names)
    text: str = shtab.complete(parser, shell=shell, preamble=functions)
    for theirs, ours in _MENDED.get(shell, {}).items():
        text = text.replace(theirs, ours)
    return f"{text}\n{_LAST.get(shell, '')}"


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Those of all commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
        else:
            yield action


def _kind(action: argparse.Action) -> str | None:
    """What stands in an argument's place, by the word that help has for it; None for what only its writer knows."""
    if action.choices or action.nargs == 0:
        return None
    if action.dest == "words":
        return "settings_or_files"
    return _BY_NAME.get(action.dest) if action.metavar is None else _BY_METAVAR.get(str(action.metavar))


_BY_METAVAR: Mapping[str, str] = {
    "RUN": "runs_or_dirs",
    "NAME": "models_or_files",
    **dict.fromkeys(("DIR", "FOLDER"), "dirs"),
    **dict.fromkeys(("FILE", "OUT", "PATH", "auto|PATH"), "files"),
}
_BY_NAME: Mapping[str, str] = {
    "output_dir": "dirs",
    **dict.fromkeys(("model", "base"), "models_or_files"),
    **dict.fromkeys(("data", "output"), "files"),
}

_CALLED: Mapping[str, str] = {"bash": "_truetune_{}", "zsh": "_truetune_{}", "fish": "(_truetune_{})"}
"""How shtab's scripts call a function of ours. In bash the name tells them that file names are among its words."""

_FUNCTIONS: Mapping[str, str] = {
    "bash": r"""
_truetune_files() { compgen -f -- "$1"; }
_truetune_dirs() { compgen -d -- "$1"; }
_truetune_runs_or_dirs() { compgen -W "$(RUNS)" -- "$1"; compgen -d -- "$1"; }
_truetune_models_or_files() { compgen -W demo -- "$1"; compgen -f -- "$1"; }
_truetune_settings_or_files() {
  if [[ -n $1 ]]; then compgen -W "SETTINGS" -- "$1"; fi
  compgen -f -- "$1"
}
""",
    "zsh": r"""
_truetune_files() { _files }
_truetune_dirs() { _files -/ }
_truetune_runs_or_dirs() {
  local -a found=(${(f)"$(RUNS)"})
  _alternative 'runs:run:compadd -a found' 'folders:folder:_files -/'
}
_truetune_models_or_files() { _alternative 'models:model:(demo)' 'files:file:_files' }
_truetune_settings_or_files() {
  local -a settings
  if [[ -n $PREFIX ]]; then settings=(SETTINGS); fi
  _alternative 'files:file:_files' 'settings:setting:compadd -S "" -a settings'
}
""",
    "fish": r"""
function _truetune_files
  __fish_complete_path (commandline -ct)
end
function _truetune_dirs
  __fish_complete_directories (commandline -ct)
end
function _truetune_runs_or_dirs
  RUNS
  __fish_complete_directories (commandline -ct)
end
function _truetune_models_or_files
  echo demo
  __fish_complete_path (commandline -ct)
end
function _truetune_settings_or_files
  set -l word (commandline -ct)
  if test -n "$word"
    printf '%s\n' SETTINGS
  end
  __fish_complete_path "$word"
end
""",
}
"""What completes each kind. Settings are offered once a letter is there: before, the file is what one looks for."""

_MENDED: Mapping[str, Mapping[str, str]] = {"zsh": {'"(*)::': '"*:', '"(*):': '"*:'}}
"""shtab 1.13 has zsh complete only the first of several words: runs, or a file and its settings."""

_LAST: Mapping[str, str] = {
    # A value follows a setting, and no space; as if it were a file's name, bash would quote its "=".
    "bash": r"""
_truetune() {
  _shtab_truetune
  if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *= ]]; then compopt +o filenames -o nospace 2>/dev/null; fi
  return 0
}
complete -F _truetune truetune
""",
}
