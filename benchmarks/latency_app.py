"""`build_app` of the application with stages of fixed latency, for a deployment by configuration.

Only such a deployment has an autoscaling policy. Ray's workers import this file, so its folder has
to be in their PYTHONPATH. Its parameter needs a real class, so annotations are not postponed.
"""

import project  # noqa: F401  (lets the workers import the application)
from latency_stages import stage_kinds
from ray.serve import Application

from serve_app.app import StageKinds, bind_app
from serve_app.config.settings import AppArgs


def build_app(args: AppArgs) -> Application:
    """Build the application."""
    return bind_app(args, StageKinds(*stage_kinds()))
