"""The start: whatever cannot succeed is refused in sentences, before Ray is started."""

from __future__ import annotations

import logging
import os
import re
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.config.config_file import ConfigInvalid
from serve_app.launch import _wait_until_ready, ready_line
from serve_app.launcher.checks import Start, check_start, listened_on
from serve_app.launcher.machine import has_ipv6
from serve_app.launcher.ray_cluster import (
    Cluster,
    StartFailed,
    State,
    environment_before_ray,
    environment_of_replicas,
    last_error,
)
from serve_app.launcher.stop_requests import StopRequests
from tests.ports import reserved_port
from tests.serve.running import ROOT

SHARED = {"B2_KEY_ID": "0123456789", "B2_APP_KEY": "secret-secret", "B2_BUCKET_NAME": "bucket"}
POLLING = {
    "ORCHESTRATOR_BASE_URL": "http://127.0.0.1:9",
    "INTERNAL_API_KEY": "k" * 20,
    "WORKER_TYPE": "main",
}


OURS = "applications:\n  - name: lipsync\n    import_path: serve_app.app:build_app\n"


_reserved = ExitStack()


@pytest.fixture(autouse=True)
def ports_of_this_test() -> Iterator[None]:
    """Keep the ports that `free_port` gives from everybody else until the test has ended."""
    with _reserved:
        yield


def free_port() -> int:
    return _reserved.enter_context(reserved_port())


def config(folder: Path, text: str = "", **changes: str) -> Path:
    """Write the project's configuration with ports of its own and the named texts replaced."""
    text = text or (ROOT / "serve_config.yaml").read_text()
    changes = {"port: 8000": f"port: {free_port()}", **changes}
    for old, new in changes.items():
        text = text.replace(old, new)
    text = text.replace("    args:\n", "    args:\n      metrics_port: 0\n", 1)
    path = folder / "serve_config.yaml"
    path.write_text(text)
    return path


def line_of(path: Path, text: str) -> int:
    """Return the number of the line that holds `text`."""
    lines = path.read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


def faults(path: Path, environ: Mapping[str, str] | None = None) -> list[str]:
    """Return the sentences that the start is refused with."""
    with pytest.raises(ConfigInvalid) as refused:
        check_start(path, environ or {})
    return list(refused.value.faults)


def started(path: Path, environ: Mapping[str, str] | None = None) -> Start:
    """Return what would be started."""
    return check_start(path, environ or {})


def launch(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the launcher as `make serve` does, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "serve_app.launch", *arguments],
        cwd=ROOT,
        env=os.environ | {"RAY_ADDRESS": "local"} | variables,
        capture_output=True,
        text=True,
        timeout=120,
    )


# --- the file -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["serve_config.yaml", "serve_config.gpu.yaml"])
def test_the_projects_own_files_have_no_unknown_key_and_no_wrong_value(
    name: str, tmp_path: Path
) -> None:
    text = (ROOT / name).read_text().replace("num_gpus: 0.", "num_gpus: 0  # ")
    text = text.replace("engine: musetalk", "engine: warp").replace("mmpose", "mesh")
    assert started(config(tmp_path, text)).app_name == "lipsync"


def test_a_file_that_is_not_there_is_one_sentence_and_status_2() -> None:
    """Mend 2.13: `make serve CONFIG=nope.yaml` was a ModuleNotFoundError."""
    answer = launch("nope.yaml")
    assert answer.returncode == 2
    assert answer.stderr == "lipsync-serve: there is no configuration file nope.yaml\n"
    assert answer.stdout == ""


def test_a_misspelt_key_ends_the_start_with_its_line_and_what_is_meant(tmp_path: Path) -> None:
    """Mend 2.2: `enginee: warp` was alive after twenty minutes."""
    path = config(tmp_path, **{"engine: auto": "enginee: warp"})
    answer = launch(str(path))
    assert answer.returncode == 2
    line = line_of(path, "enginee")
    said = f"lipsync-serve: {path}:{line}: unknown key `enginee`; did you mean `engine`?\n"
    assert answer.stderr == said


