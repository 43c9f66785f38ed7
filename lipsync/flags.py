"""The flags of options that are defined in musetalk_pipeline: made from their definition.

A command that is decorated with `takes_options` has a flag for each option of a job and of the
tools, with its help, its bounds and its default, and gets `job` and `tools` made of them. One with
`takes_params` has a flag for each option that a request may choose, and gets those that are given.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from musetalk_pipeline.loading import ToolOptions
from musetalk_pipeline.option_spec import Option, options_of
from musetalk_pipeline.options import (
    EncodeOptions,
    FaceOptions,
    FrameOptions,
    JobOptions,
    MaskOptions,
    SpeechOptions,
    defaults_for,
)
from musetalk_pipeline.time_options import TimeOptions

PANELS = (
    ("Picture", FrameOptions),
    ("Encoding", EncodeOptions),
    ("Face", FaceOptions),
    ("Mask", MaskOptions),
    ("Speech", SpeechOptions),
    ("Time", TimeOptions),
    ("Engine and landmarks", ToolOptions),
)

OF_A_REQUEST = ("resolution", "aspect_ratio")  # fields beside `params`

Video = Annotated[
    str,
    typer.Argument(
        metavar="VIDEO",
        help="The video or picture is this file, or this http or https address.",
    ),
]
Audio = Annotated[
    str,
    typer.Argument(metavar="AUDIO", help="The speech is this file, or this http or https address."),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json",
        metavar="",
        help="Print one JSON object on standard output, and all else on standard error.",
    ),
]
Force = Annotated[
    bool, typer.Option("--force", metavar="", help="Overwrite the output if it exists.")
]


def takes_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replace the parameters `job: JobOptions` and `tools: ToolOptions` of a command by flags."""

    def made_of(chosen: dict[str, Any]) -> dict[str, Any]:
        names = {option.name for option in options_of(ToolOptions)}
        tools = ToolOptions(**{name: chosen[name] for name in names & chosen.keys()})
        job: JobOptions = defaults_for(chosen.get("version", "v15")).with_choices(chosen)
        return {"job": job, "tools": tools}

    return _with_flags(command, dict(_flags()), made_of, replaced=("job", "tools"))


def takes_params(command: Callable[..., None]) -> Callable[..., None]:
    """Replace the parameter `chosen: dict[str, Any]` of a command by flags. What is not given is
    not in it, because the server has defaults of its own.
    """
    flags = dict(_flags(lambda option: option.spec.is_param or option.name in OF_A_REQUEST))
    return _with_flags(command, flags, lambda chosen: {"chosen": chosen}, replaced=("chosen",))


def _with_flags(
    command: Callable[..., None],
    flags: Mapping[str, inspect.Parameter],
    made_of: Callable[[dict[str, Any]], dict[str, Any]],
    *,
    replaced: Collection[str],
) -> Callable[..., None]:
    """Give a command `flags` in place of the parameters that are made of them."""
    signature = inspect.signature(command, eval_str=True)
    own = [one for one in signature.parameters.values() if one.name not in replaced]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        chosen = {name: given.pop(name) for name in flags}
        command(**given, **made_of({k: value for k, value in chosen.items() if value is not None}))

    # What typer reads.
    shown = cast(Any, run)
    shown.__signature__ = signature.replace(parameters=[*own, *flags.values()])
    shown.__annotations__ = {one.name: one.annotation for one in [*own, *flags.values()]}
    return run


def _flags(
    is_wanted: Callable[[Option], bool] = lambda option: True,
) -> Iterator[tuple[str, inspect.Parameter]]:
    for panel, kind in PANELS:
        for option in options_of(kind):
            if is_wanted(option):
                yield option.name, _flag(option, panel)


def _flag(option: Option, panel: str) -> inspect.Parameter:
    """Return a keyword that is None unless the flag is given; defaults are added later."""
    spec = option.spec
    is_number = option.kind in (int, float)
    flag = typer.Option(
        option.flag,
        help=option.help_text,
        min=spec.least if is_number else None,
        max=spec.most if is_number else None,
        metavar=option.metavar,
        parser=_parser(option),
        show_default=False,
        rich_help_panel=panel,
        file_okay=option.kind is not Path,
    )
    annotated: Any = Annotated  # with a type that is known when it runs
    # What is read by a function of its own may be of several types, which typer cannot tell apart.
    annotation = annotated[(Any if spec.read else option.kind) | None, flag]
    return inspect.Parameter(
        option.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def _parser(option: Option) -> Callable[[str], object] | None:
    """Return what reads the word of an option that has several types; None for any other."""
    read = option.spec.read
    if read is None:
        return None

    def value(text: str) -> object:
        try:
            return read(text)
        except ValueError as exc:
            raise typer.BadParameter(str(exc)) from exc

    return value
