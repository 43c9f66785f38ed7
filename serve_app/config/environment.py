"""The environment of the worker contract, read once per process.

Secrets are hidden from `repr`. Code that needs the text of one calls `get_secret_value()`,
where it leaves this process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr, ValidationError
from pydantic_settings import EnvSettingsSource

from serve_app.config.variable_kinds import Mode
from serve_app.config.variables import Callers, Fetching, Fleet, Results, Running

MAY_BE_EMPTY = "B2_PREFIX"  # the bucket's root


class EnvironmentInvalid(ValueError):
    """An environment variable has a value that cannot be used. Says which and what is accepted."""


SECTIONS = (Callers, Fetching, Running, Results, Fleet)


class Environment(Callers, Fetching, Running, Results, Fleet):
    """The environment of the worker contract, as far as the application itself acts on it."""

    @property
    def secrets(self) -> tuple[str, ...]:
        """What no log line may show."""
        values = (getattr(self, name) for name in type(self).model_fields)
        return tuple(value.get_secret_value() for value in values if isinstance(value, SecretStr))

    @property
    def mode(self) -> Mode:
        """Where jobs come from (docs/protocol.md §2, "Modes")."""
        if self.worker_mode == "buffer" or self.buffer_worker_id is not None:
            return "buffer"
        if self.worker_mode is not None:
            return self.worker_mode
        # The environment of the worker that was poller and server in one.
        has_type = "worker_type" in self.model_fields_set
        is_unified = has_type and self.orchestrator_url and self.internal_api_key
        return "poll" if is_unified else "queue"

    @property
    def is_buffer(self) -> bool:
        """Whether this worker uses the buffer protocol."""
        return self.mode == "buffer"

    @property
    def polling_url(self) -> str | None:
        """The orchestrator to poll; None in queue mode, or if there is none."""
        if self.mode == "queue":
            return None
        if self.is_buffer and self.buffer_orchestrator_url:
            return self.buffer_orchestrator_url
        return self.orchestrator_url

    @property
    def machine_id(self) -> str | None:
        """The identity that this machine was given; None if there is none."""
        given = (self.salad_machine_id, self.vast_container_label, self.octaspace_node_id)
        return next((name for name in (*given, self.own_id) if name), None)


def read_environment(env: Mapping[str, str] = os.environ) -> Environment:
    """Read every variable. Empty ones count as unset.

    Raises:
        EnvironmentInvalid: values cannot be used. Correct the variables that it names and start
            again.
    """
    names = [variable.name for variable in documented()]
    source = EnvSettingsSource(Environment)
    source.env_vars = {name: env[name] for name in names if env.get(name)}
    if MAY_BE_EMPTY in env:
        source.env_vars[MAY_BE_EMPTY] = env[MAY_BE_EMPTY]
    try:
        return Environment(_build_sources=((source,), {}))
    except ValidationError as exc:
        # The values stay out of the sentence, since some are secrets.
        faults = [f"{error['loc'][0]} {_reason(error)}" for error in exc.errors()]
        raise EnvironmentInvalid("; ".join(faults)) from None


def secret_text(secret: SecretStr | None) -> str | None:
    """Return a secret's text, None if it is not set."""
    return None if secret is None else secret.get_secret_value()


def _reason(error: Any) -> str:
    return str(error["msg"]).removeprefix("Value error, ")


# --- the documentation ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Variable:
    """A row of the documentation, in Markdown. `section` is its heading."""

    section: str
    name: str
    default: str
    description: str


def documented() -> Iterator[Variable]:
    """Yield every variable, section by section."""
    for section in SECTIONS:
        for field in section.model_fields.values():
            extra = field.json_schema_extra
            shown = extra.get("default") if isinstance(extra, dict) else None
            yield Variable(
                section=section.__doc__ or "",
                name=str(field.validation_alias),
                default=str(shown or _default(field.default)),
                description=field.description or "",
            )


def _default(value: Any) -> str:
    if value is None or value == ():
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"
