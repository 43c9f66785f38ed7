"""Combinations of environment variables that an application must not be started with."""

from __future__ import annotations

from collections.abc import Iterator

from serve_app.config.environment import Environment, EnvironmentInvalid
from serve_app.net.addresses import AddressPolicy

SHARED_STORE = ("B2_KEY_ID", "B2_APP_KEY", "B2_BUCKET_NAME")


def environment_faults(env: Environment) -> Iterator[str]:
    """Yield a sentence for each combination of variables that must not be started with."""
    values = (env.b2_key_id, env.b2_app_key, env.b2_bucket)
    given = [name for name, value in zip(SHARED_STORE, values, strict=True) if value]
    missing = [name for name in SHARED_STORE if name not in given]
    if given and missing:
        yield (
            f"{_listed(given)} set, but {_listed(missing)} not: set all three to upload to B2, "
            "or none of them to keep outputs on this machine"
        )
    yield from _unusable_values(env)
    if env.orchestrator_url is not None or env.mode != "queue":
        from serve_app.fleet.polling import polling_rules  # takes a second to import
        from serve_app.fleet.pushed_reports import report_rules

        try:
            polling_rules(env)
            report_rules(env)
        except EnvironmentInvalid as exc:
            yield str(exc)


def _unusable_values(env: Environment) -> Iterator[str]:
    try:
        AddressPolicy(frozenset(env.allowed_hosts))
    except ValueError as exc:
        yield str(exc)
    if env.webhook_secret is not None:
        from orchestrator.webhooks.posting import signing_key  # takes a second to import

        try:
            signing_key(env.webhook_secret.get_secret_value())
        except ValueError as exc:
            yield str(exc).replace("the webhook secret", "WEBHOOK_SECRET")


def _listed(names: list[str]) -> str:
    return " and ".join(names) + (" is" if len(names) == 1 else " are")
