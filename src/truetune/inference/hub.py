"""Uploads to the Hugging Face hub: one commit of what is missing there, and then read back."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from truetune.errors import BackendError, ConfigError, TruetuneError, first_line
from truetune.figures import byte_size
from truetune.listener import Listener
from truetune.runs.checkpoints import sha256
from truetune.runs.directory import public

Content = Path | bytes
"""A file on this machine, or what one is to hold."""

CARD = "README.md"
_AGAIN = "give the same command again: what is there already is not sent again"
_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_WEIGHTS = (".safetensors", ".gguf")
_HUBS_OWN = {".gitattributes"}
_READ_BACK = (CARD, "adapter_config.json", "config.json", "Modelfile")
"""Small files that are fetched again, as whoever downloads the model would."""


@dataclass(frozen=True, slots=True)
class HubTarget:
    """Where an upload goes: a repository of models (org/name), and the branch in it."""

    repository: str
    is_public: bool = False
    revision: str = "main"


@dataclass(frozen=True, slots=True)
class Uploaded:
    """What lies at `url` now, as read back: `sent` files came by this upload, `skipped` ones were there as they are.

    `others` are files that were there before and belong to nobody's upload but their own.
    """

    url: str
    commit: str
    is_private: bool
    sent: tuple[str, ...]
    skipped: tuple[str, ...]
    others: tuple[str, ...]
    bytes_sent: int


def require_name(repository: str) -> None:
    """ConfigError for what is no repository's name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ConfigError(f"-o {repository}: {first_line(error)}", hint="write USER/NAME") from error
    if not _NAME.fullmatch(repository):
        raise ConfigError(f"-o {repository} names no repository of a hub", hint="write USER/NAME")


def require_token() -> None:
    """BackendError where there is no token to upload with, or none is to be sent."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise BackendError("HF_HUB_OFFLINE forbids to ask the hub", hint="unset it to upload")
    if not get_token():
        raise BackendError(
            "there is no token for the hub",
            hint="log in with `hf auth login`, or set HF_TOKEN to a token that may write",
        )


def require_login(target: HubTarget) -> None:
    """BackendError where the hub does not take the token, or the token may only read."""
    from huggingface_hub import HfApi

    with _explained(target.repository):
        who = HfApi().whoami()
    token = (who.get("auth") or {}).get("accessToken") or {}
    if token.get("role") == "read":
        raise BackendError(
            f"the hub's token of {who.get('name')} may only read",
            hint="make one that may write, and set HF_TOKEN to it",
        )


@dataclass(frozen=True, slots=True)
class Opened:
    """A repository that can be written to; `is_new` where it was made for this upload."""

    is_private: bool
    is_new: bool


def require_place(target: HubTarget) -> None:
    """BackendError where a repository that was to be private is there, and public. Makes nothing."""
    from huggingface_hub import HfApi

    hub = HfApi()
    with _explained(target.repository):
        if hub.repo_exists(target.repository):
            _require_private(target, is_private=bool(hub.model_info(target.repository).private))


def open_repository(target: HubTarget, listener: Listener) -> Opened:
    """Makes the repository and its branch where they are missing.

    BackendError before anything is sent where a repository that was to be private is public.
    """
    from huggingface_hub import HfApi

    hub = HfApi()
    with _explained(target.repository):
        is_new = _is_made(hub, target)
        opened = Opened(bool(hub.model_info(target.repository).private), is_new)
    with undone(target, opened, listener), _explained(target.repository):
        _require_private(target, is_private=opened.is_private)
        if target.revision != "main":
            hub.create_branch(target.repository, branch=target.revision, exist_ok=True)
    if target.is_public and opened.is_private:
        listener.warn(f"{target.repository} was there, and stays private: make it public on its page")
    return opened


def _is_made(hub: Any, target: HubTarget) -> bool:
    """True if the repository was made now; False where it was there."""
    from huggingface_hub import errors

    try:
        hub.create_repo(target.repository, private=not target.is_public)
    except errors.HfHubHTTPError:  # There already, or refused: the second call tells which.
        hub.create_repo(target.repository, private=not target.is_public, exist_ok=True)
        return False
    return True


def _require_private(target: HubTarget, *, is_private: bool) -> None:
    if not target.is_public and not is_private:
        raise BackendError(
            f"{target.repository} is public: what is sent there, everybody can read",
            hint="allow it with --public, or name another repository",
        )


@contextmanager
def undone(target: HubTarget, opened: Opened, listener: Listener) -> Iterator[None]:
    """Where what is done in here, before any commit, fails, a repository that was made for it is removed."""
    try:
        yield
    except TruetuneError:
        if opened.is_new:
            _remove(target, listener)
        raise


def _remove(target: HubTarget, listener: Listener) -> None:
    from huggingface_hub import HfApi

    try:
        with _explained(target.repository):
            HfApi().delete_repo(target.repository)
    except BackendError as error:
        listener.warn(f"{target.repository} was made, is empty, and could not be removed: {error.message}")
    else:
        listener.say(f"{target.repository} was made for this, and is removed again: nothing had arrived there")


def read_card(target: HubTarget) -> str | None:
    """The card that lies there; None where there is none."""
    if CARD not in _listed(target, target.revision):
        return None
    with TemporaryDirectory() as folder, _explained(target.repository):
        return _fetched(target, CARD, target.revision, Path(folder)).decode("utf-8", errors="replace")


def license_of(model: str, revision: str | None = None) -> str | None:
    """The license that a model's card on the hub names; None where none is named, or the hub does not say."""
    from huggingface_hub import HfApi, errors

    try:
        card = HfApi().model_info(model, revision=revision).card_data
    except (errors.HfHubHTTPError, errors.HFValidationError, errors.OfflineModeIsEnabled, errors.HTTPError, OSError):
        return None
    named = card.get("license") if card else None
    return named if isinstance(named, str) else None


