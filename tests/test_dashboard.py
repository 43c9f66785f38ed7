"""docs/grafana/lipsync.json shows every metric of the application, and no other."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from ray.util.metrics import Metric

from serve_app.telemetry import metrics

ROOT = Path(__file__).resolve().parent.parent
DASHBOARD = json.loads((ROOT / "docs" / "grafana" / "lipsync.json").read_text())
PANELS: list[dict[str, Any]] = [one for one in DASHBOARD["panels"] if one["type"] != "row"]
# Ray's prefix, and the endings that a histogram adds.
NAME = re.compile(r"\bray_(lipsync_[a-z0-9_]+?)(?:_bucket|_sum|_count)?\b(?=[\[{)])")
GROUP = re.compile(r"\bby \(([^)]*)\)")
WIDTH = 24


def declared() -> dict[str, set[str]]:
    """Return the names of the application's metrics with their labels."""
    found = [one for one in vars(metrics).values() if isinstance(one, Metric)]
    return {one.info["name"]: set(one.info["tag_keys"]) for one in found}


def queries() -> list[str]:
    return [target["expr"] for panel in PANELS for target in panel["targets"]]


def test_it_shows_every_metric_and_no_other() -> None:
    shown = {name for query in queries() for name in NAME.findall(query)}
    assert shown == set(declared())


@pytest.mark.parametrize("query", queries())
def test_a_query_groups_by_labels_of_its_metrics(query: str) -> None:
    names = set(NAME.findall(query))
    assert names
    assert query.count("ray_") == len(NAME.findall(query))
    labels = set.intersection(*(declared()[name] for name in names))
    grouped = {label.strip() for group in GROUP.findall(query) for label in group.split(",")}
    assert grouped - {"le"} <= labels
    for name, chosen in re.findall(r"ray_(lipsync_\w+)\{(\w+)=", query):
        assert chosen in declared()[name]


def test_a_legend_names_labels_that_the_query_keeps() -> None:
    for target in (target for panel in PANELS for target in panel["targets"]):
        groups = GROUP.findall(target["expr"])
        kept = {label.strip() for group in groups for label in group.split(",")}
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= kept


def test_it_can_be_imported_with_any_prometheus() -> None:
    [source] = DASHBOARD["__inputs"]
    assert (source["name"], source["type"]) == ("DS_PROMETHEUS", "datasource")
    named = {target["datasource"]["uid"] for panel in PANELS for target in panel["targets"]}
    assert named | {panel["datasource"]["uid"] for panel in PANELS} == {"${DS_PROMETHEUS}"}
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)


def test_no_panel_lies_on_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert max(x for x, _ in cells) < WIDTH
        assert not cells & taken, panel["title"]
        taken |= cells
