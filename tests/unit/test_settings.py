"""The configuration is checked strictly, and the environment is read as docs/protocol.md says."""

import ast
import inspect
import typing
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from serve_app.config.environment import Environment, EnvironmentInvalid, read_environment
from serve_app.config.memory import machine_memory_bytes
from serve_app.config.sections import PoolSettings, StageSettings
from serve_app.config.settings import AppArgs, Section, jobs_at_a_time, jobs_for, reported_jobs

ROOT = Path(__file__).resolve().parents[2]
POOLS = [{"name": "cpu"}]


@pytest.mark.parametrize("path", sorted(ROOT.glob("serve_config*.yaml")), ids=lambda p: p.name)
def test_every_configuration_of_the_project_is_valid(path):
    document = yaml.safe_load(path.read_text())
    AppArgs.model_validate(document["applications"][0]["args"])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"enigne": "warp"}, "enigne"),
        ({"queue": {"max_jobs": 1}}, "max_jobs"),
        ({"pools": [{"name": "cpu", "gpus": 1}]}, "gpus"),
        ({"pools": []}, "pools"),
        ({"pools": [{"name": "a"}, {"name": "a"}]}, "pool names must differ"),
        ({"pools": [{"name": "A b"}]}, "lower-case"),
        ({"engine": "gan"}, "engine"),
        ({"driver": {"tries": 0}}, "tries"),
        ({"preprocessor": {"replicas": 3, "max_replicas": 2}}, "max_replicas"),
        ({"defaults": {"crf": 99}}, "crf"),
    ],
)
def test_a_wrong_key_or_value_stops_the_start_and_is_named(change, named):
    with pytest.raises(ValidationError, match=named):
        AppArgs.model_validate({"pools": POOLS} | change)


def test_defaults_reach_the_jobs_options():
    args = AppArgs(pools=POOLS, defaults={"crf": 23, "extra_margin": 5, "fit": "crop"})
    options = args.job_defaults()
    assert (options.encode.crf, options.face.extra_margin, options.frame.fit) == (23, 5, "crop")


def test_v1_parses_raw_unless_told_otherwise():
    assert AppArgs(pools=POOLS, version="v1").job_defaults().mask.parsing_mode == "raw"
    chosen = AppArgs(pools=POOLS, version="v1", defaults={"parsing_mode": "neck"})
    assert chosen.job_defaults().mask.parsing_mode == "neck"


def test_the_environment_is_read_with_the_contracts_defaults():
    env = read_environment({})
    assert (env.worker_type, env.provider, env.poll_interval_s) == ("main", "unknown", 5.0)
    assert (env.b2_prefix, env.config_label, env.polling_url) == ("avatar/outputs", "default", None)
    assert (env.mode, env.is_buffer) == ("queue", False)


def test_buffer_mode_has_its_own_orchestrator_or_the_main_one():
    main = {"ORCHESTRATOR_BASE_URL": "http://main", "WORKER_MODE": "buffer"}
    assert read_environment(main).polling_url == "http://main"
    own = main | {"BUFFER_ORCHESTRATOR_BASE_URL": "http://buffer"}
    assert read_environment(own).polling_url == "http://buffer"
    assert read_environment({"BUFFER_WORKER_ID": "b1"}).is_buffer


UNIFIED = {"ORCHESTRATOR_BASE_URL": "http://o", "INTERNAL_API_KEY": "k", "WORKER_TYPE": "main"}


@pytest.mark.parametrize(
    ("env", "mode"),
    [
        ({}, "queue"),
        (UNIFIED, "poll"),
        (UNIFIED | {"WORKER_TYPE": ""}, "queue"),
        ({**UNIFIED, "INTERNAL_API_KEY": ""}, "queue"),
        ({"INTERNAL_API_KEY": "k", "WORKER_TYPE": "main"}, "queue"),
        (UNIFIED | {"WORKER_MODE": "Queue"}, "queue"),
        (UNIFIED | {"WORKER_MODE": " "}, "poll"),
        ({"WORKER_MODE": "POLL"}, "poll"),
        ({"WORKER_MODE": "Buffer"}, "buffer"),
        (UNIFIED | {"BUFFER_WORKER_ID": "b1"}, "buffer"),
        ({"BUFFER_WORKER_ID": "b1", "WORKER_MODE": "queue"}, "buffer"),
    ],
)
def test_the_mode_is_chosen_as_the_contract_says(env, mode):
    """Mend 1.3."""
    assert read_environment(env).mode == mode


def test_an_unknown_mode_is_refused_with_those_there_are():
    """Mend 1.3."""
    with pytest.raises(EnvironmentInvalid, match="WORKER_MODE must be one of poll, buffer, queue"):
        read_environment({"WORKER_MODE": "push"})


def test_an_empty_prefix_is_the_buckets_root():
    """Mend 1.17."""
    assert read_environment({"B2_PREFIX": ""}).b2_prefix == ""