def test_every_fault_of_a_file_is_said_at_once_each_with_its_line(tmp_path: Path) -> None:
    """Mend 2.2: keys that Ray's own schema lets pass are named too, and what is accepted."""
    path = config(
        tmp_path,
        **{
            "http_options:": "http_option:",
            "route_prefix:": "route_prefx:",
            "landmarks: auto": "landmarks: mosh",
            "allowed_folders: []": "max_file_mb: many",
            "arch: any": "archh: any",
        },
    )
    said = faults(path)
    for text, sentence in (
        ("http_option:", "unknown key `http_option`; did you mean `http_options`?"),
        ("route_prefx", "unknown key `route_prefx`; did you mean `route_prefix`?"),
        ("archh", "unknown key `archh`; did you mean `arch`?"),
        ("mosh", "`landmarks: 'mosh'` is not accepted; it must be 'auto', 'mesh', 'onnx'"),
        ("many", "`max_file_mb: 'many'` is not accepted; it must be a valid integer"),
    ):
        [found] = [one for one in said if sentence in one]
        assert found.startswith(f"{path}:{line_of(path, text)}: "), found
    assert len(said) == 5


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "applications: [\n  - x: 1\nname: y",
            r":\d: this is not YAML",
        ),
        (
            "applications: []\nproxy_location: HeadOnly\napplications: []",
            ":3: `applications` comes",
        ),
        ("- applications", ":1: a configuration is a mapping"),
        ("proxy_location: HeadOnly", ":1: `applications` is missing"),
        ("applications: []", "no application here has `import_path: serve_app.app:build_app`"),
        ("a\x00b: 1", "is not YAML"),
        ("applications: &a [*a]", "contains itself"),
        (OURS, ":2: `args` is missing"),
        (OURS + "    args:\n", ":4: `args: None` is not accepted; it must be a mapping of keys"),
        (OURS + "    args: {queue: }\n", ":4: `pools` is missing"),
    ],
)
def test_a_file_of_another_kind_is_said_so(text: str, sentence: str, tmp_path: Path) -> None:
    """Mend 2.2."""
    path = tmp_path / "serve_config.yaml"
    path.write_text(text)
    assert re.search(sentence, faults(path)[0])


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("name: lipsync", "name: mouths", "`name` is 'mouths', and must be 'lipsync'"),
        ("name: lipsync", "external_scaler_enabled: false", "`name` is not set, and must be"),
        ("route_prefix: /", "route_prefix: /lip", "`route_prefix` is '/lip', and must be '/'"),
    ],
)
def test_what_the_ingress_and_the_gate_know_by_name_cannot_be_renamed(
    old: str, new: str, said: str, tmp_path: Path
) -> None:
    """Mend 2.2: the start never became ready, and said nothing."""
    path = config(tmp_path, **{old: new})
    [fault] = faults(path)
    assert fault.startswith(f"{path}:") and said in fault


# --- the environment ------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", list(SHARED))
def test_storage_that_is_set_in_part_refuses_the_start(missing: str, tmp_path: Path) -> None:
    """Mend 1.4: a success with a loopback address was reported."""
    environ = {name: value for name, value in SHARED.items() if name != missing}
    [said] = faults(config(tmp_path), environ)
    assert f"are set, but {missing} is not" in said
    assert not any(value in said for value in SHARED.values())


