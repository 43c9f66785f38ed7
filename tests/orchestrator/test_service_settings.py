"""The settings of the service, and their table in the documentation."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from orchestrator.__main__ import main
from orchestrator.service.settings import Settings, SettingsError, read_settings

PAGE = Path(__file__).resolve().parents[2] / "docs" / "orchestrator.md"
KEY = "k" * 32


def documented() -> str:
    """Return the table of docs/orchestrator.md, as the code has it."""
    lines = ["| variable | default | meaning |", "|---|---|---|"]
    for field in Settings.model_fields.values():
        default = field.default
        shown = default.get_secret_value() if isinstance(default, SecretStr) else default
        text = "none" if shown is None else f"`{shown}`"
        lines.append(f"| `{field.validation_alias}` | {text} | {field.description} |")
    return "\n".join(lines)


def test_the_documented_settings_are_those_of_the_code() -> None:
    assert f"<!-- settings -->\n{documented()}\n<!-- /settings -->" in PAGE.read_text()


def test_settings_have_defaults_and_take_the_environment() -> None:
    assert read_settings({}).port == 8700
    environ = {"ORCHESTRATOR_PORT": "9000", "INTERNAL_API_KEY": KEY, "PATH": "/bin"}
    settings = read_settings(environ | {"ORCHESTRATOR_LEASE_S": "", "ORCHESTRATOR_BASE_URL": "x"})
    assert (settings.port, settings.lease_s) == (9000, 30.0)
    assert KEY not in repr(settings)


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({"ORCHESTRATOR_LEASE_S": "soon"}, "ORCHESTRATOR_LEASE_S: "),
        ({"ORCHESTRATOR_LEASE_S": "1"}, "ORCHESTRATOR_LEASE_S: "),
        ({"ORCHESTRATOR_PROT": "80"}, "ORCHESTRATOR_PROT is not a setting of this service."),
        ({"INTERNAL_API_KEY": "short-secret"}, "INTERNAL_API_KEY: use at least 16 characters."),
        ({"INTERNAL_API_KEY": "ü" * 20}, "INTERNAL_API_KEY: use visible ASCII characters only."),
        ({"DATABASE_URL": "mysql://u:secret@h/d"}, "DATABASE_URL: "),
        ({"ORCHESTRATOR_OVERFLOW": "60:20"}, "ORCHESTRATOR_OVERFLOW: "),
        ({"INTERNAL_API_KEY": KEY, "ORCHESTRATOR_ADMIN_KEY": KEY}, "must differ"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named_without_its_value(
    environ: dict[str, str], sentence: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        read_settings(environ)
    assert sentence in str(caught.value)
    assert "secret" not in str(caught.value)


def test_keys_are_made_listed_and_revoked_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path}/new/orchestrator.db")
    assert main(["keys", "add", "client", "shop"]) == 0
    key = capsys.readouterr().out.strip()
    key_id, secret = key.split(".")
    assert main(["keys", "revoke", key_id]) == 0
    assert main(["keys", "list"]) == 0
    listed = capsys.readouterr().out
    assert listed == f"{key_id}  client  revoked   shop\n"
    assert secret not in listed
    assert main(["keys", "revoke", key_id]) == 1
    assert main(["keys", "add", "client", "admin"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "There is no key with this id that is still accepted.",
        "A client cannot be called admin: the operator is.",
    ]
    assert (tmp_path / "new").stat().st_mode & 0o077 == 0


def test_a_folder_that_cannot_be_made_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    folder = tmp_path / "file" / "data"
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{folder}/jobs.db")
    assert main(["keys", "list"]) == 1
    assert capsys.readouterr().err == (
        f"DATABASE_URL: the folder {folder} cannot be made (Not a directory). Name another one.\n"
    )