def test_secrets_do_not_show():
    secrets = {
        name: "s3cret"
        for name in ("INTERNAL_API_KEY", "WORKER_TOKEN", "B2_KEY_ID", "B2_APP_KEY",
                     "WEBHOOK_SECRET")
    }  # fmt: skip
    env = read_environment(secrets)
    assert "s3cret" not in repr(env) + str(env) + str(env.model_dump())
    assert set(env.secrets) == {"s3cret"}


def test_variables_of_this_process_are_read_on_request_only(monkeypatch):
    monkeypatch.setenv("WORKER_TYPE", "transient")
    assert Environment().worker_type == "main"
    assert read_environment().worker_type == "transient"


def test_every_faulty_variable_is_named_and_no_value_is_repeated():
    wrong = {"BATCH_SIZE": "s3cret", "BUFFER_CAPACITY": "-1", "LEGACY_SIZE": "s3cret"}
    with pytest.raises(EnvironmentInvalid) as caught:
        read_environment(wrong)
    assert all(name in str(caught.value) for name in wrong)
    assert "s3cret" not in str(caught.value)


def test_a_number_that_is_none_is_named():
    with pytest.raises(EnvironmentInvalid, match="POLL_INTERVAL_SEC"):
        read_environment({"POLL_INTERVAL_SEC": "soon"})
    for value in ("many", "nan", "inf", "2.5"):
        with pytest.raises(EnvironmentInvalid, match="BATCH_SIZE"):
            read_environment({"BATCH_SIZE": value})
    with pytest.raises(EnvironmentInvalid, match="BATCH_SIZE"):
        read_environment({"BATCH_SIZE": "-4"})


# --- every setting does something -----------------------------------------------------------------

# A setting that is meant to have no reader, and why. A setting without a reason is a defect.
WITHOUT_READER: dict[str, str] = {}


def leaves(section: type[BaseModel], prefix: str = "") -> dict[str, str]:
    """Return the settings below a section: where each is written, and its name."""
    found = {}
    for name, field in section.model_fields.items():
        kinds = (field.annotation, *typing.get_args(field.annotation))
        inner = [kind for kind in kinds if inspect.isclass(kind) and issubclass(kind, Section)]
        if inner:
            found |= leaves(inner[0], f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = name
    return found


def read_names(tree: ast.AST) -> set[str]:
    """Return the names of the attributes that are read; a validator's looks do not count."""
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef) and any(
            "validator" in ast.unparse(decorator) for decorator in node.decorator_list
        ):
            continue
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            found.add(node.attr)
        found |= read_names(node)
    return found


def test_every_setting_is_read_by_something():
    """Mend 3.3: `driver.block_s` was documented and checked, and nothing looked at it."""
    reads: set[str] = set()
    for path in sorted((ROOT / "serve_app").rglob("*.py")):
        reads |= read_names(ast.parse(path.read_text()))
    asked = leaves(AppArgs) | leaves(Environment)
    assert {"driver.block_s", "pools.dtype", "inputs.max_fps", "internal_api_key"} <= asked.keys()
    idle = {place for place, name in asked.items() if name not in reads}
    assert idle == WITHOUT_READER.keys()
    assert all(WITHOUT_READER.values())


def test_what_the_test_above_calls_a_reader():
    code = "@model_validator()\ndef f(self): return self.a\ndef g(self): self.b = self.c"
    assert read_names(ast.parse(code)) == {"c"}


@pytest.mark.parametrize("kind", [StageSettings, PoolSettings])
def test_replicas_fit_into_the_most_of_them(kind: type) -> None:
    """A pool whose maximum was below its replicas was found out by Ray, after the start."""
    name = {"name": "gpu"} if kind is PoolSettings else {}
    with pytest.raises(ValueError, match="max_replicas is smaller than replicas"):
        kind(**name, replicas=4, max_replicas=2)


@pytest.mark.parametrize(
    ("gigabytes", "jobs"), [(1, 2), (4, 2), (8, 4), (16, 8), (32, 16), (512, 16)]
)
def test_the_number_of_jobs_follows_from_the_memory(gigabytes, jobs):
    assert jobs_for(gigabytes * 1_000_000_000) == jobs


def test_without_a_number_as_many_jobs_are_reported_as_replicas_and_one():
    """More would wait for each other here, while another worker may be idle."""
    env, pools = read_environment({}), [{"name": "a"}]
    args = AppArgs.model_validate({"pools": pools})
    assert jobs_at_a_time(args, env) == jobs_for(machine_memory_bytes())
    assert reported_jobs(args, env) == 2


@pytest.mark.parametrize(
    ("variables", "queue", "jobs"),
    [
        ({}, {"max_concurrent_jobs": 9}, 9),
        ({"WORKER_MAX_CONCURRENT_JOBS": "7"}, {"max_concurrent_jobs": 9}, 7),
        ({"WORKER_MODE": "buffer", "BUFFER_CAPACITY": "5"}, {}, 5),
    ],
)
def test_a_number_that_is_given_decides(variables, queue, jobs):
    args = AppArgs.model_validate({"pools": POOLS, "queue": queue})
    env = read_environment(variables)
    assert (jobs_at_a_time(args, env), reported_jobs(args, env)) == (jobs, jobs)
