"""The set-up: commands that exist, locks that pin, scripts that choose the right torch and say
what is missing.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
import yaml

from serve_app.config.settings import AppArgs
from serve_app.serve_command import run_of_ours

ROOT = Path(__file__).resolve().parent.parent
SETUP = ROOT / "scripts" / "setup.sh"
SCRIPTS = sorted([*ROOT.glob("scripts/*.sh"), ROOT / ".ci" / "run"])
BASIC_TOOLS = (
    "bash",
    "cat",
    "curl",
    "cut",
    "dirname",
    "flock",
    "head",
    "id",
    "mkdir",
    "sed",
    "sort",
)
TARGETS = "run test serve check lint types fmt bench clean help mm weights lock install image"
TARGETS += " orchestrator"
HASHED = (
    "base.lock", "dev.lock", "mm-source.lock", "orchestrator.lock", "sbom.lock", "torch-cpu.lock",
    "torch-cu13.lock",
)  # fmt: skip
PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[a-z0-9,]+\])?==([A-Za-z0-9.+!]+)((?: --hash=\S+)*)$")


def entries(name: str) -> dict[str, tuple[str, list[str]]]:
    """Return name, version and hashes of a requirements file; every line must be an exact pin."""
    found = {}
    text = re.sub(r" \\\n +", " ", (ROOT / "requirements" / name).read_text())
    for line in text.splitlines():
        text = line.split("#")[0].strip()
        if text:
            match = PIN.match(text)
            assert match, f"{name}: {line!r} is no exact pin"
            package = re.sub(r"[-_.]+", "-", match[1]).lower()
            found[package] = (match[2], re.findall(r"--hash=(\S+)", match[3]))
    return found


def pins(name: str) -> dict[str, str]:
    """Return name and version of a requirements file."""
    return {package: pinned for package, (pinned, _) in entries(name).items()}


def bash(
    script: str, path: Path | str | None = None, cwd: Path = ROOT, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run `script` after sourcing set-up's functions, with `path` as PATH."""
    return subprocess.run(
        [
            shutil.which("bash") or "bash",
            "-c",
            f"source {SETUP}\ncd {shlex.quote(str(cwd))}\n{script}",
        ],
        env={**os.environ, "PATH": str(path or os.environ["PATH"]), **env},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def bare_path(tmp_path: Path) -> Path:
    """A PATH with the tools of a minimal Debian and nothing else."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in BASIC_TOOLS:
        (folder / tool).symlink_to(shutil.which(tool) or "/nonexistent")
    return folder


def give_gpu(folder: Path, cuda: str, capability: str) -> None:
    """Put an nvidia-smi into `folder` that answers as a driver for `cuda` does."""
    tool = folder / "nvidia-smi"
    tool.write_text(
        '#!/bin/bash\ncase "$*" in\n'
        f'*compute_cap*) echo "{capability}";;\n'
        f'*) echo "| NVIDIA-SMI 570.86   Driver Version: 570.86   CUDA Version: {cuda} |";;\nesac\n'
    )
    tool.chmod(0o755)


# --- commands -------------------------------------------------------------------------------------


def test_help_lists_every_target() -> None:
    listed = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for target in TARGETS.split():
        assert re.search(rf"^  {target} +\S", listed, re.MULTILINE), target


def test_every_documented_target_is_declared_phony() -> None:
    # A file or folder of that name would otherwise turn the target into a no-op.
    makefile = (ROOT / "Makefile").read_text()
    phony = set(re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[0].split())
    targets = set(re.findall(r"^([a-z-]+):.*  ## ", makefile, re.MULTILINE))
    assert targets == phony
    assert targets >= set(TARGETS.split())


def test_what_the_makefile_runs_exists_and_can_be_executed() -> None:
    text = (ROOT / "Makefile").read_text() + (ROOT / ".ci" / "run").read_text()
    for script in set(re.findall(r"scripts/[a-z-]+\.(?:sh|py)", text)):
        assert (ROOT / script).is_file(), script
        assert script.endswith(".py") or os.access(ROOT / script, os.X_OK), script
    for name in re.findall(r"^BENCH := (.*)$", text, re.MULTILINE)[0].split():
        assert (ROOT / "benchmarks" / f"{name}.py").is_file(), name
    for module in set(re.findall(r"-m ((?:serve_app|musetalk_pipeline)[a-z_.]*)", text)):
        assert importlib.util.find_spec(module), module


def test_ci_runs_check_and_check_runs_the_tests() -> None:
    steps = (ROOT / ".ci" / "run").read_text()
    assert "make check" in steps and "make image-check" in steps
    plan = subprocess.run(
        ["make", "--dry-run", "check"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for step in ("ruff check", "ruff format --check", "mypy", "pytest"):
        assert step in plan, step
    assert "not slow" not in plan


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_is_sound(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        found = subprocess.run(["shellcheck", script], capture_output=True, text=True)
        assert found.returncode == 0, found.stdout


def test_the_volumes_that_the_image_asks_for_belong_to_its_user() -> None:
    text = (ROOT / "Dockerfile.gpu").read_text()
    [owned] = re.findall(r"mkdir -p (.+) && chown worker:worker \1$", text, re.M)
    volumes = re.findall(r"-v (\S+):/app/([\w.]+)(:ro)?", text)
    named = {folder for source, folder, _ in volumes if re.fullmatch(r"[\w-]+", source)}
    assert named == set(owned.split()) == {"models", "out", ".state"}
    # A folder of the host belongs to somebody else.
    assert all(only_read for source, _, only_read in volumes if "$PWD" in source)
    args = yaml.safe_load((ROOT / "serve_config.gpu.yaml").read_text())["applications"][0]["args"]
    settings = AppArgs.model_validate(args)
    written = (settings.models_dir, settings.result_dir, settings.state_dir)
    assert {path.parts[0] for path in written} == named


def test_the_image_copies_what_is_there_and_sent_to_the_builder() -> None:
    text = (ROOT / "Dockerfile.gpu").read_text()
    for name, value in re.findall(r"^ARG (\w+)=(\S+)$", text, re.M):
        text = text.replace(f"${{{name}}}", value)
    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.M)
    sources = {source for line in copies for source in line.split()}
    sent = [
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    assert len(sources) > 5
    for source in sources:
        assert (ROOT / source).exists(), source
        above = [Path(source), *Path(source).parents]
        assert any(path.match(pattern) for path in above for pattern in sent), source


# --- locks ----------------------------------------------------------------------------------------


def test_locks_pin_exactly_and_hold_what_is_asked_for() -> None:
    base, dev = pins("base.lock"), pins("dev.lock")
    assert base.items() >= pins("base.in").items()
    assert (base | dev).items() >= pins("dev.in").items()
    assert not base.keys() & dev.keys()
    for name, pin in (base | dev).items():  # what is pinned by hand has to agree
        assert pins("mm.txt").get(name, pin) == pin, name


def test_the_orchestrators_lock_is_a_part_of_the_applications() -> None:
    small, base = entries("orchestrator.lock"), entries("base.lock")
    assert small.items() <= base.items()
    assert {"sqlalchemy", "fastapi", "uvicorn"} <= small.keys()
    assert not small.keys() & {"ray", "torch", "numpy", "av", "opencv-python-headless"}


@pytest.mark.parametrize(
    "name", [*HASHED, *sorted(path.name for path in ROOT.glob("requirements/*.txt"))]
)
def test_everything_that_is_installed_ready_made_has_its_hashes(name: str) -> None:
    """Mend 4.11."""
    found = entries(name)
    assert found
    for package, (_, hashes) in found.items():
        assert hashes, package
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", each) for each in hashes), package


@pytest.mark.parametrize("build", ["cpu", "cu126", "cu13"])
@pytest.mark.parametrize("offered", ["2.13.0+cpu, 2.13.0", ""])
def test_every_package_is_bound_to_its_hash_or_asked_for_at_one_index(
    set_up_tree: Path, build: str, offered: str
) -> None:
    """Mend 4.11: with `--extra-index-url` whoever registers a name on the other index is installed.

    torch for CUDA 12.6 has no hash here; docs/dependencies.md says why.
    """
    python = set_up_tree / ".venv" / "bin" / "python"
    python.unlink()
    python.write_text(f"#!/bin/sh\necho 'Available versions: {offered}'\n")
    python.chmod(0o755)
    (set_up_tree / ".cache").mkdir()
    script = f'pip() {{ echo "pip $*"; }}\ninstall_torch {build}\ninstall_locks dev'
    answer = bash(script, cwd=set_up_tree)
    calls = [line.split() for line in answer.stdout.splitlines() if line.startswith("pip ")]
    assert len(calls) >= 2, answer.stderr
    assert not any("extra-index" in word for call in calls for word in call)
    loose = [call for call in calls if "--require-hashes" not in call]
    if build != "cu126":
        assert loose == []
        return
    own, libraries = loose
    assert "--no-deps" in own and "--index-url" in own
    assert "--index-url" not in libraries
    bounds = (set_up_tree / libraries[libraries.index("-c") + 1]).read_text()
    assert "numpy==" in bounds and "--hash" not in bounds  # it would ask for hashes of everything


def test_no_script_asks_two_indexes_for_a_name() -> None:
    for path in [*SCRIPTS, ROOT / "Dockerfile.gpu", ROOT / "Makefile", *ROOT.glob("scripts/*.py")]:
        assert "extra-index-url" not in path.read_text(), path


def test_what_is_imported_is_asked_for() -> None:
    """Mend 3.11: `Direct dependencies` left out seven that came along with others."""
    of_module = packages_distributions()
    asked = pins("base.in").keys() | pins("torch.in").keys() | pins("mm.txt").keys()
    asked |= pins("mm-source.lock").keys()
    missing = set()
    for package in ("serve_app", "musetalk_pipeline", "orchestrator", "lipsync", "lipsync_client"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                for module in imported(node):
                    names = of_module.get(module.partition(".")[0], [])
                    plain = {re.sub(r"[-_.]+", "-", name).lower() for name in names}
                    if plain and not plain & asked:
                        missing |= plain
    assert missing == set()


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module else []


def test_no_torchvision_and_no_build_of_torch_is_locked() -> None:
    names = [name for file in ("base.lock", "dev.lock", "files.txt") for name in pins(file)]
    assert not [name for name in names if re.match(r"torch|triton|nvidia-|cuda-", name)]
    assert importlib.util.find_spec("torchvision") is None


def test_installed_versions_are_the_locked_ones() -> None:
    wanted = pins("base.lock") | pins("dev.lock") | pins("files.txt") | pins("files-dev.txt")
    wrong = {name: version(name) for name in wanted if version(name) != wanted[name]}
    assert not wrong
    assert version("torch").split("+")[0] == pins("torch.in")["torch"]


def test_every_direct_dependency_has_a_reason() -> None:
    reasons = (ROOT / "docs" / "dependencies.md").read_text().lower()
    names = [
        name
        for file in ("base.in", "dev.in", "torch.in", "files.txt", "files-dev.txt")
        for name in pins(file)
    ]
    assert not [name for name in names if f"`{name}" not in reasons]


# --- which torch ----------------------------------------------------------------------------------


@pytest.mark.skipif(bool(list(Path("/dev").glob("nvidia[0-9]*"))), reason="a GPU is here")
def test_machine_without_gpu_gets_a_cpu_build(bare_path: Path) -> None:
    import torch

    assert bash("torch_build", bare_path).stdout == "cpu\n"
    assert torch.version.cuda is None


@pytest.mark.parametrize(
    ("cuda", "capability", "build"),
    [
        ("12.0", "8.6", "cu126"),
        ("12.4", "8.6", "cu126"),
        ("13.0", "12.0", "cu13"),
        ("13.2", "9.0", "cu13"),
    ],
)
def test_torch_build_follows_the_driver(
    bare_path: Path, cuda: str, capability: str, build: str
) -> None:
    give_gpu(bare_path, cuda, capability)
    assert bash("torch_build", bare_path).stdout == f"{build}\n"


def test_blackwell_with_an_old_driver_is_told_so(bare_path: Path) -> None:
    # CUDA 12 builds of this torch have no kernels for it and would die in the first job.
    give_gpu(bare_path, "12.8", "12.0")
    answer = bash("torch_build", bare_path)
    assert answer.returncode == 1
    assert "driver 580" in answer.stderr


@pytest.mark.parametrize("cuda", ["11.8", "10.2"])
def test_a_driver_for_no_torch_is_told_so(bare_path: Path, cuda: str) -> None:
    # Set-up would go through, and every job say that there is no GPU.
    give_gpu(bare_path, cuda, "8.6")
    answer = bash("torch_build", bare_path)
    assert answer.returncode == 1 and not answer.stdout
    [said] = answer.stderr.splitlines()
    assert "driver is too old: 525 or newer is needed" in said


# --- what is missing is named ---------------------------------------------------------------------


def test_missing_python_is_named_in_one_line(bare_path: Path) -> None:
    answer = bash("find_python", bare_path, PYTHON="")
    assert answer.returncode == 1
    assert answer.stderr.count("\n") == 1
    assert "Python 3.11 was not found" in answer.stderr


def test_python_is_found_under_any_name(bare_path: Path) -> None:
    (bare_path / "python3").symlink_to(sys.executable)
    assert bash("find_python", bare_path, PYTHON="").stdout.strip() == str(bare_path / "python3")


def test_missing_ffmpeg_is_named_in_one_line(bare_path: Path) -> None:
    answer = bash("need_tools", bare_path)  # no apt-get on this PATH
    assert answer.returncode == 1
    assert answer.stderr.count("\n") == 1
    assert "apt-get install -y ffmpeg" in answer.stderr


def test_unknown_profile_is_refused() -> None:
    answer = subprocess.run([SETUP, "everything"], capture_output=True, text=True, timeout=60)
    assert answer.returncode == 1
    assert "base|dev" in answer.stderr


# --- the mmpose stack, and the command `serve` ----------------------------------------------------


def tree_with(folder: Path, install_mm: str) -> Path:
    """Return a folder whose install-mm.sh is `install_mm`."""
    (folder / "scripts").mkdir(parents=True)
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".cache").mkdir()
    script = folder / "scripts" / "install-mm.sh"
    script.write_text(f"#!/bin/bash\n{install_mm}\n")
    script.chmod(0o755)
    return folder


def test_set_up_for_tests_installs_the_mmpose_stack(tmp_path: Path) -> None:
    """Mend 0: fourteen tests were skipped on a fresh machine."""
    tree = tree_with(tmp_path / "tree", 'echo "$1" > asked')
    answer = bash("want_mm", cwd=tree)
    assert answer.returncode == 0
    assert (tree / "asked").read_text() == ".venv/bin/python\n"
    text = SETUP.read_text()
    assert "[[ $profile == base ]] || want_mm" in text
    assert "requirements/files-dev.txt scripts/install-mm.sh" in text  # in the digest of `dev`


def test_a_machine_where_the_mmpose_stack_does_not_install_is_told_and_set_up(
    tmp_path: Path,
) -> None:
    """Mend 0."""
    tree = tree_with(tmp_path / "tree", "echo no compiler; exit 1")
    answer = bash("want_mm; echo goes on", cwd=tree)
    assert (answer.returncode, answer.stdout) == (0, "goes on\n")
    assert "could not be installed, so its tests are skipped" in answer.stderr
    assert (tree / ".cache" / "install-mm.log").read_text() == "no compiler\n"


@pytest.fixture
def serve_command(tmp_path: Path) -> Path:
    """The command `serve` that set-up writes, run by this Python."""
    folder = tmp_path / "tree"
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "python").symlink_to(sys.executable)
    (folder / ".venv" / "pyvenv.cfg").symlink_to(Path(sys.prefix) / "pyvenv.cfg")
    (folder / ".venv" / "lib").symlink_to(Path(sys.prefix) / "lib")
    assert bash("write_serve_command", cwd=folder).returncode == 0
    return folder / ".venv" / "bin" / "serve"


def run_serve(command: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [command, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120
    )


def test_serve_run_of_our_files_is_checked_and_the_rest_is_rays(
    serve_command: Path, tmp_path: Path
) -> None:
    """Mend 2.2: `serve run` of our files goes the way of `make serve`."""
    wrong = tmp_path / "serve_config.yaml"
    wrong.write_text((ROOT / "serve_config.yaml").read_text().replace("engine:", "enginee:"))
    answer = run_serve(serve_command, ROOT, "run", str(wrong))
    assert answer.returncode == 2
    assert "unknown key `enginee`; did you mean `engine`?" in answer.stderr
    answer = run_serve(serve_command, ROOT, "run", "nope.yaml")
    said = "lipsync-serve: there is no configuration file nope.yaml\n"
    assert (answer.returncode, answer.stderr) == (2, said)
    for folder in (ROOT, tmp_path):  # and from a folder without this project
        answer = run_serve(serve_command, folder, "run", "--help")
        assert answer.returncode == 0 and "--working-dir" in answer.stdout


@pytest.mark.parametrize(
    ("arguments", "ours"),
    [
        (["run", "serve_config.yaml"], ("serve_config.yaml", None)),
        (["run", "-a", "10.0.0.7:6379", "nope.yml"], ("nope.yml", "10.0.0.7:6379")),
        (["run", "--reload", "serve_config.yaml"], None),
        (["run", "module:app"], None),
        (["run", "pyproject.toml"], None),
        (["run", ".pre-commit-config.yaml"], None),
        (["run"], None),
        (["status"], None),
        ([], None),
    ],
)
def test_what_serve_takes_for_itself(
    arguments: list[str], ours: tuple[str, str | None] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert run_of_ours(arguments) == ours


def test_everything_that_serves_goes_through_the_launcher() -> None:
    """Mend 2.2: `make serve`, the image and the demo."""
    for file in ("Makefile", "cluster/image/entrypoint.sh"):
        text = (ROOT / file).read_text()
        assert "lipsync serve" in text and "serve run" not in text, file


# --- the command `lipsync` ------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose set-up has written the command, in a folder with a space in its name."""
    folder = tmp_path / "my tree"
    environment = folder / ".venv"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "python").symlink_to(sys.executable)
    (environment / "pyvenv.cfg").symlink_to(Path(sys.prefix) / "pyvenv.cfg")
    (environment / "lib").symlink_to(Path(sys.prefix) / "lib")
    assert bash("write_lipsync_command", cwd=folder).returncode == 0
    put_code(folder, "checkout")
    return folder


