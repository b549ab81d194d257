"""llama.cpp's server out of xllamacpp as a program of its own, which takes the words of `llama-server`.

LLAMA_API_KEY=… python -m truetune.inference.llama_cpp_server --model desk.gguf --port 8000
"""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any

from truetune.environment import usable_threads


def main(arguments: Sequence[str] | None = None) -> None:
    """Serves until it is asked to stop."""
    options = _options(arguments)
    server = _server(options)
    sys.stderr.write(f"listening on {server.listening_address}\n")
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    stopped.wait()
    # Not the server's own end: it waits for requests that may come.
    os._exit(0)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="llama-server", allow_abbrev=False)
    parser.add_argument("--model", required=True)
    parser.add_argument("--alias")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--ctx-size", type=int, default=0)
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--n-gpu-layers", type=int)
    parser.add_argument("--jinja", action="store_true")
    for name in ("temp", "top-p", "min-p", "repeat-penalty"):
        parser.add_argument(f"--{name}", type=float)
    parser.add_argument("--top-k", type=int)
    return parser.parse_args(arguments)


def _server(options: argparse.Namespace) -> Any:
    import xllamacpp as llama

    params = llama.CommonParams()
    params.model.path = options.model
    params.hostnames, params.port = [options.host], options.port
    params.n_ctx, params.n_parallel = options.ctx_size, options.parallel
    params.cpuparams.n_threads = usable_threads()
    params.warmup, params.ui = False, False
    params.use_jinja = options.jinja
    if options.alias:
        params.model_alias = {options.alias}
    if options.n_gpu_layers is not None:
        params.n_gpu_layers = options.n_gpu_layers
    if key := os.environ.get("LLAMA_API_KEY"):
        params.api_keys = [key]
    _set_sampling(params.sampling, options)
    return llama.Server(params)


def _set_sampling(sampling: Any, options: argparse.Namespace) -> None:
    asked = {
        "temp": options.temp,
        "top_k": options.top_k,
        "top_p": options.top_p,
        "min_p": options.min_p,
        "penalty_repeat": options.repeat_penalty,
    }
    for name, value in asked.items():
        if value is not None:
            setattr(sampling, name, value)


if __name__ == "__main__":
    main()
