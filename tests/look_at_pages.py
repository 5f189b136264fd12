"""`make pages`: every kind of page from small made-up results, and pictures of each to look at.

Widths of 1280 and 390 pixels, light and dark, by headless Chromium. Numbers on these pages mean nothing.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.reports.test_pages import PAGES

WIDTHS = (1280, 390)
THEMES = {"light": 1, "dark": 0}  # Blink's preferred colour schemes


def main(folder: Path) -> None:
    """Writes NAME.html and NAME-WIDTH-THEME.png for every kind of page."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, build in PAGES.items():
        with tempfile.TemporaryDirectory() as scratch:
            (folder / f"{name}.html").write_text(build(Path(scratch) / "run", "VCReg, alpha 0.64"), encoding="utf-8")
        for width in WIDTHS:
            for theme, scheme in THEMES.items():
                picture = folder / f"{name}-{width}-{theme}.png"
                command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
                command += [f"--blink-settings=preferredColorScheme={scheme}", f"--window-size={width},6000"]
                address = (folder / f"{name}.html").resolve().as_uri()
                subprocess.run([*command, f"--screenshot={picture}", address], check=True, capture_output=True)
                print(picture)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
