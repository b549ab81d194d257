"""Data sets of the Hugging Face hub: which of their files hold the rows asked for, fetched as they are.

`datasets` would choose the same files, and then rewrite what is in them. The data card (README.md) says which files
belong to which configuration and split, else their names do.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truetune.data.sources import data_files_among, is_data_file, matching
from truetune.data.splits import choose_split, split_word
from truetune.errors import DataError

_CARD = "README.md"
_TIMEOUT = 10.0
_RENAMED = {"databricks/dolly-15k": "databricks/databricks-dolly-15k"}


@dataclass(frozen=True, slots=True)
class Fetched:
    """Where the files of rows are on this machine, by the names that findings give them."""

    files: Mapping[str, Path]
    notices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Repository:
    """A data set at one commit, and how its files are had."""

    name: str
    commit: str
    files: tuple[str, ...]

    def fetch(self, file: str) -> Path:
        from huggingface_hub import hf_hub_download

        return Path(
            hf_hub_download(self.name, file, repo_type="dataset", revision=self.commit, etag_timeout=_TIMEOUT)
        )


def fetch_files(
    name: str, *, revision: str | None, subset: str | None, split: str | None, data_files: str | None
) -> Fetched:
    """The files of one split of a hub data set, from the cache or the network.

    Raises DataError, within seconds, for what cannot be found or reached.
    """
    with _explained(name, revision):
        repository = _open(name, revision)
        chosen, split = _choose(repository, subset=subset, split=split, data_files=data_files)
        files = {f"{name}/{file}": repository.fetch(file) for file in chosen}
    what = f"split {split}" if split else "all rows"
    return Fetched(
        files, (f"{name}: {what}, {len(files)} of {len(repository.files)} files, at {repository.commit[:8]}",)
    )


def _open(name: str, revision: str | None) -> _Repository:
    """The commit and the list of all its files; offline, as an earlier run has had them."""
    from huggingface_hub import get_cached_repo_tree, snapshot_download

    folder = snapshot_download(
        name,
        repo_type="dataset",
        revision=revision,
        allow_patterns=[_CARD, ".gitattributes"],  # Every repository has one of them: the client warns of none.
        etag_timeout=_TIMEOUT,
        tqdm_class=no_bar(),
    )
    commit = Path(folder).name
    tree = get_cached_repo_tree(name, repo_type="dataset", revision=commit)
    return _Repository(name, commit, tuple(sorted(file.path for file in tree)))


def no_bar() -> type[Any]:
    """A progress bar that is not shown: two small files need none."""
    from huggingface_hub.utils import tqdm

    class NoBar(tqdm):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **{**settings, "disable": True})

    return NoBar


def _choose(
    repository: _Repository, *, subset: str | None, split: str | None, data_files: str | None
) -> tuple[Sequence[str], str | None]:
    """The files of the split, and its name if they have one."""
    place = repository.name
    if data_files:
        matched = matching(repository.files, data_files)
        if not matched:
            raise DataError(f"{place}: no file matches data_files {data_files!r}", hint=_there(repository.files))
        chosen = choose_split(_readable(matched, place), split=split, place=place)
        return chosen.names, chosen.split
    configuration = _configuration(repository, subset)
    if configuration and "data_files" in configuration:
        by_split = _card_files(repository.files, configuration)
        name = _split_key(by_split, split, place)
        return _readable(by_split[name], place), name
    files = _within(repository.files, configuration, subset, place)
    chosen = choose_split(_readable(files, place), split=split, place=place)
    return chosen.names, chosen.split


def _readable(files: Sequence[str], place: str) -> list[str]:
    found = data_files_among(files)
    if found:
        return found
    if any(file.endswith(".py") for file in files):
        raise DataError(
            f"{place}: made by a script, which is not run",
            hint="its rows as files may be had with revision: refs/convert/parquet",
        )
    raise DataError(f"{place}: no file of rows in it", hint=_there(files))


def _there(files: Sequence[str]) -> str:
    visible = [file for file in files if is_data_file(file)] or list(files)
    return f"there are {', '.join(visible[:5])}" if visible else "there are no files"


def _configuration(repository: _Repository, subset: str | None) -> Mapping[str, Any] | None:
    """The data card's configuration of that name, else its default or only one; None if it has none."""
    configurations = _card_configurations(repository)
    names = [str(each.get("config_name", "default")) for each in configurations]
    if not names:
        return None
    default = [name for name, each in zip(names, configurations, strict=True) if each.get("default")]
    wanted = subset or next(iter([*default, *(name for name in names if name == "default")]), None)
    if wanted is None and len(names) == 1:
        wanted = names[0]
    if wanted not in names:
        missing = f"no subset {subset!r}" if subset else "a subset must be named"
        raise DataError(f"{repository.name}: {missing}; there are {', '.join(names)}", hint=f"subset: {names[0]}")
    return configurations[names.index(wanted)]


