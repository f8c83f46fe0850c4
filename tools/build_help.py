"""Store the settings that the help of the command lists, so that it need not import them: python tools/build_help.py

Run this after changing a setting, its default or its description; a test checks that the table is current.
"""

import json
from pathlib import Path

import data2vec
from data2vec.recipe.describe import describe_settings

TABLE = Path(data2vec.__file__).parent / "recipes" / "settings.json"


def build_help() -> str:
    """The table as JSON text."""
    return json.dumps(describe_settings(), ensure_ascii=False, indent=0) + "\n"


if __name__ == "__main__":
    TABLE.write_text(build_help(), encoding="utf-8")
    print(TABLE)
