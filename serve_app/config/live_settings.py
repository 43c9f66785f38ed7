"""What can be changed while the application runs: `user_config` of the ingress.

A change of `args` restarts every replica, and so loads all weights again. A change of `user_config`
restarts nothing. The values of `args` apply to whatever is left out here.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from serve_app.config.sections import PoolSettings, Section
from serve_app.config.settings import AppArgs
from serve_app.scheduling.pool_state import Policy

JobOrigin = Literal["sync", "async", "claimed"]
INGRESS = "Ingress"  # the deployment whose `user_config` this is


class LivePool(Section):
    """Changes of one pool."""

    is_on: bool = Field(
        True, description="With `false` the pool gets no more work, and its replicas end."
    )
    usd_per_hour: float | None = Field(
        None, ge=0, description="The price of one replica, in place of the pool's own."
    )
    frames_per_s: float | None = Field(
        None, gt=0, description="The speed that is expected until one has been measured."
    )


class LiveSettings(Section):
    """`user_config:` of the deployment `Ingress`."""

    policy: Policy | None = Field(
        None, description="What decides between pools, in place of `driver.policy`."
    )
    pools: dict[str, LivePool] = Field(
        default_factory=dict, description="Changes of pools, by the name of the pool."
    )
    weights: dict[JobOrigin, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict,
        description="The share of the replicas that a job gets beside others, by its origin: "
        "`sync` (POST /generate), `async` or `claimed`. Without it, 1. Jobs that run keep theirs.",
    )

    def is_on(self, pool: str) -> bool:
        """Return whether a pool may draw."""
        return pool not in self.pools or self.pools[pool].is_on


def read_live_settings(values: dict[str, Any] | None, args: AppArgs) -> LiveSettings:
    """Return the checked `user_config`; the defaults if there is none.

    Raises:
        ValueError: something is wrong; the message has a sentence about each fault.
    """
    try:
        live = LiveSettings.model_validate(values or {})
    except ValidationError as exc:
        faults = [_sentence(error["loc"], str(error["msg"])) for error in exc.errors()]
        raise ValueError("; ".join(faults)) from None
    if faults := unknown_pools(live, args):
        raise ValueError("; ".join(faults))
    return live


def unknown_pools(live: LiveSettings, args: AppArgs) -> list[str]:
    """Return a sentence about each pool in `live` that `args` lacks."""
    names = [pool.name for pool in args.pools]
    return [_unknown(name, names) for name in live.pools if name not in names]


def changed(pool: PoolSettings, live: LiveSettings) -> PoolSettings:
    """Return a pool's settings with what `live` changes."""
    change = live.pools.get(pool.name, LivePool())
    values = change.model_dump(exclude={"is_on"}, exclude_none=True)
    return pool.model_copy(update=values)


def _unknown(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    meant = f"did you mean `{close[0]}`?" if close else f"known here: {', '.join(names)}"
    return f"user_config names the pool `{name}`, which `pools` does not have; {meant}"


def _sentence(place: tuple[int | str, ...], message: str) -> str:
    where = ".".join(str(step) for step in place) or "user_config"
    return f"user_config: `{where}`: {message.removeprefix('Value error, ')}"