def upload(files: Mapping[str, Content], target: HubTarget, *, opened: Opened, listener: Listener) -> Uploaded:
    """Sends the files that are not there as they are, in one commit, and reads all of them back.

    Broken off, it can be called again: weights that had arrived are not sent again. A repository that was made for
    it is removed where none had. BackendError if the hub refuses, cannot be reached, or holds something else
    afterwards.
    """
    wanted = {name: _Digest(content) for name, content in files.items()}
    with undone(target, opened, listener):
        there = _listed(target, target.revision)
    missing = [name for name, digest in wanted.items() if not digest.is_of(there.get(name))]
    size = sum(wanted[name].size for name in missing)
    listener.say(
        f"uploading {len(missing)} of {len(files)} files ({byte_size(size)}) to {target.repository}"
        + (f", branch {target.revision}" if target.revision != "main" else "")
        + (f"; {len(files) - len(missing)} are there already" if len(missing) < len(files) else "")
    )
    commit = _commit({name: files[name] for name in missing}, target, opened, listener)
    found = _listed(target, commit)
    _verify(files, wanted, found, commit, target)
    listener.say(f"read back: all {len(files)} files on the hub are the ones here, by size and hash")
    return Uploaded(
        url=_url(target),
        commit=commit,
        is_private=opened.is_private,
        sent=tuple(missing),
        skipped=tuple(name for name in files if name not in missing),
        others=tuple(sorted(found.keys() - files.keys() - _HUBS_OWN)),
        bytes_sent=size,
    )


# --- what lies where --------------------------------------------------------------------------------------


class _Digest:
    """A file's size and hashes, taken when asked for: the hub knows small files by git's, large ones by SHA-256."""

    def __init__(self, content: Content) -> None:
        self.content = content
        self.size = len(content) if isinstance(content, bytes) else content.stat().st_size

    def is_of(self, file: Any) -> bool:
        """True if the hub's entry (a RepoFile) is of the same content."""
        if file is None or file.size != self.size:
            return False
        return bool(file.lfs.sha256 == self._sha256 if file.lfs else file.blob_id == self._git)

    @cached_property
    def _sha256(self) -> str:
        content = self.content
        return hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else sha256(content)

    @cached_property
    def _git(self) -> str:
        return _git_hash(self.content, self.size)


