"""The files of the page, read once at the start."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent / "assets"
PAGE = "studio.html"
# The page names the folder of its files by this word.
FOLDER_WORD = b"@assets"
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}


@dataclass(frozen=True, slots=True)
class Asset:
    """A file that the page loads."""

    content: bytes
    media_type: str


@dataclass(frozen=True, slots=True)
class Assets:
    """The page and its files by their paths.

    `version` changes with any of the files and is a part of their addresses. The modules of the
    page import each other by relative paths, so one changed file gives all of them new addresses,
    and a browser never runs files of two versions together.
    """

    page: bytes
    files: dict[str, Asset]
    version: str


def read_assets(folder: Path = HERE) -> Assets:
    """Read all files of the page."""
    files, digest = {}, hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.suffix not in MEDIA_TYPES:
            continue
        name, content = file.relative_to(folder).as_posix(), file.read_bytes()
        files[name] = Asset(content, MEDIA_TYPES[file.suffix])
        digest.update(name.encode() + b"\0" + hashlib.sha256(content).digest())
    version = digest.hexdigest()[:12]
    page = files.pop(PAGE).content.replace(FOLDER_WORD, f"studio/{version}".encode())
    return Assets(page, files, version)
