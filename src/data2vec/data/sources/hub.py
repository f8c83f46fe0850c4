"""Names of models and datasets on the Hugging Face hub, as distinct from paths."""

import re
from pathlib import Path
from typing import Literal

from data2vec.errors import UserError
from data2vec.local_path import local_path

PREFIX = "hf://"
_NAME = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(:[\w.-]+)?(@[\w./-]+)?")


def hub_name(text: str, kind: Literal["model", "dataset"]) -> str | None:
    """The name on the hub that is meant by "hf://owner/name", or by "owner/name" if a copy of it is in the cache; else None.

    Anything else is a path, so that nothing that is mistyped is sent to the hub. A dataset may be "owner/name:config", and both
    may end in "@revision" (`split_revision`)."""
    name = text.removeprefix(PREFIX)
    match = _NAME.fullmatch(name)
    if match is None or (kind == "model" and match[2]):
        return None
    return name if text.startswith(PREFIX) or _is_cached(match[1], kind) else None


def split_revision(name: str) -> tuple[str, str | None]:
    """A name on the hub without its revision, and the revision: a commit, tag or branch; None if it has none."""
    name, _, revision = name.partition("@")
    return name, revision or None


def require_dataset(path: str) -> None:
    """Raise UserError for a dataset that is neither a path that exists, nor a URL, nor a name on the hub, and for an empty
    folder."""
    local = local_path(path.removeprefix("file://"))
    if local.is_dir() and not any(local.iterdir()):
        raise UserError(f"{path}: is an empty folder; name one with data")
    if not local.exists() and "://" not in path and hub_name(path, "dataset") is None:
        raise no_such_path(path)


def no_such_path(text: str) -> UserError:
    """The error for a path that does not exist; it says how a name on the hub is written, if this may be one."""
    hint = f"; for the hub, write {PREFIX}{text}" if _NAME.fullmatch(text) else ""
    return UserError(f"{text}: there is no such folder or file{hint}")


def _is_cached(name: str, kind: str) -> bool:
    from huggingface_hub import constants

    owner, _, rest = name.partition("/")
    places = [Path(constants.HF_HUB_CACHE) / f"{kind}s--{owner}--{rest}"]
    if kind == "dataset":
        import datasets

        places.append(Path(datasets.config.HF_DATASETS_CACHE) / f"{owner}___{rest}")
    return any(place.is_dir() for place in places)
