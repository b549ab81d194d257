"""A trained model in other forms and places: load, merge, export, publish, serve."""

from pathlib import Path
from typing import Literal

from truetune.api.inputs import directory_of
from truetune.inference.generate import TrainedModel, load_trained
from truetune.inference.hub import HubTarget
from truetune.inference.servers import ServerName
from truetune.listener import Listener
from truetune.pipeline.delivery.export import Export, ExportSettings, Target, export_run
from truetune.pipeline.delivery.merge import Dtype, Merged, merge_run
from truetune.pipeline.delivery.publish import Publication, Published
from truetune.pipeline.delivery.publish import publish as publish_model
from truetune.pipeline.delivery.serve import ServeSettings, Serving, serve_run
from truetune.pipeline.run import Run


def load(
    run: Run | str | Path,
    *,
    base_model: str | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
) -> TrainedModel:
    """The trained model of a run (or of its directory, or of its adapter's folder), with training's prompts.

    `base_model` names the base where the recorded one is no longer there.
    """
    return load_trained(directory_of(run), base_model=base_model, device=device)


def merge(
    run: Run | str | Path,
    out: str | Path,
    *,
    base_model: str | None = None,
    dtype: Dtype = "auto",
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    overwrite: bool = False,
    listener: Listener | None = None,
) -> Merged:
    """Writes a run's adapter and its base as one model to the folder `out`, proved to answer as they do.

    `run` is also an adapter's folder, PEFT's too, or "RUN@STEP". `base_model` names a base that is not quantised,
    where the recorded one is, or where that is no longer there. `dtype` "auto" stores weights as the base does.
    Raises CheckpointError, and leaves nothing at `out`, if the merged model is not the trained one.
    """
    return merge_run(
        directory_of(run),
        out,
        base_model=base_model,
        dtype=dtype,
        device=device,
        overwrite=overwrite,
        listener=listener,
    )


def export(
    run: Run | str | Path,
    out: str | Path,
    *,
    to: Target = "gguf",
    quantize: str = "auto",
    check: Literal["try", "require", "skip"] = "try",
    base_model: str | None = None,
    llama_cpp: str | Path | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    overwrite: bool = False,
    keep_adapter: bool = False,
    with_base: bool = False,
    listener: Listener | None = None,
) -> Export:
    """Writes a run's model to `out` as other programs load it, and asks it its training's prompts there.

    `to` is gguf (one file), ollama (a folder with the file and a Modelfile), vllm (a folder that it serves: merged,
    or with `keep_adapter` the adapter on its base), adapter (PEFT's folder) or gguf-adapter (a LoRA that llama.cpp
    puts over its base, whose own GGUF is written too `with_base`). `quantize` is llama.cpp's name, auto for how the
    model is stored; `check` "require" makes it an error where llama.cpp is not installed; `llama_cpp` is the folder
    of its source, whose converter then writes the file. Raises CheckpointError, and leaves nothing at `out`, if what
    was written is not the trained model.
    """
    settings = ExportSettings(
        to=to,
        quantize=quantize,
        check=check,
        base_model=base_model,
        llama_cpp=None if llama_cpp is None else str(llama_cpp),
        device=device,
        overwrite=overwrite,
        keeps_adapter=keep_adapter,
        with_base=with_base,
    )
    return export_run(directory_of(run), out, settings, listener=listener)


def publish(
    run: Run | str | Path,
    repository: str,
    *,
    public: bool = False,
    revision: str = "main",
    merged: bool = False,
    base_name: str | None = None,
    license: str | None = None,
    base_model: str | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    listener: Listener | None = None,
) -> Published:
    """Uploads a run's adapter or model (or a folder of weights or GGUF files) to the hub with a card; reads it back.

    `repository` is USER/NAME, made if it is missing, private unless `public`; `revision` a branch. `merged` sends
    base and adapter as one checked model, with `base_model` where the recorded base is quantised or gone; `base_name`
    is the base's name on the hub, where it was a folder. The token is HF_TOKEN, or that of `hf auth login`.

    Raises ConfigError, CheckpointError or BackendError.
    """
    return publish_model(
        directory_of(run),
        HubTarget(repository, is_public=public, revision=revision),
        options=Publication(
            merged=merged, base_name=base_name, license=license, base_model=base_model, device=device
        ),
        listener=listener,
    )


def serve(
    run: Run | str | Path,
    *,
    server: Literal["auto"] | ServerName = "auto",
    host: str = "127.0.0.1",
    port: int | None = None,
    api_key: str | None = None,
    quantize: str = "auto",
    context_length: int | None = None,
    check: bool = True,
    base_model: str | None = None,
    llama_cpp: str | Path | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    listener: Listener | None = None,
) -> Serving:
    """Starts a server of OpenAI's API with a run's model, which has answered as the trained model does.

    with truetune.serve("runs/desk", port=0) as served:
        client = openai.OpenAI(base_url=served.url, api_key="none")

    `run` is also "RUN@STEP", a folder of weights or a .gguf file. The server ends with the block, by `close`, or with
    this process. `quantize` and `llama_cpp` (llama-server, or its folder) are for llama.cpp. Raises ConfigError,
    BackendError for a server that is missing or dies, CheckpointError for one with other answers.
    """
    settings = ServeSettings(
        server=server,
        host=host,
        port=port,
        api_key=api_key,
        quantize=quantize,
        context_length=context_length,
        check=check,
        base_model=base_model,
        llama_cpp=None if llama_cpp is None else str(llama_cpp),
        device=device,
    )
    return serve_run(directory_of(run), settings, listener=listener)