def test_polling_needs_no_storage_at_the_start(tmp_path: Path) -> None:
    """The orchestrator may sign addresses for outputs; else nothing is claimed."""
    path = config(tmp_path)
    assert started(path, POLLING).env.polling_url
    assert started(path, POLLING | {"ALLOW_LOCAL_STORE": "true"}).env.polling_url
    assert started(path, POLLING | SHARED).env.polling_url
    assert started(path, {}).env.polling_url is None


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"WORKER_MODE": "push"}, "WORKER_MODE must be one of poll, buffer, queue"),
        ({"WORKER_MODE": "poll"} | SHARED, "ORCHESTRATOR_BASE_URL must be set"),
        ({"BUFFER_WORKER_ID": "b"} | SHARED, "ORCHESTRATOR_BASE_URL must be set"),
        ({"BUFFER_WORKER_ID": "b"} | SHARED, "so BUFFER_ORCHESTRATOR_BASE_URL or ORCH"),
        (
            POLLING | SHARED | {"WORKER_MODE": "buffer", "BUFFER_ORCHESTRATOR_BASE_URL": "b:1"},
            "BUFFER_ORCHESTRATOR_BASE_URL must start",
        ),
        (POLLING | SHARED | {"WORKER_TYPE": "buffer"}, "WORKER_TYPE must be one of"),
        (POLLING | SHARED | {"ORCHESTRATOR_BASE_URL": "o:1"}, "ORCHESTRATOR_BASE_URL must start"),
        (POLLING | {"WORKER_MODE": "queue", "INTERNAL_API_KEY": "two\nlines"}, "INTERNAL_API_KEY"),
    ],
)
def test_a_mode_that_cannot_work_refuses_the_start(
    tmp_path: Path, environ: dict[str, str], said: str
) -> None:
    """Mend 1.3."""
    [fault] = faults(config(tmp_path), environ)
    assert said in fault


def test_a_clusters_own_environment_is_judged_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mend 1.4: where the replicas run, which is not where the launcher looked."""
    for name in (*SHARED, *POLLING, "ALLOW_LOCAL_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("B2_KEY_ID", "id")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Ray's, about its use of pydantic
        from serve_app.app import AppArgs, EnvironmentInvalid, PoolSettings, build_app
    args = AppArgs(pools=[PoolSettings(name="cpu")])
    with pytest.raises(EnvironmentInvalid, match="B2_APP_KEY"):
        build_app(args)


def test_a_variable_that_is_no_number_refuses_the_start(tmp_path: Path) -> None:
    """Mend 2.2."""
    assert faults(config(tmp_path), {"BATCH_SIZE": "big"}) == ["BATCH_SIZE must be a number"]


def test_a_misspelt_size_rule_refuses_the_start(tmp_path: Path) -> None:
    """Mend 1.9: it was taken for none, and sizes were honoured."""
    [said] = faults(config(tmp_path), {"LEGACY_SIZE": "sorce"})
    assert said == "LEGACY_SIZE must be `source`, or not be set"
    assert started(config(tmp_path), {"LEGACY_SIZE": "Source"}).env.legacy_size_source


def test_an_allow_list_or_a_webhook_secret_that_cannot_be_used_refuses_the_start(
    tmp_path: Path,
) -> None:
    """Mend 2.2: a replica failed at it, with a trace that showed the value."""
    [said] = faults(config(tmp_path), {"ALLOWED_SOURCE_HOSTS": "good.example,http://u:hunter2@h/"})
    assert "'http://h/' in ALLOWED_SOURCE_HOSTS" in said
    path = config(tmp_path, **{"allowed_folders: []": "allowed_hosts: ['*']"})
    [said] = faults(path)
    assert said.startswith(f"{path}:{line_of(path, 'allowed_hosts')}: '*' in ")
    [said] = faults(config(tmp_path), {"WEBHOOK_SECRET": "hunter2"})
    assert said.startswith("WEBHOOK_SECRET must be") and "hunter2" not in said


# --- the machine ----------------------------------------------------------------------------------


def test_missing_weights_are_named_with_the_command_that_fetches_them(tmp_path: Path) -> None:
    """Mend 2.2: `engine: musetalk` without weights was alive after ten minutes."""
    models = tmp_path / "models"
    path = config(tmp_path, **{"engine: auto": f"engine: musetalk\n      models_dir: {models}"})
    [said] = faults(path)
    assert said.startswith(f"{path}:{line_of(path, 'engine: musetalk')}: ")
    assert "musetalkV15/unet.pth" in said
    # Without options another version would be fetched, into another folder.
    assert f"`lipsync weights fetch --models {models}` fetches them" in said
    path.write_text(
        path.read_text().replace("engine: musetalk", "version: v1\n      engine: musetalk")
    )
    [said] = faults(path)
    assert f"weights fetch --version v1 --models {models}`" in said


def test_the_short_command_is_named_where_it_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mend 2.2."""
    monkeypatch.chdir(tmp_path)
    [said] = faults(config(tmp_path, **{"engine: auto": "engine: musetalk"}))
    assert "; `lipsync weights fetch` fetches them" in said


