"""One job on two nodes; and the application is deleted or deployed again in the middle of one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.cluster.conftest import Media
from tests.cluster.machines import STATE, Machines, machines, wait_until
from tests.cluster.names import CHECKS
from tests.decoding import frames_of

pytestmark = pytest.mark.slow

POOLS = [{"name": "ada", "arch": "ada", "num_gpus": 1.0, "device": "cpu", "frames_per_s": 25.0}]
# The Preprocessor is on one node. The Finisher is on the other, where the results are served.
ARGS = {
    "pools": POOLS,
    "driver": {"block_s": 1.0},
    "preprocessor": {"label_selector": {"musetalk/arch": "ada"}},
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    with machines(tmp_path_factory.mktemp("ends")) as cluster:
        cluster.add("head", resources=STATE)
        cluster.add("ada", num_gpus=1, labels={"musetalk/arch": "ada"})
        cluster.deploy(**ARGS)
        cluster.wait_ready()
        yield cluster


@pytest.fixture(scope="module")
def undisturbed(
    cluster: Machines, media: Media, tmp_path_factory: pytest.TempPathFactory
) -> NDArray[np.uint8]:
    answer = cluster.generate(**media.job("undisturbed"))
    assert answer.status_code == 200, answer.text
    return frames_of(cluster.output(answer.json(), tmp_path_factory.mktemp("undisturbed")))


def test_a_node_checks_the_media_of_a_job_once(
    cluster: Machines, undisturbed: NDArray[np.uint8]
) -> None:
    """Finding 1: every call on another node than the one that opened the job checked both files."""
    assert len(undisturbed) == 150
    assert {cluster.node_of("Preprocessor"), cluster.node_of("Finisher")} == {"ada", "head"}
    assert cluster.notes("ada", CHECKS) == []  # the job was opened there
    assert len(cluster.notes("head", CHECKS)) == 1  # six calls of the Finisher


def test_uploads_reach_the_stages_of_every_node(
    cluster: Machines,
    media: Media,
    undisturbed: NDArray[np.uint8],
    tmp_path: Path,
) -> None:
    """They are on the ingress' node only. The job fetches them on the other one, and again here."""
    body = media.job("uploaded")
    fetched = list(media.fetched)
    for name in ("video", "audio"):
        content = httpx.get(body[f"{name}_url"], trust_env=False).content
        upload = cluster.client.put(f"/v1/uploads/{name}", content=content).raise_for_status()
        body[f"{name}_url"] = upload.json()["url"]
    answer = cluster.generate(**body)
    assert answer.status_code == 200, answer.text
    frames = frames_of(cluster.output(answer.json(), tmp_path))
    assert np.array_equal(frames, undisturbed)
    assert len(media.fetched) == len(fetched) + 2, "only this test has fetched them"


def begin(cluster: Machines, media: Media, job_id: str) -> None:
    """Submit a job, and return in the middle of it."""
    assert cluster.client.post("/v1/avatar/jobs", json=media.job(job_id)).status_code == 202
    cluster.wait_drawn(job_id)


def test_deleting_in_mid_job_ends_soon_and_loses_nothing(
    cluster: Machines, media: Media, undisturbed: NDArray[np.uint8], tmp_path: Path
) -> None:
    """Finding 10: the job waited for its stages, which were gone, until the drain time ended.

    Serve's own deletion gives up after a minute.
    """
    begin(cluster, media, "deleted")
    cluster.command("delete")
    wait_until(lambda: cluster.replicas("Ingress") == [], "the ingress has not ended")
    cluster.deploy(**ARGS)
    cluster.wait_ready()
    job = cluster.wait_for("deleted", "succeeded", "failed", "cancelled")
    assert (job["status"], job["attempt"]) == ("succeeded", 1), job["error"]
    assert np.array_equal(frames_of(cluster.output(job, tmp_path)), undisturbed)
    wait_until(lambda: cluster.scratch == [], "files of the job are left behind")


def test_deploying_again_in_mid_job_loses_nothing_and_never_has_two_ingresses(
    cluster: Machines, media: Media, undisturbed: NDArray[np.uint8], tmp_path: Path
) -> None:
    begin(cluster, media, "replaced")
    [old] = cluster.replicas("Ingress")
    queue = {"max_concurrent_jobs": 2, "handover_s": 0.0}
    cluster.deploy(**ARGS, queue=queue)

    def has_ended() -> bool:
        assert len(cluster.replicas("Ingress")) <= 1
        return not old.is_running()

    wait_until(has_ended, "the old ingress has not ended")
    job = cluster.wait_for("replaced", "succeeded", "failed", "cancelled")
    assert (job["status"], job["attempt"]) == ("succeeded", 1), job["error"]
    assert np.array_equal(frames_of(cluster.output(job, tmp_path)), undisturbed)
    wait_until(lambda: cluster.scratch == [], "files of the job are left behind")
