"""Why a replica finds no place in the cluster. Ray itself only says that it waits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

UNITS = {"GPU": "GPUs", "CPU": "CPUs"}
TINY = 1e-6  # Ray counts in ten thousandths


@dataclass(frozen=True, slots=True)
class Node:
    """A live node. `free` may lag some seconds behind."""

    labels: Mapping[str, str]
    total: Mapping[str, float]
    free: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Place:
    """What one replica needs: a node with all `labels`, and so much of each of its `resources`.

    A label's value may be one of Ray's expressions: `!value`, `in(a,b)` or `!in(a,b)`.
    """

    labels: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why no node can take a replica, in a sentence; what to do about it, in another."""

    reason: str
    remedy: str


def obstacle(place: Place, nodes: Sequence[Node], *, now: bool) -> Obstacle | None:
    """Return why no node can take a replica; None if one can.

    `now`: what is taken by others counts. Otherwise a node is enough that could if it were empty.
    """
    if not nodes:
        return Obstacle("Ray lists no live node", "see `ray status`")
    fitting = [node for node in nodes if _matches(node.labels, place.labels)]
    if not fitting:
        wanted = [f"{label}={value}" for label, value in place.labels.items()]
        return Obstacle(
            f"no live node has the label {' and '.join(wanted)}",
            f"start a node with it: `ray start --address=… --labels {','.join(wanted)}`",
        )
    for name, amount in place.resources.items():
        if not any(node.total.get(name, 0.0) + TINY >= amount for node in fitting):
            return Obstacle(
                f"no live node{_with(place)} has {amount:g} {UNITS.get(name, name)}",
                "add a larger node, or let a replica ask for less",
            )
    if now and not any(_has_room(node, place) for node in fitting):
        return Obstacle(
            f"all {len(fitting)} live nodes{_with(place)} are taken: none has "
            + " and ".join(f"{n:g} {UNITS.get(k, k)}" for k, n in place.resources.items())
            + " free",
            "add a node, lower `max_replicas`, or let a replica ask for less",
        )
    return None


def _with(place: Place) -> str:
    labels = ", ".join(f"{label}={value}" for label, value in place.labels.items())
    return f" with {labels}" if labels else ""


def _has_room(node: Node, place: Place) -> bool:
    return all(
        node.free.get(name, 0.0) + TINY >= amount for name, amount in place.resources.items()
    )


def _matches(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return all(_accepts(expression, labels.get(label)) for label, expression in wanted.items())


def _accepts(expression: str, value: str | None) -> bool:
    if expression.startswith("!"):
        return not _accepts(expression[1:], value)
    if expression.startswith("in(") and expression.endswith(")"):
        return value in [choice.strip() for choice in expression[3:-1].split(",")]
    return value == expression
