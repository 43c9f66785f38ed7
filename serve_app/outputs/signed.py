"""Outputs of a claimed job that go to the signed addresses of its claim (docs/protocol.md §9)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from orchestrator.messages import OutputAddresses
from orchestrator.net.connections import DEFAULT_NETWORK, Network
from serve_app.net.addresses import AddressPolicy
from serve_app.outputs.put import PutLimits, PutStore
from serve_app.outputs.store import SIDECAR_SUFFIX, StoredOutput


class SignedStore:
    """Uploads the video and the sidecar of one attempt, to an address each.

    The orchestrator publishes them when it accepts the attempt's report, which says what was put.
    The addresses are checked by `policy`, as those of media are, because they come with a job.
    """

    def __init__(
        self,
        addresses: OutputAddresses,
        policy: AddressPolicy,
        *,
        limits: PutLimits | None = None,
        network: Network = DEFAULT_NETWORK,
    ) -> None:
        self._video, self._sidecar = (
            PutStore(
                url,
                policy=policy,
                limits=limits,
                network=network,
                headers={"Content-Type": kind, **addresses.headers},
            )
            for url, kind in (
                (addresses.video_put_url, "video/mp4"),
                (addresses.sidecar_put_url, "application/json"),
            )
        )

    def put(self, job_id: str, video: Path, sidecar: bytes) -> StoredOutput:
        """Upload both. May be repeated, as each upload replaces the one before.

        Raises:
            UploadFailed: every try of one of them failed.
            SourceRefused: an address is not allowed.
        """
        note = video.with_suffix(SIDECAR_SUFFIX)  # in the attempt's scratch too
        note.write_bytes(sidecar)
        self._sidecar.put(job_id, note, b"")
        return replace(self._video.put(job_id, video, b""), is_reported=True)
