"""The scaling loop: every few seconds, from what the store and the providers say to decisions.

One step:

1. The loop is held by a row with a lease, so that one process at a time decides.
2. The providers list their machines. One that does not answer is left out of this step.
3. `orchestrator.scaling.step` decides, purely, on one snapshot of the store.
4. Decisions are stored with their reasons, and handed to the providers.
5. Workers that have to go are asked to claim nothing more, and their machines are ended when they
   hold no job.

Nothing here is needed for a claim. Faults are stored with the loop and with the decision, logged,
and tried again in the next step.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

from orchestrator.scaling import Decision, Memory, Observation, step
from orchestrator.scaling.fleet import (
    CALL_S,
    FleetError,
    FleetProvider,
    Machine,
    MachineState,
    choose_to_drain,
)
from orchestrator.scaling.observe import Seen, SeenWorker, observe
from orchestrator.scaling.values import OfferKey
from orchestrator.service.fleet_file import FleetPlan
from orchestrator.store.store import JobStore
from orchestrator.store.values import FleetFacts

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

SCALING = "scaling"
LEASE_S = 120.0
STEP_S = 90.0  # less than the lease, so that a slow step does not run next to another process's


class ScalingLoop:
    """See the module. It belongs to one event loop.

    Args:
        holder: the name of this process, which no other one has.
        call_s: the limit of each call to a provider.
    """

    def __init__(
        self, store: JobStore, plan: FleetPlan, holder: str, *, call_s: float = CALL_S
    ) -> None:
        self._store, self._plan, self._holder, self._call_s = store, plan, holder, call_s
        self._fleets: dict[str, FleetProvider] = {}
        self._machines: dict[str, Sequence[Machine]] = {}
        self._memory: Memory = {}
        self._recorded: dict[OfferKey, int] = {}
        self._leaving: dict[str, float] = {}  # since when, by the database's clock
        self._faults: dict[str, str] = {}

    async def run(self, stopping: asyncio.Event) -> None:
        """Step until `stopping` is set; then let go of the providers and of the lease."""
        try:
            while not stopping.is_set():
                await self.step()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._plan.interval_s):
                        await stopping.wait()
        finally:
            await self._let_go()

    async def step(self) -> bool:
        """Do one step, whatever fails. Return False if another process holds the loop."""
        self._faults = {}
        facts = None
        try:
            if not await self._hold():
                await self._let_go()
                return False
            async with asyncio.timeout(STEP_S):
                facts = await self._decide()
        except TimeoutError:
            self._faults[SCALING] = f"The step took longer than {STEP_S:.0f} s."
        except Exception as error:
            # The boundary of a loop that no unexpected error may end.
            logger.exception("a step of scaling failed")
            self._faults[SCALING] = f"{type(error).__name__}: {error}"
        await self._note(facts)
        return True

    # Deciding --------------------------------------------------------------------------------

    async def _decide(self) -> dict[str, Any]:
        if not self._fleets:
            self._fleets = self._plan.load_fleets()
        await asyncio.gather(*(self._list(name, fleet) for name, fleet in self._fleets.items()))
        found = await _in_thread(self._store.fleet_facts, self._plan.rules.target_wait_s)
        seen = self._seen(found)
        observation = observe(self._plan.offers, seen)
        made = step(observation, self._memory, self._plan.rules, found.now)
        self._memory = made.memory
        acted = [one for one in made.decisions if one.provider in self._able()]
        # Listing may have taken long. Whoever holds the loop now decides.
        if await self._hold():
            await asyncio.gather(
                *(
                    self._hand_over(
                        name, [one for one in acted if one.provider == name], seen, found.now
                    )
                    for name in self._able()
                )
            )
        return _shown(observation)

    def _able(self) -> list[str]:
        return [name for name in self._fleets if name not in self._faults]

    async def _list(self, name: str, fleet: FleetProvider) -> None:
        machines = await self._call(name, fleet.have())
        if machines is not None:
            self._machines[name] = tuple(machines)

    def _seen(self, found: FleetFacts) -> Seen:
        workers = {
            one.id: SeenWorker(
                one.provider or "unknown",
                one.gpu_class or "",
                one.is_online,
                one.is_drained,
                one.held,
            )
            for one in found.workers
        }
        left_out = frozenset(self._fleets) - frozenset(self._able())
        return Seen(found.work, workers, self._machines, found.speeds, left_out)

    # Acting ----------------------------------------------------------------------------------

    async def _hand_over(
        self, name: str, decisions: Sequence[Decision], seen: Seen, now: float
    ) -> None:
        """Carry out the decisions about one provider, and end its machines that are done."""
        fleet, machines = self._fleets[name], self._machines[name]
        done = self._done(machines, seen, now)
        for decision, number in await self._record(decisions):
            there = [one for one in machines if one.gpu_class == decision.gpu_class]
            staying = [one for one in there if not seen.is_leaving(one)]
            # To the provider, those that are only asked to claim nothing more are still there.
            leaving = [
                one
                for one in there
                if seen.is_leaving(one) and one.state is not MachineState.DRAINING
            ]
            if decision.wanted >= len(staying):
                count = decision.wanted + len(leaving)
                await self._call(name, fleet.want(decision.gpu_class, count), number)
            else:
                done += await self._drain(staying, seen, len(staying) - decision.wanted)
        if done:
            await self._call(name, fleet.drain(done))

    def _done(self, machines: Sequence[Machine], seen: Seen, now: float) -> list[str]:
        """Return the machines to end: their workers take no more jobs, and hold none or have had
        their grace.
        """
        leaving = {
            one.worker_id: seen.workers[one.worker_id]
            for one in machines
            if one.state is not MachineState.DRAINING and seen.is_leaving(one)
        }
        gone = {one.worker_id for one in machines} - set(leaving)
        self._leaving = {key: since for key, since in self._leaving.items() if key not in gone}
        done = []
        for worker_id, worker in leaving.items():
            since = self._leaving.setdefault(worker_id, now)
            is_late = now - since >= self._plan.drain_grace_s
            if worker.held == 0 or not worker.is_online or is_late:
                done.append(worker_id)
        return done

    async def _drain(self, staying: Sequence[Machine], seen: Seen, count: int) -> list[str]:
        """Ask workers to claim nothing more. Return those that cannot have a job already."""
        busy = {name for name, worker in seen.workers.items() if worker.held}
        unheard = []
        for worker_id in choose_to_drain(staying, busy, count):
            if not await _in_thread(self._store.drain, worker_id):
                unheard.append(worker_id)
        return unheard

    async def _record(self, decisions: Sequence[Decision]) -> list[tuple[Decision, int | None]]:
        """Store the decisions that change something, and return all with the ids of those."""
        news = [one for one in decisions if self._is_news(one)]
        ids = await _in_thread(self._store.add_decisions, news) if news else ()
        numbers = {id(one): number for one, number in zip(news, ids, strict=True)}
        for one in news:
            self._recorded[one.provider, one.gpu_class] = one.wanted
            logger.info("workers wanted", extra=_logged(one))
        return [(one, numbers.get(id(one))) for one in decisions]

    def _is_news(self, decision: Decision) -> bool:
        recorded = self._recorded.get((decision.provider, decision.gpu_class), 0)
        return decision.wanted != decision.had or decision.wanted != recorded

    async def _call(
        self, name: str, call: Coroutine[Any, Any, T], decision_id: int | None = None
    ) -> T | None:
        """Await a call to a provider within its limit. A fault is kept, and None returned."""
        try:
            async with asyncio.timeout(self._call_s):
                return await call
        except TimeoutError:
            fault = f"{name} did not answer within {self._call_s:g} s."
        except FleetError as error:
            fault = f"{name}: {error}"
        except Exception as error:
            # A provider is another package's code, and must not end the loop.
            logger.exception("a provider failed unexpectedly", extra={"provider": name})
            fault = f"{name} failed unexpectedly ({type(error).__name__}); the log has the details."
        logger.warning("a provider did not do its part", extra={"provider": name, "error": fault})
        self._faults[name] = fault
        if decision_id is not None:
            await _in_thread(self._store.decision_failed, decision_id, fault)
        return None

    # Holding ---------------------------------------------------------------------------------

    async def _hold(self) -> bool:
        return await _in_thread(self._store.hold_loop, SCALING, self._holder, LEASE_S)

    async def _let_go(self) -> None:
        fleets, self._fleets, self._memory = self._fleets, {}, {}
        self._recorded, self._machines = {}, {}
        for name, fleet in fleets.items():
            # It may wait for what it has started, so its own limit counts, not that of a call.
            try:
                await fleet.close()
            except Exception:
                logger.exception("a provider could not be closed", extra={"provider": name})
        if fleets:
            await self._try_to_release()

    async def _try_to_release(self) -> None:
        try:
            await _in_thread(self._store.release_loop, SCALING, self._holder)
        except Exception:
            logger.exception("the scaling loop could not be released; its lease will expire")

    async def _note(self, facts: dict[str, Any] | None) -> None:
        error = " ".join(self._faults.values()) or None
        try:
            await _in_thread(self._store.note_loop, SCALING, self._holder, error, facts)
        except Exception:
            logger.exception("a step of scaling could not be stored")


def _shown(seen: Observation) -> dict[str, Any]:
    """Return what a step saw, as it is stored with the loop."""
    rows: list[dict[str, Any]] = []
    for offer in seen.offers:
        there = seen.machines_of(offer)
        count = there.count + there.draining
        rows.append(
            {
                "provider": offer.provider,
                "gpu_class": offer.gpu_class,
                "ready": there.ready,
                "starting": len(there.starting_s),
                "draining": there.draining,
                "frames_per_s": round(offer.frames_per_s, 2),
                "usd_per_hour": round(count * offer.usd_per_hour, 4),
                "usd_per_minute": round(offer.usd_per_minute, 6),
            }
        )
    return {
        "jobs": sum(item.jobs for item in seen.work),
        "frames": round(sum(item.frames for item in seen.work)),
        "usd_per_hour": round(sum(row["usd_per_hour"] for row in rows), 4),
        "offers": rows,
    }


def _logged(decision: Decision) -> dict[str, object]:
    return {
        "provider": decision.provider,
        "gpu_class": decision.gpu_class,
        "had": decision.had,
        "wanted": decision.wanted,
        "reason": decision.reason,
    }


async def _in_thread(act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do something that blocks: an operation of the store."""
    return await asyncio.to_thread(act, *args, **kwargs)
