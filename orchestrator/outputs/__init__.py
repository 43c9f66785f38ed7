"""Where results go when workers have no keys: pre-signed addresses for one attempt each."""

from orchestrator.outputs.bucket import AttemptOutput, OutputBucket
from orchestrator.outputs.settings import BucketSettings

__all__ = ["AttemptOutput", "BucketSettings", "OutputBucket"]