@pytest.mark.parametrize(
    ("old", "new", "file"),
    [
        ("landmarks: auto", "landmarks: onnx", "dwpose/dw-ll_ucoco_384.onnx"),
        ("landmarks: auto", "face_presence: s3fd", "s3fd/s3fd-619a316812.pth"),
    ],
)
def test_missing_weights_of_a_detector_are_named(
    old: str, new: str, file: str, tmp_path: Path
) -> None:
    """Mend 2.2."""
    path = config(tmp_path, **{old: f"{new}\n      models_dir: {tmp_path}"})
    [said] = faults(path)
    assert file in said and new in said
    assert f"--models {tmp_path}`" in said or f"onnx export {tmp_path}" in said


def test_a_gpu_that_is_not_there_is_said_with_the_line_that_asks_for_it(tmp_path: Path) -> None:
    """Mend 2.2."""
    path = config(tmp_path, **{"arch: any": "arch: any\n          num_gpus: 0.5"})
    answer = launch(str(path), CUDA_VISIBLE_DEVICES="")
    assert answer.returncode == 2
    place = f"lipsync-serve: {path}:{line_of(path, 'num_gpus')}: "
    assert answer.stderr.startswith(place + "`num_gpus: 0.5` asks for an NVIDIA GPU")
    assert answer.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("arch: any", "arch: ada", "`arch: ada` asks for a labelled node"),
        (
            "landmarks: auto",
            "finisher: {label_selector: {disk: large}}",
            "`label_selector` asks for a labelled node",
        ),
        ("arch: any", "num_cpus: 64\n          replicas: 9", "ask for 576.75 CPUs, and this"),
    ],
)
def test_what_ray_would_wait_for_for_ever_refuses_the_start(
    old: str, new: str, said: str, tmp_path: Path
) -> None:
    """Mend 2.2: Ray looks for a place without end, and the start said nothing."""
    path = config(tmp_path, **{old: new})
    [fault] = faults(path)
    assert said in fault and fault.startswith(f"{path}:")
    assert started(path, {"RAY_ADDRESS": "10.0.0.7:6379"}).cluster


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_taken_port_is_said_with_who_has_it(host: str, tmp_path: Path) -> None:
    """Mend 2.2."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if ":" in host and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    with socket.socket(family) as other:
        other.bind((host, 0))
        other.listen()
        port = other.getsockname()[1]
        path = config(tmp_path, **{'"::"': f'"{host}"', "port: 8000": f"port: {port}"})
        [said] = faults(path)
    assert said.startswith(f"port {port} is taken by process {os.getpid()} (")
    assert "WORKER_PORT" in said


def test_worker_port_is_the_port_that_is_listened_on(tmp_path: Path) -> None:
    """Mend 1.15: WORKER_PORT changed the links and not the port."""
    path, port = config(tmp_path), free_port()
    start = started(path, {"WORKER_PORT": str(port)})
    assert start.port == start.document["http_options"]["port"] == port
    asked = yaml.safe_load(path.read_text())["http_options"]["port"]
    assert started(path).port == asked


def test_a_machine_without_ipv6_listens_on_what_it_has(tmp_path: Path) -> None:
    """Mend 1.14: `::` is both families, and must not keep a container with one from starting."""
    assert [listened_on("::", ipv6=there) for there in (True, False)] == ["::", "0.0.0.0"]
    assert [listened_on("127.0.0.1", ipv6=there) for there in (True, False)] == ["127.0.0.1"] * 2
    start = started(config(tmp_path))
    host = listened_on("::", ipv6=has_ipv6())
    assert start.host == start.document["http_options"]["host"] == host


def test_a_cluster_that_is_joined_is_not_judged_by_this_machine(tmp_path: Path) -> None:
    path = config(tmp_path, **{"arch: any": "arch: ada\n          num_gpus: 1"})
    start = started(path, {"RAY_ADDRESS": "10.0.0.7:6379"})
    assert start.cluster == "10.0.0.7:6379"


def test_a_cluster_that_does_not_answer_is_said_so(tmp_path: Path) -> None:
    """Mend 2.2: Ray looked for it for two minutes, with a dozen lines and no sentence."""
    port = free_port()
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}", "127.0.0.1:99999"):
        start = started(config(tmp_path), {"RAY_ADDRESS": address})
        with pytest.raises(StartFailed, match=f"nothing answers at RAY_ADDRESS, {address} "):
            Cluster(start).begin()
    answer = launch(str(config(tmp_path)), RAY_ADDRESS=f"127.0.0.1:{port}")
    assert answer.returncode == 2
    assert "lipsync-serve: nothing answers at RAY_ADDRESS" in answer.stderr.splitlines()[-1]


# --- what Ray is told, and what is said -----------------------------------------------------------


def test_rays_token_is_asked_for_and_no_address_but_loopback_is_used() -> None:
    """Mend 4.10."""
    own = environment_before_ray({})
    assert own["RAY_AUTH_MODE"] == "token"
    assert own["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    assert own["RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS"] == "1"
    assert "RAY_AUTH_MODE" not in environment_before_ray({"RAY_ADDRESS": "10.0.0.7:6379"})
    assert "RAY_AUTH_MODE" not in environment_before_ray({"RAY_AUTH_MODE": "disabled"})
    assert environment_before_ray({"PYTHONPATH": "/a"})["PYTHONPATH"] == f"{ROOT}:/a"


def test_the_ready_line_says_where_what_and_who_may_call(tmp_path: Path) -> None:
    """Mends 2.7 and 4.9."""
    start = started(config(tmp_path))
    facts: dict[str, Any] = {"engine": "warp", "landmarks": "mesh"}
    line = ready_line(start, facts)
    base = f"http://127.0.0.1:{start.port}"
    assert f"ready at {base}, documentation at {base}/docs, studio at {base}/, engine warp" in line
    assert "only this machine may call" in line.lower() and "INGRESS_API_KEY" in line
    for environ, words in (
        ({"INGRESS_API_KEY": "a" * 20}, "need INGRESS_API_KEY"),
        ({"INTERNAL_API_KEY": "a" * 20}, "on this machine need no key"),
        ({"ALLOW_ANONYMOUS": "true"}, "ALLOW_ANONYMOUS"),
    ):
        said = ready_line(started(config(tmp_path), environ), facts)
        assert words in said and "a" * 20 not in said


def test_a_start_that_takes_long_says_what_it_waits_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Mend 2.2: on a cluster that is joined, a place may never come."""
    stops = StopRequests()

    class Waiting:
        def state(self) -> State:
            if len(caplog.messages) == 2:
                stops.request()
            return State(False, None, (), ("Generator-ada",))

    start = started(config(tmp_path))
    with caplog.at_level(logging.INFO, logger="serve_app.launch"):
        assert not _wait_until_ready(start, Waiting(), stops, still_s=0.0)  # type: ignore[arg-type]
    assert caplog.messages[:2] == ["still starting: Generator-ada"] * 2


