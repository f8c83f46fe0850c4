"""`data2vec adapter`: writes the file that lets an evaluation harness load our models."""

from importlib import resources
from pathlib import Path

from data2vec.atomic_io import write_text
from data2vec.errors import UserError, did_you_mean, quoted

ADAPTERS = ("hear", "mteb", "s3prl", "xares")
"""The harnesses, each with the file of its name beside this one; they need data2vec and the harness, nothing else."""


def write_adapter(name: str, folder: str | Path) -> Path:
    """Write the adapter `name` to `folder`/data2vec_`name`.py, and return this path; its first lines say how it is used.

    Raises UserError for an unknown name, and if the file exists with other content."""
    if name not in ADAPTERS:
        raise UserError(f"adapter: {quoted(name)} is not one of {', '.join(ADAPTERS)}{did_you_mean(name, ADAPTERS)}")
    text = resources.files("data2vec.interop.adapters").joinpath(f"{name}.py").read_text(encoding="utf-8")
    path = Path(folder) / f"data2vec_{name}.py"
    if path.exists() and path.read_text(encoding="utf-8", errors="replace") != text:
        raise UserError(f"{path}: exists with other content, perhaps your changes; remove it or choose another folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return path
