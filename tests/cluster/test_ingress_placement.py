"""Where the ingress and the results are on a cluster of several nodes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.conftest import Media
from tests.cluster.machines import STATE, Machines, launcher, machines
from tests.decoding import frames_of
from tests.playing import played

pytestmark = pytest.mark.slow


def test_a_cluster_that_does_not_say_where_the_state_is_refuses_the_start(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Finding 3: the ingress landed anywhere, and lost its registry when it moved."""
    with machines(tmp_path_factory.mktemp("unmarked")) as cluster:
        cluster.add("head")
        cluster.add("other")
        with launcher(cluster, cluster.config()) as process:
            assert process.wait(60) == 2
        said = (cluster.folder / "launch.log").read_text().splitlines()
    assert said[-1].startswith(
        "lipsync-serve: this cluster has 2 nodes, and none of them has the resource lipsync_state"
    )
    assert """start Ray on one of them with --resources='{"lipsync_state": 1}'""" in said[-1]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """`lipsync serve` on a cluster whose state is not on the head."""
    with machines(tmp_path_factory.mktemp("served")) as cluster:
        cluster.add("head")
        cluster.add("state", resources=STATE)
        with launcher(cluster, cluster.config()):
            cluster.wait_ready()
            yield cluster


def test_results_can_be_downloaded_without_a_shared_store(
    served: Machines, media: Media, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Finding 6: the Finisher wrote on its own node, and the ingress answered 404."""
    answer = served.generate(**media.job("downloadable", "short.wav"))
    assert answer.status_code == 200, answer.text
    video = served.output(answer.json(), tmp_path_factory.mktemp("downloaded"))
    assert len(frames_of(video)) == 25
    # The stream too, although the HTTP proxy is on the head and the fragments are not.
    assert played(served.job("downloadable")["stream_url"]) == played(str(video))
    assert {served.node_of("Ingress"), served.node_of("Finisher")} == {"state"}
    assert served.results("head") == []
    assert served.results("state") == ["downloadable.json", "downloadable.mp4"]


def test_an_ingress_that_dies_comes_back_to_its_state(served: Machines, media: Media) -> None:
    """Finding 3: the registry stayed behind, and every job was answered with 404."""
    body = media.job("resumed")
    assert served.client.post("/v1/avatar/jobs", json=body).status_code == 202
    served.wait_drawn("resumed")
    served.kill("Ingress")
    served.wait_ready()
    job = served.wait_for("resumed", "succeeded", "failed")
    assert (job["status"], job["attempt"]) == ("succeeded", 2), job["error"]
    assert served.node_of("Ingress") == "state"
