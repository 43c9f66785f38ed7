"""Checks of what a start needs of this machine: configuration, weights, ports, disk, memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from lipsync.findings import Finding
from lipsync.installation import room
from musetalk_pipeline.networks.files import missing_files
from serve_app.config.config_file import ConfigInvalid
from serve_app.config.folders import default_work_dir
from serve_app.gate.links import in_address
from serve_app.launcher.checks import PlannedStart, Topic, machine_faults, plan_start
from serve_app.launcher.ray_cluster import StartFailed, require_answer

GB = 10**9
SHARED_MEMORY = Path("/dev/shm")
# Guesses: a few jobs of some minutes at 1080p, and the frames of two of them.
SCRATCH_BYTES, LEAST_BYTES, SHARED_BYTES = 5 * GB, GB // 2, 2 * GB
TITLES: dict[Topic, str] = {
    "gpu": "GPU for the pools",
    "card": "GPU and the build of torch",
    "placement": "CPUs and labels",
    "ports": "ports",
    "folders": "working folders",
}
REMEDIES: dict[Topic, str] = {
    "weights": "Run `lipsync weights fetch`, or set `engine: warp`.",
    "gpu": "Use serve_config.yaml, which needs no GPU, or make one visible.",
    "card": "Use the build, or the machine, that the sentence names (docs/images.md).",
    "placement": "Change the configuration as the sentence says.",
    "ports": "Stop that process, or choose another port as the sentence says.",
    "folders": "Change the folder or the setting that the sentence names.",
}


def application(config: Path, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Check what `lipsync serve CONFIG` would check."""
    try:
        planned = plan_start(config, environ)
    except ConfigInvalid as invalid:
        remedy = "Mend the file or the variable; `lipsync config check` checks again."
        yield Finding("configuration", "missing", "\n".join(invalid.faults), remedy)
        return
    yield Finding("configuration", "ok", str(config))
    faults: dict[Topic, list[str]] = {}
    for topic, text in machine_faults(planned, environ):
        faults.setdefault(topic, []).append(text)
    yield _weights(planned, faults.pop("weights", []))
    if planned.start.cluster is not None:
        yield _cluster(planned.start.cluster)
        return
    for topic, title in TITLES.items():
        texts = faults.get(topic)
        if texts:
            yield Finding(title, "missing", "\n".join(texts), REMEDIES[topic])
        else:
            yield Finding(title, "ok", _fine(topic, planned))
    yield from _disks(planned)
    yield _shared_memory()


def _weights(planned: PlannedStart, faults: list[str]) -> Finding:
    args, env = planned.start.args, planned.start.env
    if faults:
        return Finding("weights", "missing", "\n".join(faults), REMEDIES["weights"])
    if args.engine == "warp":
        return Finding("weights", "ok", "none are needed for `engine: warp`")
    models = args.models_dir.absolute()
    missing, has_some = missing_files(
        models,
        args.version,
        own_unet=env.unet_path is not None,
        own_config=env.unet_config is not None,
    )
    if not missing:
        return Finding("weights", "ok", f"all of MuseTalk's files are in {models}")
    lacking = ", ".join(missing) if has_some else "all of MuseTalk's files"
    found = f"{models} lacks {lacking}, so the engine is warp"
    return Finding("weights", "warning", found, "`lipsync weights fetch` fetches MuseTalk's.")


def _cluster(address: str) -> Finding:
    try:
        require_answer(address)
    except StartFailed as failed:
        remedy = "Start Ray there, or unset RAY_ADDRESS for a cluster of this machine alone."
        return Finding("Ray cluster", "missing", str(failed), remedy)
    return Finding("Ray cluster", "ok", address)


def _fine(topic: Topic, planned: PlannedStart) -> str:
    start = planned.start
    if topic == "gpu":
        shares = [pool.num_gpus for pool in start.args.pools]
        return f"{sum(shares):g} needed" if any(shares) else "none is needed"
    if topic == "card":
        return (
            "they fit each other"
            if any(pool.num_gpus for pool in start.args.pools)
            else "none is needed"
        )
    if topic == "placement":
        return "there is room for every replica"
    if topic == "ports":
        metrics = start.metrics_port or "any free port"
        return f"{in_address(start.host)}:{start.port} is free, metrics at {metrics}"
    return "usable"


def _disks(planned: PlannedStart) -> Iterator[Finding]:
    args, env = planned.start.args, planned.start.env
    work = (env.work_dir or args.work_dir or default_work_dir()).absolute()
    remedy = "Make room, or set MUSETALK_WORKDIR to a folder on a larger disk."
    yield room("disk for scratch", work, SCRATCH_BYTES, LEAST_BYTES, remedy)
    if env.b2_bucket is None:
        results = (env.result_dir or args.result_dir).absolute()
        remedy = "Make room, lower `results.max_gb`, or set MUSETALK_RESULT_DIR."
        yield room("disk for results", results, SCRATCH_BYTES, LEAST_BYTES, remedy)


def _shared_memory() -> Finding:
    """Ray keeps frames there; what does not fit goes to the disk, and is slow."""
    try:
        found = os.statvfs(SHARED_MEMORY)
    except OSError:
        return Finding("shared memory", "warning", f"{SHARED_MEMORY} does not exist", "Mount it.")
    free = found.f_bavail * found.f_frsize
    shown = f"{free / GB:.1f} GB free"
    if free >= SHARED_BYTES:
        return Finding("shared memory", "ok", shown)
    remedy = "Give the container more: `docker run --shm-size 8g`."
    return Finding("shared memory", "warning", shown, remedy)
