"""The configured prices, in the form that receipts need."""

from __future__ import annotations

from collections.abc import Mapping

from musetalk_pipeline.receipts.receipt import Prices
from serve_app.config.settings import AppArgs, StageSettings

# What the threads of each stage do, by published stage. A download needs no thread.
PREPROCESSED = ("validation", "load", "prepare", "listen")
FINISHED = ("compose", "stitch", "upload")


def prices_of(args: AppArgs, pools: Mapping[str, float] | None = None) -> Prices:
    """Return what replicas cost an hour; of the stages on the CPU, what one thread costs.

    `pools`: the prices of the pools now, if they may differ from the configuration's.
    """
    if pools is None:
        pools = {pool.name: pool.usd_per_hour for pool in args.pools}
    preprocessing = dict.fromkeys(PREPROCESSED, _of_thread(args.preprocessor))
    return Prices(pools, preprocessing | dict.fromkeys(FINISHED, _of_thread(args.finisher)))


def _of_thread(stage: StageSettings) -> float:
    return stage.usd_per_hour / stage.threads
