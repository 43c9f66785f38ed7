"""Write the tables of docs/command-line.md from the command line itself.

    .venv/bin/python scripts/command_line_tables.py [--check]

`--check` changes nothing and fails if the page is not what would be written.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "command-line.md"
sys.path.insert(0, str(ROOT))

from typer.main import get_command  # noqa: E402

from lipsync.app import app  # noqa: E402
from lipsync.exit_codes import MEANINGS  # noqa: E402
from lipsync.flags import PANELS  # noqa: E402
from musetalk_pipeline.option_spec import Option, options_of  # noqa: E402


def commands(group: Any, words: str = "lipsync") -> Iterator[tuple[str, Any]]:
    """Yield each command that does something, with the words that call it."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{words} {name}")
        else:
            arguments = [one for one in command.params if one.param_type_name == "argument"]
            shown = [one.metavar if one.required else f"[{one.metavar}]" for one in arguments]
            yield " ".join([words, name, *shown]), command


def one_line(text: str) -> str:
    """Return a text as a table holds it."""
    return " ".join(text.split()).replace("|", "\\|")


def table_of_commands() -> str:
    """Return each command with the first sentence of its help and the flags of its own."""
    shared = {option.flag for _, kind in PANELS for option in options_of(kind)}
    rows = ["| command | | its own flags |", "|---|---|---|"]
    for words, command in commands(get_command(app)):
        flags = [one.opts[0] for one in command.params if one.param_type_name == "option"]
        own = ", ".join(f"`{flag}`" for flag in flags if flag not in shared and flag != "--help")
        first = one_line(command.help.partition("\n\n")[0])
        rows.append(f"| `{words}` | {first} | {own} |")
    return "\n".join(rows)


def table_of_exit_codes() -> str:
    """Return what each exit code means."""
    rows = [f"| {int(code)} | {meaning} |" for code, meaning in MEANINGS.items()]
    return "\n".join(["| exit code | |", "|---|---|", *rows])


def values_of(option: Option) -> str:
    """Return what an option accepts."""
    if option.choices:
        return ", ".join(f"`{choice}`" for choice in option.choices)
    if option.kind is bool:
        return ""
    if option.spec.least is not None and option.spec.most is not None:
        return f"{option.spec.least} to {option.spec.most}"
    return f"`{option.metavar}`".replace("|", "\\|")


def table_of_options() -> str:
    """Return the options of a job and of the tools, panel by panel."""
    rows = ["| flag | values | |", "|---|---|---|"]
    for panel, kind in PANELS:
        rows.append(f"| **{panel}** | | |")
        for option in options_of(kind):
            text = one_line(option.help_text)
            rows.append(f"| `{option.flag}` | {values_of(option)} | {text} |")
    return "\n".join(rows)


TABLES = {
    "commands": table_of_commands,
    "exit codes": table_of_exit_codes,
    "options": table_of_options,
}


def filled(text: str) -> str:
    """Return `text` with what is between each pair of markers written again."""
    for name, table in TABLES.items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, found, rest = text.partition(start)
        if not found or end not in rest:
            raise SystemExit(f"{PAGE.name} must have the markers of {name}")
        text = f"{before}{start}{table()}\n{end}{rest.partition(end)[2]}"
    return text


def main() -> None:
    """Rewrite the page, or check it."""
    old = PAGE.read_text()
    new = filled(old)
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(new)
    elif new != old:
        raise SystemExit(f"{PAGE.name} is behind the code: run scripts/command_line_tables.py")


if __name__ == "__main__":
    main()