def _git_hash(content: Content, size: int) -> str:
    digest = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    if isinstance(content, bytes):
        digest.update(content)
        return digest.hexdigest()
    with content.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _listed(target: HubTarget, revision: str) -> dict[str, Any]:
    """The files of the repository at a revision, as the hub lists them."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    with _explained(target.repository):
        tree = HfApi().list_repo_tree(target.repository, recursive=True, revision=revision)
        return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}


def _commit(files: Mapping[str, Content], target: HubTarget, opened: Opened, listener: Listener) -> str:
    """The commit after the files were sent; the newest where none is. `upload_folder` would make several.

    Weights go first, file by file, so that each is told, and not sent again if what follows breaks off.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    if not files:
        with _explained(target.repository):
            return str(HfApi().model_info(target.repository, revision=target.revision).sha)
    additions = [CommitOperationAdd(name, content) for name, content in files.items()]
    _send_weights(additions, target, opened, listener)
    with _explained(target.repository):
        made = HfApi().create_commit(
            target.repository, additions, commit_message="Upload with truetune", revision=target.revision
        )
        return str(made.oid)


def _send_weights(additions: Sequence[Any], target: HubTarget, opened: Opened, listener: Listener) -> None:
    """Sends the files of weights, one after the other. What has arrived stays, for the next time."""
    from huggingface_hub import HfApi

    weights = [each for each in additions if each.path_in_repo.endswith(_WEIGHTS)]
    for done, each in enumerate(weights, start=1):
        there = opened if done == 1 else replace(opened, is_new=False)
        with undone(target, there, listener), _explained(target.repository):
            HfApi().preupload_lfs_files(target.repository, [each], revision=target.revision, free_memory=False)
        listener.progress("files of weights sent", done, len(weights))


def _verify(
    files: Mapping[str, Content],
    wanted: Mapping[str, _Digest],
    found: Mapping[str, Any],
    commit: str,
    target: HubTarget,
) -> None:
    for name, digest in wanted.items():
        if not digest.is_of(found.get(name)):
            what = "is not there" if name not in found else "is not what was sent (its size or hash differs)"
            raise BackendError(f"{target.repository} was uploaded, and {name} {what}", hint=_AGAIN)
    with TemporaryDirectory() as folder, _explained(target.repository):
        for name in _READ_BACK:
            if name in files and _fetched(target, name, commit, Path(folder)) != _bytes(files[name]):
                raise BackendError(
                    f"{target.repository} was uploaded, and {name} as it is downloaded is not what was sent",
                    hint=_AGAIN,
                )


def _fetched(target: HubTarget, name: str, revision: str, folder: Path) -> bytes:
    from huggingface_hub import hf_hub_download

    path = hf_hub_download(target.repository, name, revision=revision, local_dir=folder, force_download=True)
    return Path(path).read_bytes()


def _bytes(content: Content) -> bytes:
    return content if isinstance(content, bytes) else content.read_bytes()


def _url(target: HubTarget) -> str:
    from huggingface_hub import constants

    page = f"{constants.ENDPOINT}/{target.repository}"
    return page if target.revision == "main" else f"{page}/tree/{target.revision}"


# --- what goes wrong --------------------------------------------------------------------------------------


@contextmanager
def _explained(repository: str) -> Iterator[None]:
    """What the hub's client raises, as a BackendError that says what to do."""
    from huggingface_hub import errors

    try:
        yield
    except errors.OfflineModeIsEnabled as error:
        raise BackendError("HF_HUB_OFFLINE forbids to ask the hub", hint="unset it to upload") from error
    except errors.HfHubHTTPError as error:
        raise _refusal(repository, error) from error
    except (errors.HTTPError, OSError, RuntimeError) as error:  # RuntimeError: hf_xet's
        raise BackendError(f"{repository}: the upload broke off: {_said(error)}", hint=_AGAIN) from error
    except ValueError as error:
        raise BackendError(f"{repository}: the hub does not take it: {_said(error)}") from error


def _refusal(repository: str, error: Any) -> BackendError:
    match error.response.status_code:
        case 401:
            hint = "log in with `hf auth login`, or set HF_TOKEN to a token that is valid and may write"
            return BackendError(f"{repository}: the hub does not accept the token", hint=hint)
        case 403:
            hint = "use a token that may write there, or a repository of your own: -o USER/NAME"
            return BackendError(f"{repository}: the token may not write there", hint=hint)
        case status if status >= 500 or status == 429:
            return BackendError(f"{repository}: the hub fails ({status}): {_said(error)}", hint=_AGAIN)
        case _:
            return BackendError(f"{repository}: the hub refuses: {_said(error)}")


def _said(error: BaseException) -> str:
    """The library's reason in one line, without anything that looks like a token."""
    return public([first_line(error)])[0]
