"""Folders that belong to this user alone, on a machine that others may use too.

A folder in a shared place has a name that others can guess, so somebody may have made it first.
What is found there is therefore checked before it is used. A link is refused, and so is a folder
that belongs to somebody else.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

FOLDER_MODE = 0o700


class FolderRefused(ValueError):
    """A working folder cannot be trusted or made. Says which, why, and which setting to change."""


def make_folder(path: Path, setting: str) -> None:
    """Make `path` and its parents unless they are there; a new one is this user's alone.

    Raises:
        FolderRefused: it cannot be made.
    """
    try:
        path.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    except OSError as exc:
        why = os.strerror(exc.errno or 0)
        raise FolderRefused(
            f"The folder {path} cannot be made ({why}). Set {setting} to another one."
        ) from exc


def require_own(path: Path, setting: str) -> None:
    """Check a folder, if there is one, without following a link.

    Raises:
        FolderRefused: it is a link, not a folder, or somebody else's.
    """
    advice = f"Remove it, or set {setting} to a folder of your own."
    try:
        found = path.lstat()
    except OSError:  # not there, or out of reach: making it says why
        return
    if not stat.S_ISDIR(found.st_mode):
        raise FolderRefused(f"The folder {path} is a link or no folder. {advice}")
    if found.st_uid != os.geteuid():
        raise FolderRefused(f"The folder {path} belongs to user {found.st_uid}. {advice}")


def require_makeable(path: Path, setting: str) -> None:
    """Check that `path` can be written to, or made if it is not there yet.

    Raises:
        FolderRefused: it cannot.
    """
    nearest = next(folder for folder in (path, *path.parents) if os.path.lexists(folder))
    if not nearest.is_dir():
        why = f"{nearest} is not a folder"
    elif not os.access(nearest, os.W_OK | os.X_OK):
        why = f"{nearest} cannot be written to"
    else:
        return
    raise FolderRefused(f"The folder {path} cannot be used: {why}. Set {setting} to another one.")


def private_folder(path: Path, setting: str) -> None:
    """Make `path` a folder that only this user may enter; its parents must be there.

    `setting` names what an operator changes to use another folder.

    Raises:
        FolderRefused: it is a link, not a folder, somebody else's, or cannot be made.
    """
    require_own(path, setting)
    try:
        path.mkdir(mode=FOLDER_MODE, exist_ok=True)
        require_own(path, setting)  # somebody may have been quicker
        if stat.S_IMODE(path.lstat().st_mode) != FOLDER_MODE:
            path.chmod(FOLDER_MODE)
    except OSError as exc:
        why = os.strerror(exc.errno or 0)
        raise FolderRefused(
            f"The folder {path} cannot be made ({why}). Set {setting} to another one."
        ) from exc
