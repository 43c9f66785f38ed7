"""The metrics of uploads. The store itself works without Ray."""

from serve_app.telemetry.metrics import UPLOAD_BYTES, UPLOADS_FINISHED, UPLOADS_KEPT
from serve_app.uploads.counts import UploadCounts

UPLOAD_COUNTS = UploadCounts(
    stored=lambda n_bytes: UPLOAD_BYTES.inc(n_bytes),
    finished=lambda kind: UPLOADS_FINISHED.inc(tags={"kind": kind}),
    kept=UPLOADS_KEPT.set,
)