def test_the_sentence_of_the_innermost_exception_is_what_is_said() -> None:
    """Mend 2.2: a good sentence was hidden in twelve traces."""
    message = (
        "The deployment failed to start 3 times in a row. Error:\n"
        "ray::ServeReplica:lipsync:Preprocessor.initialize() (pid=1, ip=127.0.0.1)\n"
        '  File "x.py", line 3, in y\n    raise ModelLoadFailed(\n'
        "musetalk_pipeline.errors.ModelLoadFailed: a.onnx does not exist. Make it with `x: y`.\n"
    )
    assert last_error(message) == "a.onnx does not exist. Make it with `x: y`."
    assert last_error("") == "Serve does not say why"


@pytest.mark.parametrize(
    ("host", "told"), [('"::"', "127.0.0.1"), ("127.0.0.5", "127.0.0.5"), ('"::1"', "::1")]
)
def test_the_replicas_are_told_what_is_bound(host: str, told: str, tmp_path: Path) -> None:
    """Mend 2.3: links in webhooks and reports begin with it."""
    start = started(config(tmp_path, **{'host: "::"': f"host: {host}"}))
    if start.host == "0.0.0.0":
        pytest.skip("this machine has no IPv6")
    variables = environment_of_replicas(start)
    assert (variables["LIPSYNC_HOST"], variables["WORKER_PORT"]) == (told, str(start.port))


