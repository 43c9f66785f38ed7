"""Loops of which one runs at a time, and the decisions of the scaling loop.

A process holds a loop by a row with a lease. If it dies or hangs, another takes over when the lease
has expired.
"""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa

from orchestrator.scaling.values import Decision
from orchestrator.store.database import Transaction
from orchestrator.store.tables import decisions, loops
from orchestrator.store.values import JsonObject, LoopStatus, StoredDecision

MAX_ERROR_CHARS = 2000


def hold(tx: Transaction, name: str, holder: str, lease_s: float) -> bool:
    """Hold a loop for so long from now on. Return False if another process holds it."""
    values = {"name": name, "holder": holder, "held_until": tx.now + lease_s}
    statement = (
        tx.insert(loops)
        .values(values)
        .on_conflict_do_update(
            index_elements=["name"],
            set_={"holder": holder, "held_until": tx.now + lease_s},
            where=sa.or_(loops.c.holder == holder, loops.c.held_until < tx.now),
        )
        .returning(loops.c.holder)
    )
    return tx.execute(statement).scalar() is not None


def release(tx: Transaction, name: str, holder: str) -> None:
    """Let another process hold a loop at once."""
    held = loops.c.name == name, loops.c.holder == holder
    tx.execute(loops.update().where(*held).values(held_until=tx.now - 1.0))


def note(
    tx: Transaction, name: str, holder: str, error: str | None, facts: JsonObject | None
) -> None:
    """Store how a step of a loop ended. Facts of None leave the earlier ones."""
    held = loops.c.name == name, loops.c.holder == holder
    values: dict[str, object] = {"stepped_at": tx.now, "error": error and error[:MAX_ERROR_CHARS]}
    if facts is not None:
        values["facts"] = dict(facts)
    tx.execute(loops.update().where(*held).values(values))


def status(tx: Transaction, name: str) -> LoopStatus | None:
    """Return how a loop stands; None if it has never run."""
    row = tx.execute(sa.select(loops).where(loops.c.name == name)).mappings().one_or_none()
    return None if row is None else LoopStatus(**row)


def add_decisions(tx: Transaction, made: Iterable[Decision]) -> tuple[int, ...]:
    """Store decisions. Return their ids, in the same order."""
    return tuple(_add(tx, decision) for decision in made)


def decision_failed(tx: Transaction, decision_id: int, error: str) -> None:
    """Store that a provider did not do what was decided."""
    values = {"error": error[:MAX_ERROR_CHARS]}
    tx.execute(decisions.update().where(decisions.c.id == decision_id).values(values))


def newest_decisions(tx: Transaction, limit: int) -> tuple[StoredDecision, ...]:
    """Return the newest decisions, the newest first."""
    statement = sa.select(decisions).order_by(decisions.c.id.desc()).limit(limit)
    return tuple(StoredDecision(**row) for row in tx.execute(statement).mappings())


def forget_decisions(tx: Transaction, keep_s: float) -> None:
    """Delete decisions that are older."""
    tx.execute(decisions.delete().where(decisions.c.made_at < tx.now - keep_s))


def _add(tx: Transaction, decision: Decision) -> int:
    statement = decisions.insert().values(
        made_at=tx.now,
        provider=decision.provider,
        gpu_class=decision.gpu_class,
        have=decision.had,
        want=decision.wanted,
        reason=decision.reason,
    )
    return int(tx.execute(statement.returning(decisions.c.id)).scalar_one())
