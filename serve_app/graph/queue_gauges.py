"""Shows in the metrics what waits for the pools and what they work on."""

from serve_app.scheduling.scheduler import SegmentScheduler
from serve_app.telemetry.metrics import SEGMENTS_IN_FLIGHT, SEGMENTS_WAITING


def show_queue(scheduler: SegmentScheduler) -> None:
    """Set the gauges now and at every change."""

    def show() -> None:
        SEGMENTS_WAITING.set(scheduler.calls_waiting)
        for pool, calls in scheduler.calls_in_flight().items():
            SEGMENTS_IN_FLIGHT.set(calls, {"pool": pool})

    scheduler.subscribe(show)
    show()