def put_code(folder: Path, name: str) -> None:
    """Make a package `lipsync` that says which checkout it is of, and what it was called with."""
    (folder / "lipsync").mkdir(parents=True)
    (folder / "lipsync" / "__init__.py").touch()
    code = f"import sys\n\n\ndef main():\n    print({name!r}, sys.argv[1:])\n"
    (folder / "lipsync" / "__main__.py").write_text(code)


def said_by(command: Path | str, cwd: Path, **env: str) -> str:
    done = subprocess.run(
        [command, "a b", "--c"],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_works_from_any_folder_and_by_any_way(checkout: Path, tmp_path: Path) -> None:
    command = checkout / ".venv" / "bin" / "lipsync"
    (tmp_path / "linked").symlink_to(command)
    path = f"{command.parent}:{os.environ['PATH']}"
    empty = tmp_path / "empty"
    (empty / "lipsync").mkdir(parents=True)  # a folder of that name here is not the package
    for way in (command, tmp_path / "linked"):
        assert said_by(way, empty, HOME=str(empty)) == "checkout ['a b', '--c']\n"
    # As a shell finds it.
    done = subprocess.run(
        ["sh", "-c", "lipsync 'a b' --c"],
        cwd=empty,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "checkout ['a b', '--c']\n")


def test_a_checkout_with_a_linked_environment_runs_its_own_code(
    checkout: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    put_code(other, "other")
    (other / ".venv").symlink_to(checkout / ".venv")
    assert said_by(other / ".venv" / "bin" / "lipsync", tmp_path).startswith("other ")


def test_set_up_writes_both_commands() -> None:
    steps = SETUP.read_text().partition("\nset_up_application() {")[2]
    assert "  write_serve_command\n  write_lipsync_command\n" in steps


# --- a second run ---------------------------------------------------------------------------------


@pytest.fixture
def set_up_tree(tmp_path: Path) -> Path:
    """A tree whose set-up of `base` is complete: this Python, and the stamps that setup.sh writes.

    Nothing is installed in it, so any work that setup.sh still did there would fail.
    """
    tree = tmp_path / "tree"
    shutil.copytree(ROOT / "scripts", tree / "scripts")
    shutil.copytree(ROOT / "requirements", tree / "requirements")
    (tree / ".venv" / "bin").mkdir(parents=True)
    (tree / ".venv" / "bin" / "python").symlink_to(sys.executable)
    bash('set_stamps base "$(torch_build)"', cwd=tree)
    return tree


def run_setup(tree: Path, profile: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [tree / "scripts" / "setup.sh", profile],
        env={**os.environ, "PYTHON": "/none", "PATH": f"{tree}/empty:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg is not installed")
@pytest.mark.parametrize("profile", ["base", "orchestrator"])
def test_second_set_up_does_nothing(set_up_tree: Path, profile: str) -> None:
    before = sorted(set_up_tree.rglob("*"))
    answer = run_setup(set_up_tree, profile)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")
    assert sorted(set_up_tree.rglob("*")) == before


@pytest.mark.slow
def test_a_linked_environment_is_replaced_and_what_it_leads_to_is_kept(tmp_path: Path) -> None:
    """Two checkouts may share one: `venv --clear` once emptied it for both."""
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.mkdir()
    ours.mkdir()
    (theirs / "kept").touch()
    (ours / ".venv").symlink_to(theirs)
    answer = bash(f"make_venv {sys.executable}", cwd=ours)
    assert answer.returncode == 0, answer.stderr
    assert [path.name for path in theirs.iterdir()] == ["kept"]
    assert not (ours / ".venv").is_symlink()
    assert (ours / ".venv" / "bin" / "python").exists()


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg is not installed")
@pytest.mark.parametrize("file", ["base.lock", "torch.in", "files.txt", "orchestrator.lock"])
def test_changed_pins_are_noticed(set_up_tree: Path, file: str) -> None:
    with (set_up_tree / "requirements" / file).open("a") as lock:
        lock.write("# changed\n")
    answer = bash(
        'is_done base "$(digest_of base "$(torch_build)")" && echo done || echo stale',
        cwd=set_up_tree,
    )
    assert answer.stdout == "stale\n"
