"""A replica or a node that is lost in the middle of a job costs no frame.

The cells are stage × fault × phase. All 45 of them would take a quarter of an hour. So each stage
meets every fault in the phase in which it works, and one fault in another phase. The pool that is
hit has one node, and another pool runs.

- `killed`, `stopped`: the replica, by SIGKILL and SIGSTOP.
- `node`: its node vanishes, with all processes.
- `cut-off`: all processes of its node are stopped, as if its network were down. After the job they
  go on, notice that they were given up, and disturb nobody.
- `drained`: the node is announced to go, and goes a moment later.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.cluster.conftest import Media
from tests.cluster.machines import STATE, Machines, machines, wait_until
from tests.cluster.names import B2_ADDRESS, DRAWN
from tests.contract import fake_b2
from tests.decoding import frames_of
from tests.playing import played, watched

pytestmark = pytest.mark.slow

DEADLINE = "did not answer within its deadline"
ENDED = ("succeeded", "failed", "cancelled")
CPU_LABEL = {"musetalk/stage": "cpu"}
POOLS = [
    {"name": name, "arch": name, "num_gpus": 1.0, "device": "cpu", "frames_per_s": 12.0}
    for name in ("ada", "hopper")
]
PHASES: dict[str, Callable[[dict[str, Any]], bool]] = {
    "preparing": lambda progress: progress["phase"] in ("validating", "inferring"),
    "drawing": lambda progress: progress["frames_done"] > 0,
    "encoding": lambda progress: 0 < progress["frames_total"] == progress["frames_done"],
}
FAULTS = ("killed", "stopped", "node", "cut-off", "drained")
RAYS_OWN = 2 << 20  # bytes in all object stores that no job needs; 1.1 MB were seen
GRACE_S = 3.0  # of a node that is drained
AT_WORK = (("Preprocessor", "preparing"), ("Generator-ada", "drawing"), ("Finisher", "encoding"))
CELLS = [
    *((stage, fault, phase) for stage, phase in AT_WORK for fault in FAULTS),
    ("Preprocessor", "node", "encoding"),
    ("Generator-ada", "node", "preparing"),
    ("Finisher", "stopped", "preparing"),
]


@pytest.fixture(scope="module")
def b2() -> Iterator[fake_b2.FakeB2]:
    with fake_b2.running() as server:
        yield server


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, b2: fake_b2.FakeB2) -> Iterator[Machines]:
    """Five nodes: one for the ingress, two for the CPU stages, and one for each of two pools."""
    env = {
        B2_ADDRESS: b2.url,
        "B2_KEY_ID": fake_b2.KEY_ID,
        "B2_APP_KEY": fake_b2.APP_KEY,
        "B2_BUCKET_NAME": fake_b2.BUCKET,
    }
    with machines(tmp_path_factory.mktemp("loss"), **env) as cluster:
        cluster.add("head", resources=STATE)
        for name in ("cpu-a", "cpu-b"):
            cluster.add(name, labels=CPU_LABEL)
        for pool in ("ada", "hopper"):
            cluster.add(pool, num_gpus=1, labels={"musetalk/arch": pool})
        cluster.deploy(
            pools=POOLS,
            preprocessor={"label_selector": CPU_LABEL},
            finisher={"label_selector": CPU_LABEL},
            driver={"block_s": 1.0},
        )
        cluster.wait_ready()
        yield cluster


@pytest.fixture(scope="module")
def undisturbed(
    cluster: Machines,
    b2: fake_b2.FakeB2,
    media: Media,
    tmp_path_factory: pytest.TempPathFactory,
) -> NDArray[np.uint8]:
    """The frames of the job when nothing is lost."""
    answer = cluster.generate(**media.job("undisturbed"))
    assert answer.status_code == 200, answer.text
    return frames_of(stored(b2, "undisturbed", tmp_path_factory))


def stored(b2: fake_b2.FakeB2, job_id: str, folders: pytest.TempPathFactory) -> Path:
    """Return the file of a stored video."""
    path = folders.mktemp(job_id) / "output.mp4"
    path.write_bytes(b2.files[f"avatar/outputs/{job_id}.mp4"].content)
    return path


def wait_phase(cluster: Machines, job_id: str, phase: str) -> None:
    """Wait until a job is in a phase, and fail if it ends before."""

    def is_there() -> bool:
        job = cluster.job(job_id)
        assert job.get("status") not in ENDED, f"it ended too early: {job}"
        return "progress" in job and PHASES[phase](job["progress"])

    wait_until(is_there, f"{job_id} was never {phase}")


def strike(cluster: Machines, stage: str, fault: str) -> str:
    """Let a stage lose its replica, or the node that it is on; return the name of that node."""
    [replica] = cluster.replicas(stage)
    node = cluster.node_of_process(replica)
    if fault == "node":
        cluster.remove(node)
    elif fault == "cut-off":
        cluster.cut_off(node)
    elif fault == "drained":
        cluster.command("drain", name=node, grace_s=GRACE_S)
    else:
        replica.send_signal(signal.SIGKILL if fault == "killed" else signal.SIGSTOP)
    return node


def repair(cluster: Machines, fault: str, node: str) -> None:
    """Bring lost nodes back, under new names, and wait until every stage runs again."""
    if fault == "cut-off":
        cluster.reconnect(node)
    elif fault == "drained":
        cluster.command("taken", name=node)
        cluster.nodes.discard(node)
    lost = {"cpu-a", "cpu-b", "ada", "hopper"} - {name.split(".")[0] for name in cluster.nodes}
    for number, name in enumerate(sorted(lost)):
        is_cpu = name.startswith("cpu")
        labels = CPU_LABEL if is_cpu else {"musetalk/arch": name}
        fresh = f"{name}.{number}{time.monotonic_ns()}"
        cluster.add(fresh, num_gpus=0 if is_cpu else 1, labels=labels)
    cluster.wait_running("Preprocessor", "Finisher", "Generator-ada", "Generator-hopper")


def test_one_job_is_drawn_in_every_pool(cluster: Machines, undisturbed: NDArray[np.uint8]) -> None:
    """Finding 7: all segments of a job went to one pool, and the others were idle."""
    shares = [sum(map(int, cluster.notes(pool, DRAWN))) for pool in ("ada", "hopper")]
    assert sum(shares) == len(undisturbed) == 150
    assert min(shares) >= 50, shares  # both are equally fast


def test_a_job_leaves_nothing_in_the_object_stores(
    cluster: Machines, media: Media, undisturbed: NDArray[np.uint8]
) -> None:
    """Finding 12: 69 MiB in 13 objects were left after a job."""
    wait_until(lambda: cluster.command("held_bytes") < RAYS_OWN, "the job before has left some")
    assert cluster.client.post("/v1/avatar/jobs", json=media.job("stored")).status_code == 202
    wait_until(lambda: cluster.command("held_bytes") > 2 * RAYS_OWN, "nothing is ever stored")
    assert cluster.wait_for("stored", *ENDED)["status"] == "succeeded"
    wait_until(lambda: cluster.command("held_bytes") < RAYS_OWN, "the job has left something")


@pytest.mark.parametrize(("stage", "fault", "phase"), CELLS)
def test_what_is_lost_costs_no_frame(
    stage: str,
    fault: str,
    phase: str,
    cluster: Machines,
    b2: fake_b2.FakeB2,
    media: Media,
    undisturbed: NDArray[np.uint8],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Findings 2 and 4: the retry took the same dead pool, and pieces died with the Finisher.

    Somebody watches the job from its first fragment to its end, and sees the stored video.
    """
    job_id = f"{stage}-{fault}-{phase}".lower()
    assert cluster.client.post("/v1/avatar/jobs", json=media.job(job_id)).status_code == 202
    with watched(cluster, job_id) as shown:
        wait_phase(cluster, job_id, phase)
        node, seen = strike(cluster, stage, fault), len(cluster.log)
        try:
            job = cluster.wait_for(job_id, *ENDED)
        finally:
            repair(cluster, fault, node)  # whatever happened, so that the next cell is not hit too
    assert (job["status"], job["attempt"]) == ("succeeded", 1), job["error"]
    video = stored(b2, job_id, tmp_path_factory)
    assert np.array_equal(frames_of(video), undisturbed)
    assert shown.result() == played(str(video))
    assert not [line for line in cluster.log[seen:] if DEADLINE in line]  # they are for what hangs
    wait_until(lambda: cluster.scratch == [], "files of the job are left behind")
