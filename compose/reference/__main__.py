"""
`python -m everbus.compose.reference FOLDER`: write the reference pages.
"""

import sys
from pathlib import Path

from everbus.compose.reference.pages import PAGES


def main(folder: Path) -> None:
    """
    Write every page into *folder*.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        (folder / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/reference"))
