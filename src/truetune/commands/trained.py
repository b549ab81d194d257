"""merge, export: what becomes of a trained model."""

import argparse
from contextlib import closing

from truetune.errors import ConfigError


def merge(options: argparse.Namespace) -> None:
    from truetune.console.listener import ConsoleListener
    from truetune.console.output import show, show_json
    from truetune.figures import byte_size
    from truetune.pipeline.delivery.merge import merge_run

    with closing(ConsoleListener()) as listener:
        merged = merge_run(
            options.run_directory,
            options.output,
            base_model=options.base,
            dtype=options.dtype,
            device=options.device,
            overwrite=options.overwrite,
            listener=listener,
        )
    if options.json:
        show_json(merged.as_json())
    else:
        size = f"{merged.tensors} tensors in {merged.dtype}, {byte_size(merged.bytes)}, {merged.shards} file(s)"
        show(f'merged: {merged.path} ({size})\nask it: truetune generate {merged.path} --prompt "…"')


def export(options: argparse.Namespace) -> None:
    _require_fitting(options)
    if options.output is None and options.to == "hub":
        raise ConfigError("where to on the hub: -o USER/NAME is missing", hint="write -o, and the repository's name")
    if options.to == "hub":
        _publish(options)
    else:
        _export(options)


def _publish(options: argparse.Namespace) -> None:
    from truetune.console.listener import ConsoleListener
    from truetune.console.output import show, show_json
    from truetune.inference.hub import HubTarget
    from truetune.pipeline.delivery.publish import Publication, publish

    asked = Publication(
        merged=options.merged,
        base_name=options.base_name,
        license=options.license,
        base_model=options.base,
        device=options.device,
    )
    target = HubTarget(options.output, is_public=options.public, revision=options.revision or "main")
    with closing(ConsoleListener()) as listener:
        published = publish(options.run_directory, target, options=asked, listener=listener)
    if options.json:
        show_json(published.as_json())
    else:
        show("\n".join(published.told()))


def _require_fitting(options: argparse.Namespace) -> None:
    """ConfigError for an option of another kind of export than the one that is asked for."""
    given = {
        **vars(options),
        "quantize": options.quantize != "auto",
        "overwrite": options.overwrite,
        "require_check": options.check == "require",
        "no_check": options.check == "skip",
    }
    for name, targets in _FITS.items():
        if options.to not in targets and given[name]:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(
                f"{option} is not for --to {options.to}", hint=f"it is for --to {', '.join(sorted(targets))}"
            )


_LLAMA_CPP = frozenset({"gguf", "ollama", "gguf-adapter"})
_HERE = _LLAMA_CPP | {"adapter", "vllm"}
_HUB = frozenset({"hub"})
_FITS = {
    "quantize": _LLAMA_CPP,
    "llama_cpp": _LLAMA_CPP - {"gguf-adapter"},
    "overwrite": _HERE,
    "require_check": _HERE,
    "no_check": _HERE,
    "with_base": frozenset({"gguf-adapter"}),
    "adapter": frozenset({"vllm"}),
    **dict.fromkeys(("public", "revision", "merged", "base_name", "license"), _HUB),
}
"""The kinds of export that each option is for."""


def _export(options: argparse.Namespace) -> None:
    from truetune.console.listener import ConsoleListener
    from truetune.console.output import show, show_json
    from truetune.pipeline.delivery.export import ExportSettings, export_run, name_for

    settings = ExportSettings(
        to=options.to,
        quantize=options.quantize,
        check=options.check,
        base_model=options.base,
        llama_cpp=options.llama_cpp,
        device=options.device,
        overwrite=options.overwrite,
        keeps_adapter=options.adapter,
        with_base=options.with_base,
    )
    with closing(ConsoleListener()) as listener:
        out = options.output or name_for(options.run_directory, options.to)
        exported = export_run(options.run_directory, out, settings, listener=listener)
    if options.json:
        show_json(exported.as_json())
    else:
        show("\n".join(exported.told()))
