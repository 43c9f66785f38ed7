"""Gauges are set again and again, because Ray forgets them."""

from __future__ import annotations

from typing import Any

from serve_app.telemetry.kept_gauge import KeptGauge


class Seen(KeptGauge):
    """Keeps what Ray would be given."""

    seen: list[tuple[float, dict[str, str]]]

    def _record(self, value: float, tags: dict[str, str] | None = None) -> Any:
        self.seen.append((value, tags or {}))


def test_the_last_value_of_each_label_is_set_again() -> None:
    gauge = Seen("lipsync_test_gauge", "Of this test.", ("pool",))
    gauge.seen = []
    gauge.set(1.0, {"pool": "ada"})
    gauge.set(2.0, {"pool": "ampere"})
    gauge.set(3.0, {"pool": "ada"})
    gauge.seen.clear()
    gauge.set_again()
    assert sorted(gauge.seen, key=str) == [(2.0, {"pool": "ampere"}), (3.0, {"pool": "ada"})]
