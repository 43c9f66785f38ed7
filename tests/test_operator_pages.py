"""docs/operations.md and docs/security.md name messages, metrics and tests that exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.util.metrics import Metric

from serve_app.launcher.ray_cluster import PROXY_MIDDLEWARES
from serve_app.telemetry import metrics
from tests.test_promises import names_in

ROOT = Path(__file__).resolve().parent.parent
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
SECURITY = (ROOT / "docs" / "security.md").read_text()
PACKAGES = ("serve_app", "musetalk_pipeline", "orchestrator")
VALUE = "…"  # stands for what differs from one message to the next


def messages() -> list[str]:
    """Return the messages that docs/operations.md explains: what stands before an item's colon."""
    listed = OPERATIONS.partition("## 8. Troubleshooting by message")[2]
    items = [" ".join(item.split()) for item in re.split(r"^- ", listed, flags=re.MULTILINE)[1:]]
    heads = [re.match(r"(`[^`]+`(, (or |with )?\(?|,? or |, with )?)+", item) for item in items]
    return [quoted for head in heads if head for quoted in re.findall(r"`([^`]+)`", head[0])]


def texts_of(tree: ast.AST) -> Iterator[str]:
    """Yield every text of a module, with `…` for each value that is put into it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"%(\.\d)?[sdf]", VALUE, node.value)
        elif isinstance(node, ast.JoinedStr):
            parts = (
                part.value if isinstance(part, ast.Constant) else VALUE for part in node.values
            )
            yield "".join(map(str, parts))


@pytest.fixture(scope="module")
def texts() -> str:
    """Every text of the code, a line each."""
    files = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
    found = [text for file in files for text in texts_of(ast.parse(file.read_text()))]
    return "\n".join(" ".join(text.split()) for text in found)


@pytest.mark.parametrize("message", messages())
def test_a_message_that_is_explained_is_one_of_the_codes(message: str, texts: str) -> None:
    assert message.strip(f"{VALUE} ") in texts


def test_many_messages_are_explained() -> None:
    assert len(messages()) > 60


def test_every_metric_is_explained() -> None:
    named = {f"ray_{one.info['name']}" for one in vars(metrics).values() if isinstance(one, Metric)}
    assert len(named) >= 4
    assert {name for name in named if f"| `{name}` |" not in OPERATIONS} == set()


def test_every_rule_names_metrics_that_exist() -> None:
    named = {one.info["name"] for one in vars(metrics).values() if isinstance(one, Metric)}
    used = set(re.findall(r"\bray_(lipsync_\w+?)(?:_bucket)?\b(?=[{\[`])", OPERATIONS))
    assert used <= named


@pytest.mark.parametrize(
    ("path", "name"), sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", SECURITY)))
)
def test_a_guard_has_the_test_that_is_named(path: str, name: str) -> None:
    assert name in names_in(path)


def test_a_cluster_is_told_where_the_gate_is() -> None:
    assert f"`RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH={PROXY_MIDDLEWARES}`" in SECURITY


@pytest.mark.parametrize(
    ("file", "name"), sorted(set(re.findall(r"`(test_gate\w*\.py)::(\w+)`", SECURITY)))
)
def test_a_limit_of_the_gate_has_the_test_that_is_named(file: str, name: str) -> None:
    assert name in names_in(f"tests/hostile/{file}")
