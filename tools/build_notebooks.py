"""Make a notebook of every example script: python tools/build_notebooks.py

The scripts are the source, in percent format: `# %% [markdown]` starts a text cell, `# %%` a code cell. The notebooks
hold no outputs. Run this after editing an example; a test checks that the notebooks are current.
"""

import json
import re
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def split_cells(script: str) -> list[tuple[str, str]]:
    """The cells of a percent-format script, as pairs of a type ("markdown" or "code") and the text."""
    parts = re.split(r"^# %%( \[markdown\])?\n", script, flags=re.MULTILINE)
    if parts[0].strip():
        raise ValueError("the script must begin with '# %%' or '# %% [markdown]'")
    cells = []
    for marker, body in zip(parts[1::2], parts[2::2], strict=True):
        text = body.strip("\n")
        cells.append(("markdown", re.sub(r"^# ?", "", text, flags=re.MULTILINE)) if marker else ("code", text))
    return cells


def build_notebook(script: str) -> str:
    """The notebook (nbformat 4.5) of a percent-format script, as JSON text."""
    cells = []
    for number, (kind, text) in enumerate(split_cells(script)):
        cell = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": text.splitlines(keepends=True)}
        cells.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return json.dumps({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}, indent=1) + "\n"


if __name__ == "__main__":
    for path in sorted(EXAMPLES.glob("*.py")):
        path.with_suffix(".ipynb").write_text(build_notebook(path.read_text(encoding="utf-8")), encoding="utf-8")
        print(path.with_suffix(".ipynb"))
