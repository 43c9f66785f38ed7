"""The working folders: where they are, whether they can be trusted, and how they are made."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from serve_app.config.environment import Environment
from serve_app.config.settings import AppArgs
from serve_app.private_folders import (
    make_folder,
    private_folder,
    require_makeable,
    require_own,
)


@dataclass(frozen=True, slots=True)
class Folders:
    """Where this node keeps its files. `scratch` and `streams` hold one folder per attempt and
    nothing else.
    """

    scratch: Path
    streams: Path
    results: Path
    state: Path
    avatars: Path
    uploads: Path


def check_folders(args: AppArgs, env: Environment) -> None:
    """Check the working folders that are there already, and make nothing.

    Raises:
        FolderRefused: one of them cannot be trusted. The sentence names the setting.
    """
    folders = _folders(args, env)
    check_root(folders.scratch)
    check_root(folders.streams)
    require_own(folders.state.resolve(), "state_dir")
    require_makeable(folders.scratch, "work_dir (MUSETALK_WORKDIR)")
    if env.b2_bucket is None:
        require_makeable(folders.results, "result_dir (MUSETALK_RESULT_DIR)")
    require_makeable(folders.state, "state_dir")
    if args.avatars.max_gb:
        require_own(folders.avatars, "avatars.folder")
        require_makeable(folders.avatars, "avatars.folder")
    if args.uploads.max_gb:
        require_own(folders.uploads, UPLOADS_SETTING)
        require_makeable(folders.uploads, UPLOADS_SETTING)


def make_folders(args: AppArgs, env: Environment) -> Folders:
    """Create the working folders; relative ones are taken from the working directory.

    Raises:
        FolderRefused: one of them cannot be trusted or made. The sentence names the setting.
    """
    folders = _folders(args, env)
    make_root(folders.scratch)
    make_root(folders.streams)
    if not folders.results.is_dir():
        # An existing one keeps its mode, since it may be shared. The files in it are private.
        make_folder(folders.results, "result_dir (MUSETALK_RESULT_DIR)")
    make_folder(folders.state.parent, "state_dir")
    # The registry holds signed addresses. A link that the operator made is followed.
    private_folder(folders.state.resolve(), "state_dir")
    make_folder(folders.avatars.parent, "avatars.folder")
    make_folder(folders.uploads.parent, UPLOADS_SETTING)
    return folders


def scratch_root(args: AppArgs, env: Environment) -> Path:
    """Return where this node keeps the scratch of attempts; it may not be there."""
    return _folders(args, env).scratch


def folder_of_uploads(args: AppArgs) -> Path:
    """Return where the ingress keeps uploads; it may not be there."""
    return (args.uploads.folder or args.state_dir / "uploads").absolute()


def _folders(args: AppArgs, env: Environment) -> Folders:
    work = env.work_dir or args.work_dir or default_work_dir()
    results = env.result_dir or args.result_dir
    avatars = args.avatars.folder or args.state_dir / "avatars"
    paths = (
        work / "jobs",
        work / "streams",
        results,
        args.state_dir,
        avatars,
        folder_of_uploads(args),
    )
    return Folders(*(path.absolute() for path in paths))


SETTING = "work_dir (MUSETALK_WORKDIR)"
UPLOADS_SETTING = "uploads.folder"


def default_work_dir() -> Path:
    """Return this user's own folder among the temporary files."""
    return Path(tempfile.gettempdir()).absolute() / f"lipsync-serve-{os.geteuid()}"


def check_root(root: Path) -> None:
    """Check a root of scratch and the default parent if they are there; make nothing.

    Raises:
        FolderRefused: as `make_root`.
    """
    if root.parent == default_work_dir():
        require_own(root.parent, SETTING)
    require_own(root, SETTING)


def make_root(root: Path) -> None:
    """Make a root of scratch, and the folder above it if need be.

    The default parent lies in the folder for temporary files and is made private too. Any other
    parent belongs to the operator, and may be shared.

    Raises:
        FolderRefused: the root, or the default parent, is a link or somebody else's.
    """
    if root.parent == default_work_dir():
        private_folder(root.parent, SETTING)
    else:
        make_folder(root.parent, SETTING)
    private_folder(root, SETTING)
