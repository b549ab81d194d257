"""`truetune export --to hub`: what may be passed on of a trained model, with a card, sent and read back."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from truetune.errors import CheckpointError, ConfigError
from truetune.figures import byte_size
from truetune.inference.card import BaseFacts, CardFacts, Kind, is_untouched, model_card, sealed
from truetune.inference.hub import (
    CARD,
    Content,
    HubTarget,
    Uploaded,
    license_of,
    open_repository,
    read_card,
    require_login,
    require_name,
    require_place,
    require_token,
    undone,
    upload,
)
from truetune.inference.parity import Parity, as_json, told
from truetune.inference.prompt_format import FILE as PROMPT_FORMAT
from truetune.listener import Listener, LogListener
from truetune.pipeline.delivery.card_facts import base_facts, card_facts, file_facts
from truetune.pipeline.delivery.local_card import license_here, read_card_facts
from truetune.pipeline.delivery.merge import Dtype, merge_run
from truetune.pipeline.passed_on import (
    as_json_bytes,
    is_weights,
    kind_of,
    passed_on,
    require_no_path,
    rewritten,
    text_of,
)
from truetune.pipeline.trained_records import Records, is_hub_name, read_records
from truetune.runs.checkpoints import require_as_written
from truetune.runs.trained import weights_folder


@dataclass(frozen=True, slots=True)
class Published:
    """A model on the hub, read back: `check` is the merge's, where the adapter was merged for it.

    `card` says whose README.md lies there: written by this upload, or kept as the user wrote it.
    """

    kind: Kind
    repository: str
    revision: str
    uploaded: Uploaded
    card: Literal["written", "kept"]
    check: Parity | None = None

    def as_json(self) -> dict[str, Any]:
        """As `truetune export --to hub --json` prints it."""
        found = asdict(self.uploaded)
        return {
            "path": found.pop("url"),
            "format": "hub",
            "kind": self.kind,
            "repository": self.repository,
            "revision": self.revision,
            **found,
            "verified": True,
            "card": self.card,
            "check": None if self.check is None else as_json(self.check),
        }

    def told(self) -> list[str]:
        """As `truetune export --to hub` prints it."""
        there, card = self.uploaded, "its card is yours" if self.card == "kept" else "a card was written"
        who = "private" if there.is_private else "public"
        return [
            f"on the hub: {there.url} ({who}, commit {there.commit[:8]}; {card})",
            f"sent: {len(there.sent)} files, {byte_size(there.bytes_sent)}; there already: {len(there.skipped)}; "
            "all read back",
        ]


@dataclass(frozen=True, slots=True)
class Publication:
    """What is asked for beside the model and its place: see `publish`."""

    merged: bool = False
    base_name: str | None = None
    license: str | None = None
    base_model: str | None = None
    dtype: Dtype = "auto"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"


def publish(
    name: str | Path, target: HubTarget, *, options: Publication | None = None, listener: Listener | None = None
) -> Published:
    """Uploads a run's adapter or model (or RUN@STEP, or a folder of weights or GGUF files) to the hub, with a card.

    Sent are weights, configuration, tokenizer, template, prompt format and the answers to our own prompts: never
    rows, optimizer states, commands or paths. `merged` sends base and adapter as one model, merged and checked as
    `merge` does it. `base_name` is the base's name on the hub, where it was a folder.

    Raises ConfigError or BackendError (no token) before anything is read; CheckpointError where the files are not as
    they were written; BackendError where the hub refuses, or holds something else afterwards.
    """
    options, listener = options or Publication(), listener or LogListener()
    require_name(target.repository)
    if options.base_name and not is_hub_name(options.base_name):
        raise ConfigError(f"--base-name {options.base_name} is no name on the hub", hint="write ORG/MODEL")
    require_token()
    folder = _folder(Path(name))
    require_as_written(folder)
    _require_kind(folder)
    require_login(target)
    return _Publishing(folder, target, options, listener).run(str(name))


class _Publishing:
    """One publication, of a folder that is as it was written."""

    def __init__(self, folder: Path, target: HubTarget, options: Publication, listener: Listener) -> None:
        self.folder = folder
        self.target = target
        self.options = options
        self.listener = listener
        self.records = read_records(folder)
        self.known = read_card_facts(folder)
        self.base = self._base()

    def run(self, name: str) -> Published:
        self._tell_base()
        require_place(self.target)
        with self._sent(name) as (folder, check):
            records = self.records if check is None else read_records(folder, trained=self.folder)
            files = self._files(folder, records)
            require_no_path(files, records)  # All that can be refused is, before the repository is made.
            opened = open_repository(self.target, self.listener)
            with undone(self.target, opened, self.listener):
                card = self._put_card(files, records, folder, check)
                require_no_path(files, records)
            uploaded = upload(files, self.target, opened=opened, listener=self.listener)
        self._tell_others(uploaded)
        return Published(self._kind, self.target.repository, self.target.revision, uploaded, card, check)

    @property
    def _kind(self) -> Kind:
        if self.options.merged:
            return "merged"
        return self.known.kind if self.known else kind_of(self.folder)

    def _base(self) -> BaseFacts | None:
        """The base as others know it: as it is named for this, else as the run, or a card of ours, has it."""
        into = self.options.base_model if is_hub_name(self.options.base_model or "") else None
        named = self.options.base_name or into
        if self.known and not self.records.run and not named:
            return self.known.base
        return base_facts(self.records, base_name=named)

    @contextmanager
    def _sent(self, name: str) -> Iterator[tuple[Path, Parity | None]]:
        """The folder to send from, and what the merge's check found, where there was one."""
        if not self.options.merged:
            yield self.folder, None
            return
        with TemporaryDirectory(prefix="truetune-") as place:
            options = self.options
            merged = merge_run(
                name,
                Path(place) / "merged",
                base_model=options.base_model,
                dtype=options.dtype,
                device=options.device,
                listener=self.listener,
            )
            yield merged.path, merged.check

    def _files(self, folder: Path, records: Records) -> dict[str, Content]:
        """What may be passed on of the folder, the base under the name that others know it by."""
        files: dict[str, Content] = {**passed_on(folder, self._kind)}
        if PROMPT_FORMAT not in files and records.prompt_format and "gguf" not in self._kind:
            files[PROMPT_FORMAT] = as_json_bytes(asdict(records.prompt_format))
        return dict(sorted(rewritten(files, self.base).items()))

    def _put_card(
        self, files: dict[str, Content], records: Records, folder: Path, check: Parity | None
    ) -> Literal["written", "kept"]:
        """Puts the card among the files; one that somebody wrote is kept, here as on the hub."""
        here = files.pop(CARD, None)
        if here is not None and not is_untouched(text_of(here)):
            files[CARD] = here
            return self._kept("the folder")
        there = read_card(self.target)
        if there is not None and not is_untouched(there):
            return self._kept("the hub")
        weights = {name: path for name, path in passed_on(folder, self._kind).items() if is_weights(name, self._kind)}
        facts = self._facts(records)
        named, reason = self._license()
        results = {**facts.results, **({} if check is None else {"check of the merge": told(check)})}
        facts = replace(facts, files=file_facts(weights), results=results, license=named, license_reason=reason)
        files[CARD] = sealed(model_card(facts)).encode()
        return "written"

    def _facts(self, records: Records) -> CardFacts:
        """What is known of the model: by its run, else by the card that was written when it was made of one."""
        repository = self.target.repository
        if self.known and records.run is None:
            return replace(self.known, repository=repository, kind=self._kind, base=self.base)
        return card_facts(records, self.base, repository=repository, kind=self._kind)

    def _kept(self, place: str) -> Literal["kept"]:
        self.listener.say(f"{CARD} in {place} is kept: it was written by hand")
        return "kept"

    def _license(self) -> tuple[str | None, str | None]:
        """The license, and where it is known from."""
        if self.options.license:
            return self.options.license, "named by whoever uploaded it"
        found, reason = license_here(self.records, self.base)
        if found:
            return found, reason
        if self.base and self.base.hub_id and (found := license_of(self.base.hub_id, self.base.revision)):
            return found, "the base model's, by its card"
        return (self.known.license, self.known.license_reason) if self.known else (None, None)

    def _tell_base(self) -> None:
        if self._kind == "adapter" and (self.base is None or self.base.hub_id is None):
            known = self.base.name if self.base else "not known"
            self.listener.warn(
                f"the base model is {known}, which nobody else can load by that name: --base-name ORG/MODEL names it"
            )

    def _tell_others(self, uploaded: Uploaded) -> None:
        other = {"adapter": ["config.json"], "gguf": [], "gguf-adapter": []}.get(self._kind, ["adapter_config.json"])
        mixed = [name for name in uploaded.others if name in other or name.endswith(".safetensors")]
        if mixed:
            self.listener.warn(
                f"{self.target.repository} also holds {', '.join(mixed)}, from before: libraries may load these "
                "instead; delete them there, or upload to a repository or --revision of its own"
            )


# --- what can be refused at once --------------------------------------------------------------------------


def _folder(path: Path) -> Path:
    """The folder to send: the weights that the name stands for, or one with GGUF files."""
    if path.suffix == ".gguf" and path.is_file():
        raise ConfigError(
            f"{path} is a file", hint=f"give its folder, all GGUF files of which are sent: {path.parent}"
        )
    if path.is_dir() and any(path.glob("*.gguf")):
        return path
    return weights_folder(path)


def _require_kind(folder: Path) -> None:
    if not any(is_weights(path.name, kind_of(folder)) for path in folder.iterdir()):
        pickled = [path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth")]
        raise CheckpointError(
            f"{folder} holds no weights in safetensors" + (f", but {pickled[0]}" if pickled else ""),
            hint="load it, and save it with save_pretrained"
            if pickled
            else "give a finished run, or a folder of weights",
        )
