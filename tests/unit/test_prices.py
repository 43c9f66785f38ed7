"""The prices of the configuration, as receipts need them."""

from __future__ import annotations

from serve_app.config.settings import AppArgs
from serve_app.graph.capacity import SharedCapacity
from serve_app.graph.prices import prices_of
from serve_app.scheduling.pool_state import PoolRates


def test_a_pools_price_is_that_of_a_replica_and_a_stages_that_of_a_thread() -> None:
    args = AppArgs.model_validate(
        {
            "pools": [{"name": "ada", "usd_per_hour": 0.16}, {"name": "own"}],
            "preprocessor": {"usd_per_hour": 0.04, "threads": 4},
            "finisher": {"usd_per_hour": 0.02, "threads": 2},
        }
    )
    prices = prices_of(args)
    assert prices.are_known
    assert prices.pools == {"ada": 0.16, "own": 0.0}
    assert prices.stages == {
        **dict.fromkeys(("validation", "load", "prepare", "listen"), 0.01),
        **dict.fromkeys(("compose", "stitch", "upload"), 0.01),
    }


def test_prices_that_changed_while_the_application_runs_count() -> None:
    args = AppArgs.model_validate({"pools": [{"name": "ada", "usd_per_hour": 0.16}]})
    scheduler = SharedCapacity(args).scheduler
    assert prices_of(args, scheduler.usd_per_hour()).pools == {"ada": 0.16}
    scheduler.set_rates(PoolRates("ada", usd_per_hour=0.25))
    assert prices_of(args, scheduler.usd_per_hour()).pools == {"ada": 0.25}


def test_a_configuration_without_prices_knows_none() -> None:
    assert not prices_of(AppArgs.model_validate({"pools": [{"name": "cpu"}]})).are_known