def _card_configurations(repository: _Repository) -> list[Mapping[str, Any]]:
    from huggingface_hub.repocard import metadata_load

    if _CARD not in repository.files:
        return []
    card = metadata_load(repository.fetch(_CARD))
    found = (card or {}).get("configs") or []
    return [each for each in found if isinstance(each, Mapping)]


def _card_files(files: Sequence[str], configuration: Mapping[str, Any]) -> dict[str, list[str]]:
    """The files of each split, as a card lists them: a pattern, several, or a path for each split."""
    listed = configuration["data_files"]
    entries = listed if isinstance(listed, list) else [listed]
    folder = str(configuration.get("data_dir") or "").strip("/")
    by_split: dict[str, list[str]] = {}
    for entry in entries:
        split, paths = (
            (entry.get("split", "train"), entry.get("path")) if isinstance(entry, Mapping) else ("train", entry)
        )
        for pattern in paths if isinstance(paths, list) else [paths]:
            whole = f"{folder}/{pattern}" if folder else str(pattern)
            by_split.setdefault(str(split), []).extend(matching(files, whole))
    return by_split


def _split_key(by_split: Mapping[str, Sequence[str]], split: str | None, place: str) -> str:
    if split is None and len(by_split) == 1:
        return next(iter(by_split))
    wanted = split or "train"
    same = (name for name in by_split if split_word(name) and split_word(name) == split_word(wanted))
    found = wanted if wanted in by_split else next(same, None)
    if found is None:
        names = list(by_split)
        raise DataError(f"{place}: no split {wanted!r}; there are {', '.join(names)}", hint=f"split: {names[0]}")
    return found


def _within(
    files: Sequence[str], configuration: Mapping[str, Any] | None, subset: str | None, place: str
) -> Sequence[str]:
    """The files in a configuration's folder; without a card a subset is a folder's name."""
    folder = str((configuration or {}).get("data_dir") or ("" if configuration else subset or "")).strip("/")
    if not folder:
        return files
    found = [file for file in files if file.startswith(f"{folder}/")]
    if not found:
        raise DataError(f"{place}: no subset {folder!r}: no folder has that name", hint=_there(files))
    return found


@contextmanager
def _explained(name: str, revision: str | None) -> Iterator[None]:
    """What the hub's client raises, as a DataError that says what to do."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise DataError(
            f"{name} is gated: its authors must let you in",
            hint=f"ask at https://huggingface.co/datasets/{name}, then set HF_TOKEN to your token",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise DataError(f"no data set {name} on the hub, or a private one", hint=_hint_for(name)) from error
    except errors.RevisionNotFoundError as error:
        raise DataError(f"{name} has no revision {revision!r}", hint="name a branch, a tag or a commit") from error
    except errors.HFValidationError as error:
        raise DataError(f"{name} is neither a path nor a hub id", hint="a hub id looks like org/name") from error
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, errors.CachedRepoTreeNotFoundError) as error:
        raise _unreachable(name, error) from error
    except errors.HfHubHTTPError as error:
        raise DataError(f"{name}: the hub refuses: {_first_line(error)}", hint=_hint_for(name)) from error
    except (errors.HTTPError, OSError) as error:
        raise _unreachable(name, error) from error


def _unreachable(name: str, error: Exception) -> DataError:
    from huggingface_hub import constants

    renamed = _RENAMED.get(name, name)
    elsewhere = f"hf download {renamed} --repo-type dataset --local-dir {renamed.rpartition('/')[2]}"
    remedy = f"or give a local path{_rename(name)}: where there is a network, {elsewhere} fetches it"
    if constants.HF_HUB_OFFLINE:
        return DataError(
            f"{name}, or the part asked for, is not in the cache, and HF_HUB_OFFLINE forbids to ask the hub",
            hint=f"unset it once, {remedy}",
        )
    return DataError(
        f"{name}: the hub at {constants.ENDPOINT} cannot be reached: {_first_line(error)}",
        hint=f"check the connection, {remedy}",
    )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].removeprefix("Got: ") or type(error).__name__


def _hint_for(name: str) -> str:
    if name in _RENAMED:
        return f"its name is {_RENAMED[name]}"
    return "check the spelling; a private one needs HF_TOKEN"


def _rename(name: str) -> str:
    return f" (and its name is {_RENAMED[name]})" if name in _RENAMED else ""