def test_an_address_of_another_machine_is_said_so(tmp_path: Path) -> None:
    """Mend 2.2: the advice was to set another port."""
    [said] = faults(config(tmp_path, **{'host: "::"': "host: 192.0.2.1"}))
    assert "set http_options.host" in said and "192.0.2.1" in said


# --- the working folders --------------------------------------------------------------------------


def test_a_scratch_folder_that_is_a_link_refuses_the_start(tmp_path: Path) -> None:
    """Mend 4.7: in a shared place somebody else may have made it."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "jobs").symlink_to(tmp_path / "elsewhere")
    [said] = faults(config(tmp_path), {"MUSETALK_WORKDIR": str(tmp_path)})
    assert said.startswith(f"The folder {tmp_path}/jobs is a link")
    assert "MUSETALK_WORKDIR" in said


@pytest.mark.parametrize(
    ("key", "setting"),
    [
        ("work_dir", "work_dir (MUSETALK_WORKDIR)"),
        ("result_dir", "result_dir (MUSETALK_RESULT_DIR)"),
        ("state_dir", "state_dir"),
    ],
)
def test_a_folder_that_cannot_be_made_refuses_the_start(
    key: str, setting: str, tmp_path: Path
) -> None:
    """Mend 2.2: it was found out by the replicas, a long start later."""
    (tmp_path / "notes").touch()
    where = {"    args:\n": f"    args:\n      {key}: {tmp_path}/notes/deep\n"}
    [said] = faults(config(tmp_path, **where))
    assert f"{tmp_path}/notes is not a folder. Set {setting} to another one." in said


SCALED = "        - name: cpu\n          replicas: 0\n          max_replicas: 2\n"
POLICY = "policy_function: serve_app.scaling.policy:follow_work"


@pytest.mark.parametrize("other", ["", "policy_function: mine:policy"])
def test_max_replicas_needs_the_policy_beside_args(tmp_path: Path, other: str) -> None:
    """Without it, Ray would scale by open requests, and a pool at 0 would never start."""
    changes = {"        - name: cpu\n": SCALED}
    assert started(config(tmp_path, **changes)).args.is_scaled
    lacking = config(
        tmp_path, **changes, **{f"    autoscaling_policy:\n      {POLICY}\n": "", POLICY: other}
    )
    [said] = faults(lacking)
    assert "`max_replicas` has an effect only with `autoscaling_policy:" in said
    assert POLICY.rpartition(" ")[2] in said


def test_a_user_config_that_names_an_unknown_pool_refuses_the_start(tmp_path: Path) -> None:
    live = (
        "    deployments:\n      - name: Ingress\n        user_config:\n"
        "          pools: {cpv: {usd_per_hour: 1.0}}\n    args:\n"
    )
    path = config(tmp_path, **{"    args:\n": live})
    [said] = faults(path)
    assert said.startswith(f"{path}:{line_of(path, 'user_config')}: ")
    assert said.endswith("the pool `cpv`, which `pools` does not have; did you mean `cpu`?")


def test_a_pool_that_can_never_run_refuses_the_start(tmp_path: Path) -> None:
    none = {"        - name: cpu\n": "        - name: cpu\n          replicas: 0\n"}
    path = config(tmp_path, **none)
    [said] = faults(path)
    assert said.startswith(f"{path}:{line_of(path, 'name: cpu')}: ")
    assert "with `replicas: 0`, set `max_replicas`" in said
