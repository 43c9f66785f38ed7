"""`user_config` is checked strictly, and changes what it names and nothing else."""

import pytest

from serve_app.config.live_settings import changed, read_live_settings
from serve_app.config.settings import AppArgs, PoolSettings

ADA = PoolSettings(name="ada", usd_per_hour=0.4, frames_per_s=50.0)
ARGS = AppArgs(pools=[ADA, PoolSettings(name="hopper")])


def test_nothing_changes_without_it():
    for values in (None, {}):
        live = read_live_settings(values, ARGS)
        assert live.policy is None
        assert changed(ADA, live) == ADA
        assert live.is_on("ada")


def test_a_price_changes_and_the_rest_stays():
    live = read_live_settings({"pools": {"ada": {"usd_per_hour": 0.0}}}, ARGS)
    now = changed(ADA, live)
    assert (now.usd_per_hour, now.frames_per_s) == (0.0, 50.0)
    assert changed(ARGS.pools[1], live) == ARGS.pools[1]


def test_a_pool_is_switched_off():
    live = read_live_settings({"pools": {"ada": {"is_on": False}}}, ARGS)
    assert not live.is_on("ada") and live.is_on("hopper")


def test_claimed_jobs_may_get_a_larger_share():
    live = read_live_settings({"weights": {"claimed": 3}}, ARGS)
    assert live.weights == {"claimed": 3.0}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"pools": {"adda": {}}},
         "user_config names the pool `adda`, which `pools` does not have; did you mean `ada`?"),
        ({"pools": {"turing": {}}}, "known here: ada, hopper"),
        ({"polcy": "cheapest"}, "user_config: `polcy`: Extra inputs are not permitted"),
        ({"policy": "best"}, "user_config: `policy`: Input should be"),
        ({"pools": {"ada": {"usd_per_hour": -1}}}, "`pools.ada.usd_per_hour`"),
        ({"weights": {"sync": 0}}, "`weights.sync`: Input should be greater than 0"),
        ({"weights": {"other": 1}}, "`weights.other.[key]`"),
        (["ada"], "user_config: `user_config`: Input should be"),
    ],
)  # fmt: skip
def test_a_fault_is_said_in_a_sentence(values: object, said: str):
    with pytest.raises(ValueError, match="user_config") as caught:
        read_live_settings(values, ARGS)  # type: ignore[arg-type]
    assert said in str(caught.value)
