"""A real site for tests: the documentation of CMake as Debian packages it, made by Sphinx.

3,895 files: 1,936 pages, their sources as text, pictures, a chain of style sheets that import each other,
scripts of up to 1 MB, names with spaces. Its law: knows the package and its oddities, nothing of the server.
"""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Collection
from pathlib import Path

PACKAGED = Path("/usr/share/doc/cmake-data/html")

NOT_LINKED = frozenset({"_static/minus.png", "_static/plus.png", "_static/sidebar.js", "objects.inv"})
"""What no page refers to, so that no crawler finds it."""


def lay_out(directory: Path, pages: Collection[str] | None = None) -> Path:
    """Copy the site to `directory` and return that; modification times are kept.

    :param pages: of the pages these only, without their sources, and all that they are made up of
    Debian has replaced the scripts that packages share by symbolic links, and compressed what is offered for
    download: both are undone, since the former lead out of the site, and the latter breaks a link of a page.
    """
    assert (PACKAGED / "index.html").exists(), (
        f"there is no site in {PACKAGED}: scripts/test installs it (apt-get install cmake-doc)"
    )

    def left_out(place: str, names: list[str]) -> set[str]:
        if pages is None:
            return set()
        beside = Path(place).relative_to(PACKAGED)
        return {
            name
            for name in names
            if name == "_sources" or (name.endswith(".html") and str(beside / name) not in pages)
        }

    shutil.copytree(PACKAGED, directory, symlinks=False, ignore=left_out)
    for packed in directory.glob("_downloads/*/*.gz"):
        plain = packed.with_suffix("")
        plain.write_bytes(gzip.decompress(packed.read_bytes()))
        shutil.copystat(packed, plain)
        packed.unlink()
    return directory


def files_of(directory: Path) -> set[str]:
    """The paths of all files below a directory, relative to it."""
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}
