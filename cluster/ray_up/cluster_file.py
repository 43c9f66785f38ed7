"""Checks a cluster file before anything is rented.

Ray's schema accepts files that can only fail later, some of them at a price. Each rule here is a
sentence with its remedy. `check` is for people; `refuse` is what Ray calls, with the file already
merged with its defaults.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from cluster.ray_up.cluster_settings import NodeSettings, ProviderSettings
from cluster.rental.identity import MAX_WORD_CHARS, as_word

ARCH_LABEL = "musetalk/arch"
ARCHITECTURES = ("turing", "ampere", "ada", "hopper", "blackwell")
STATE_RESOURCE = "lipsync_state"
HEAD_WATCH = "cluster.ray_up.head_watch"
_TOKEN = re.compile(r"\bRAY_AUTH_MODE=token\b")


class ClusterFileInvalid(Exception):
    """A cluster file cannot be used. `faults` has a sentence about each reason."""

    def __init__(self, *faults: str) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


def read_cluster_file(path: Path) -> dict[str, Any]:
    """Return what is in a cluster file.

    Raises:
        ClusterFileInvalid: there is no such file, or it is not a mapping in YAML.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ClusterFileInvalid(f"{path} cannot be read: {exc.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        raise ClusterFileInvalid(f"{path} is not YAML: {' '.join(str(exc).split())}") from None
    if not isinstance(values, dict):
        raise ClusterFileInvalid(f"{path} is not a mapping of keys to values.")
    return values


def check(values: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each fault of a cluster file: ours, or else those of Ray's schema."""
    return list(faults(values)) or _ray_faults(values)


def refuse(config: dict[str, Any]) -> ProviderSettings:
    """Return the settings of `provider:` if the file has no fault.

    Raises:
        ClusterFileInvalid: it has.
    """
    if found := list(faults(config)):
        raise ClusterFileInvalid(*found)
    return ProviderSettings.model_validate(config["provider"])


def _ray_faults(values: Mapping[str, Any]) -> list[str]:
    """Return what Ray's launcher would refuse."""
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        validate_config(prepare_config(dict(values)))
    except jsonschema.ValidationError as exc:
        where = ".".join(str(step) for step in exc.absolute_path) or "the file"
        return [f"Ray refuses `{where}`: {exc.message}."]
    except (AssertionError, KeyError, RuntimeError, ValueError) as exc:
        return [f"Ray refuses the file: {type(exc).__name__}: {exc}."]
    return []


def faults(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each of our rules that a cluster file breaks."""
    provider = values.get("provider")
    types = values.get("available_node_types")
    if not isinstance(provider, dict) or not isinstance(types, dict):
        yield "A cluster file needs `provider` and `available_node_types`, both mappings."
        return
    yield from _model_faults(ProviderSettings, provider, "provider")
    yield from _name_faults(values, types)
    for name, node_type in types.items():
        yield from _node_faults(str(name), node_type, is_head=name == values.get("head_node_type"))
    yield from _command_faults(values, is_multi=provider.get("topology") == "multi")
    yield from _shape_faults(values, types, is_multi=provider.get("topology") == "multi")


def _model_faults(model: type[BaseModel], value: object, place: str) -> Iterator[str]:
    try:
        model.model_validate(value)
    except ValidationError as exc:
        for error in exc.errors():
            where = ".".join([place, *(str(step) for step in error["loc"])])
            message = str(error["msg"]).removeprefix("Value error, ")
            if error["type"] == "extra_forbidden":
                message = f"there is no such key; known here: {', '.join(model.model_fields)}"
            yield f"`{where}`: {message}."


def _name_faults(values: Mapping[str, Any], types: Mapping[str, Any]) -> Iterator[str]:
    """Yield which names cannot be written into the name of a machine."""
    named = [("cluster_name", values.get("cluster_name")), *(("node type", name) for name in types)]
    for what, name in named:
        if not isinstance(name, str) or not name or as_word(name) != name:
            yield (
                f"The {what} {name!r} becomes a part of the machines' names: use lower-case "
                f"letters, digits and single hyphens, at most {MAX_WORD_CHARS} characters."
            )


def _node_faults(name: str, node_type: object, *, is_head: bool) -> Iterator[str]:
    place = f"available_node_types.{name}"
    if not isinstance(node_type, dict):
        yield f"`{place}` must be a mapping."
        return
    yield from _model_faults(NodeSettings, node_type.get("node_config"), f"{place}.node_config")
    resources, labels = node_type.get("resources") or {}, node_type.get("labels") or {}
    if is_head != (resources.get(STATE_RESOURCE) == 1) or (
        not is_head and STATE_RESOURCE in resources
    ):
        yield (
            f"`{place}.resources`: the head, and no other node, has `{STATE_RESOURCE}: 1`. The job "
            "registry is there."
        )
    if "GPU" in resources and labels.get(ARCH_LABEL) not in ARCHITECTURES:
        yield (
            f"`{place}.labels` must have `{ARCH_LABEL}`, one of {', '.join(ARCHITECTURES)}: pools "
            "find their nodes by it."
        )


def _command_faults(values: Mapping[str, Any], *, is_multi: bool) -> Iterator[str]:
    if values.get("setup_commands"):
        yield (
            "`setup_commands` must be []: workers would run them twice. Use `head_setup_commands` "
            "and `worker_setup_commands`."
        )
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        commands = [str(command) for command in values.get(key) or ()]
        starts = [command for command in commands if "ray start" in command]
        if not starts and (is_multi or key.startswith("head")):
            yield f"`{key}` has no `ray start`."
        for start in starts:
            yield from _start_faults(key, start, is_multi=is_multi)
    if is_multi and not any(
        HEAD_WATCH in str(command) for command in values.get("worker_start_ray_commands") or ()
    ):
        yield (
            f"`worker_start_ray_commands` must start `python -m {HEAD_WATCH}`. Without it, workers "
            "whose head is gone cost money until somebody ends them."
        )
    mounts = values.get("file_mounts") or {}
    if "~/.ray/auth_token" not in mounts:
        yield (
            "`file_mounts` must have `~/.ray/auth_token`, the token of Ray's own ports. "
            "`lipsync cluster up` makes one."
        )
    key_file = (values.get("provider") or {}).get("api_key_file")
    if is_multi and key_file not in mounts:
        yield (
            f"`file_mounts` must have `{key_file}`, the vendor's key: the head rents the workers "
            "with it."
        )


def _start_faults(key: str, command: str, *, is_multi: bool) -> Iterator[str]:
    """Yield what a `ray start` lacks."""
    if "--node-ip-address" not in command:
        yield (
            f"`{key}`: `ray start` needs --node-ip-address. Ray guesses it from the way to the "
            "internet, and takes 127.0.0.1 where there is none."
        )
    if not _TOKEN.search(command):
        yield (
            f"`{key}`: `ray start` needs RAY_AUTH_MODE=token before it. Without it, whoever "
            "reaches Ray's ports runs code on the machine."
        )
    if is_multi and key.startswith("head") and "--autoscaling-config" not in command:
        yield f"`{key}`: without --autoscaling-config, `ray start` never starts a worker."


def _shape_faults(
    values: Mapping[str, Any], types: Mapping[str, Any], *, is_multi: bool
) -> Iterator[str]:
    if is_multi:
        return
    if values.get("max_workers") != 0 or len(types) != 1:
        yield (
            "`topology: single` is one machine: `max_workers` must be 0, and the head the only "
            "node type. `lipsync fleet up` starts several such machines."
        )
