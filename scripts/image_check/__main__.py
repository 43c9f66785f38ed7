"""The command `make image-check [KEEP=--keep] [WRITE=--write]`.

It needs root, buildah and debootstrap. The base image is a Debian root that debootstrap makes, and
torch is its build for CPUs, so no registry is asked; every RUN of Dockerfile.gpu is executed.

1. The worker is built, in a folder of its own below .cache/image. Its bytes are counted by part and
   compared with cluster/image/sizes.json: 5 % more is a fault. `--write` writes that file instead.
2. Its files, its environment and its history are searched for secrets, and one that is planted has
   to be found. Its bill of materials has to list what is installed, and that is what is locked.
3. A line of code is changed and the worker built again: the layers that differ are counted.
4. It is built with weights inside, from a hub that wants a token. No layer is larger than the
   limit, the token is nowhere, and a damaged file ends the start with status 3.
5. `serve` answers /hc, does a job, and stops on SIGTERM; `salad-queue` does a job that a stand-in
   for Salad's worker posts, and ends with its status; `run-job` does one and ends with 0. No
   process is left.

The last line is one JSON object. Exit code 1: something is not as it should be. Where the machine
cannot do the check, the last line says why, and the exit code is 0.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from image_check import Unable, Wrong, behaviour, contents, hub
from image_check.behaviour import Facts, Trial
from image_check.store import ROOT, Store, copy_context, remove

FOLDER = (ROOT / ".cache").resolve() / "image"  # as mounts name it
BASE, WORKER = "localhost/lipsync-base:check", "localhost/lipsync-worker:check"
FREE_BYTES = {"overlay": 14 * 10**9, "vfs": 20 * 10**9}
WEIGHTS_LIST = Path("cluster/image/check-list.json")


def check(store: Store, *, write: bool) -> Facts:
    """Do everything, and return what was measured."""
    free, wanted = shutil.disk_usage(store.folder).free, FREE_BYTES[store.driver]
    if free < wanted:
        raise Unable(f"it needs {wanted // 10**9} GB of disk, and {free // 10**9} are free")
    context, media = store.folder / "context", store.folder / "media"
    copy_context(context)
    behaviour.make_media(media)
    facts: Facts = {"driver": store.driver}
    with step("base", facts):
        store.make_base(BASE)
    with hub.serving() as server:
        with step("build", facts):
            store.build(WORKER, context, arguments_of(server))
        check_contents(store, facts, write=write)
        if store.has_layers:
            with step("change", facts):
                check_change(store, context, server, facts)
            with step("weights", facts):
                check_weights(store, context, server, media)
        else:
            facts["skipped"] = "a change of code, and weights: overlay cannot be mounted here"
    with step("run", facts), store.container(WORKER) as made:
        trial = Trial(store, made, media)
        facts |= behaviour.check_serve(trial)
        facts |= behaviour.check_salad_queue(trial)
        facts |= behaviour.check_run_job(trial)
    return facts


def arguments_of(server: hub.Hub) -> dict[str, str]:
    """Return the arguments of the build."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return {
        # buildah 1.28 does not see the default of an argument in FROM.
        "MODELS": "none",
        "BASE_IMAGE": BASE, "TORCH_BUILD": "cpu", "SERVE_CONFIG": "serve_config.yaml",
        "BUILD_COMMIT": commit.stdout.strip(),
        "SALAD_QUEUE_URL": server.address("worker.tar.gz"),
        "SALAD_QUEUE_SHA256": hashlib.sha256(server.files["/open/worker.tar.gz"]).hexdigest(),
    }  # fmt: skip


def check_contents(store: Store, facts: Facts, *, write: bool) -> None:
    """Compare bytes, secrets and packages with what they should be."""
    with step("contents", facts), store.container(WORKER) as made:
        root = Path(store.run("mount", made))
        facts["mb"] = contents.sizes(root)
        facts["packages_mb"] = contents.largest_packages(root)
        facts["layers_mb"] = [round(layer.bytes / contents.MB) for layer in store.layers(WORKER)]
        if write or not contents.SIZES.exists():
            contents.SIZES.write_text(json.dumps(facts["mb"], indent=2) + "\n")
        contents.check_growth(facts["mb"], json.loads(contents.SIZES.read_text()))
        contents.check_secrets(json.dumps(store.description(WORKER)).encode(), root)
        facts["components"] = contents.check_bill(root)


def check_change(store: Store, context: Path, server: hub.Hub, facts: Facts) -> None:
    """Build again with a changed line, and count the bytes of the layers that are new."""
    before = store.layers(WORKER)
    with (context / "demo" / "__init__.py").open("a") as changed:  # the first folder of our code
        changed.write("\n# A changed line.\n")
    name = f"{WORKER}-changed"
    store.build(name, context, arguments_of(server))
    facts["moved_mb"] = round(contents.moved_bytes(before, store.layers(name)) / contents.MB, 1)


def check_weights(store: Store, context: Path, server: hub.Hub, media: Path) -> None:
    """Build with weights, and see where they are, where the token is, and what is verified."""
    hub.write_list(server, context / WEIGHTS_LIST)
    secret = store.folder / "hub_token"
    secret.write_text(hub.TOKEN)
    name = f"{WORKER}-weights"
    weights = {
        "MODELS": "embed", "WEIGHTS_LIST": str(WEIGHTS_LIST), "HF_ENDPOINT": server.url,
        "LAYER_GB": str(hub.LAYER_BYTES / 10**9),
    }  # fmt: skip
    store.build(name, context, arguments_of(server) | weights, secret)
    hub.check_requests(server)
    with store.container(name) as made:
        root = Path(store.run("mount", made))
        hub.check_layers(store.layers(name), root)
        contents.check_secrets(json.dumps(store.description(name)).encode(), root)
        behaviour.check_verification(Trial(store, made, media), root, hub.OPEN_FILE)


@contextmanager
def step(name: str, facts: Facts) -> Iterator[None]:
    """Print what is being done, and keep how long it took."""
    print(f"image-check: {name}", file=sys.stderr, flush=True)
    began = time.monotonic()
    yield
    facts[f"{name}_s"] = round(time.monotonic() - began)


def why_not() -> str | None:
    """Return what this machine lacks for the check."""
    if os.geteuid() != 0:
        return "it needs root"
    missing = [name for name in ("buildah", "debootstrap") if shutil.which(name) is None]
    return f"install {' and '.join(missing)}" if missing else None


def main() -> int:
    """Run the check and print its figures."""
    parser = argparse.ArgumentParser(description="Build the worker's image, and try it.")
    parser.add_argument("--write", action="store_true", help="accept the sizes as they are")
    parser.add_argument("--keep", action="store_true", help="keep the images for the next call")
    options = parser.parse_args()
    try:
        if lacking := why_not():
            raise Unable(lacking)
        with own_folder(keep=options.keep):
            print(json.dumps(check(Store(FOLDER), write=options.write)))
    except Unable as unable:
        print(f"image-check: skipped: {unable}")
    except (Wrong, subprocess.SubprocessError) as wrong:
        print(f"image-check: {wrong}", file=sys.stderr)
        return 1
    return 0


@contextmanager
def own_folder(*, keep: bool) -> Iterator[None]:
    """Have the folder of the check for this process alone, and remove it.

    Raises:
        Unable: another check has it.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    lock = FileLock(FOLDER.with_suffix(".lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout as exc:
        raise Unable(f"another check is using {FOLDER}") from exc
    try:
        yield
    finally:
        if not keep:
            remove(FOLDER)
        lock.release()


if __name__ == "__main__":
    sys.exit(main())
