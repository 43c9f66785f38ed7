"""`python -m musetalk_pipeline VIDEO AUDIO -o OUT.mp4`: a whole job in one process.

`lipsync make` does the same with a better command line; this one needs the library alone. The exit
code is 0 if the job is done, 2 if the input or an argument is at fault, 1 if this machine is, and
130 after Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from musetalk_pipeline.contact_sheet import write_contact_sheet
from musetalk_pipeline.errors import (
    InvalidAudio,
    InvalidOptions,
    InvalidVideo,
    MediaError,
    PipelineError,
)
from musetalk_pipeline.loading import ToolOptions, decide, find_models, load_tools
from musetalk_pipeline.option_spec import Option, options_of
from musetalk_pipeline.options import (
    EncodeOptions,
    FaceOptions,
    FrameOptions,
    JobOptions,
    MaskOptions,
    SpeechOptions,
    defaults_for,
    job_options,
)
from musetalk_pipeline.pipeline import Result, RunProgress, Tools, run
from musetalk_pipeline.preview import make_preview
from musetalk_pipeline.progress_bar import ProgressBar
from musetalk_pipeline.receipts.receipt import receipt_json, receipt_line
from musetalk_pipeline.time_options import TimeOptions
from musetalk_pipeline.watch import Watch

BAD_INPUT, OWN_FAULT, INTERRUPTED = 2, 1, 130
GROUPS = (
    ("engine and landmarks", (ToolOptions,)),
    ("picture", (FrameOptions, EncodeOptions)),
    ("face and mask", (FaceOptions, MaskOptions)),
    ("speech", (SpeechOptions,)),
    ("time", (TimeOptions,)),
)


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says; return the exit code."""
    args = _parser().parse_args(arguments)
    try:
        _check_paths(args)
        _do(args)
    except MediaError as error:
        return _fail(error, BAD_INPUT)
    except PipelineError as error:
        return _fail(error, OWN_FAULT)
    return 0


def _do(args: argparse.Namespace) -> None:
    options = _options(args)
    others = _others(options)
    tools = _load(args)
    if args.preview is not None:
        preview = make_preview(args.video, args.audio, options, tools, others=others)
        args.preview.write_bytes(preview.png())
        print(f"preview   {args.preview} (source frame {preview.source_frame})")
    if args.out is None:
        return
    with ProgressBar("frames") as bar:

        def show(progress: RunProgress) -> None:
            bar.show(progress.stage, progress.frames_done, progress.frames_total or None)

        watch = Watch(deadline_s=args.deadline_s)
        files = args.video, args.audio, args.out
        result = run(*files, options, tools, others=others, watch=watch, on_progress=show)
    if args.contact_sheet is not None:
        write_contact_sheet(args.video, args.out, args.contact_sheet, source_of=result.source_of)
        print(f"sheet     {args.contact_sheet}")
    _report(result)


def _load(args: argparse.Namespace) -> Tools:
    options = ToolOptions(**_chosen(args, options_of(ToolOptions)))
    version = _options(args).face.version
    models = find_models(options.models, Path.cwd())
    decision = decide(options, version, models)
    print(f"engine    {decision.engine}, because {decision.reason}", flush=True)
    return load_tools(options, version, models, decision)


def _options(args: argparse.Namespace) -> JobOptions:
    return defaults_for(args.version or "v15").with_choices(_chosen(args, job_options()))


def _chosen(args: argparse.Namespace, options: Iterable[Option]) -> dict[str, Any]:
    """Return what the command line says, by option; what it does not say is left out."""
    given = {option.name: getattr(args, option.name) for option in options}
    return {name: value for name, value in given.items() if value is not None}


def _check_paths(args: argparse.Namespace) -> None:
    """Refuse what would only fail after the work is done."""
    if not args.video.is_file():
        raise InvalidVideo(f"There is no video file at {args.video}.")
    if not args.audio.is_file():
        raise InvalidAudio(f"There is no audio file at {args.audio}.")
    if args.out is None and args.preview is None:
        raise InvalidOptions("Name the file of the result: -o OUT.mp4, or --preview PNG.")
    for path in (args.out, args.contact_sheet, args.preview):
        if path is not None and not path.absolute().parent.is_dir():
            raise InvalidOptions(f"The folder {path.absolute().parent} does not exist.")
    if args.out is not None and args.out.absolute() in (
        args.video.absolute(),
        args.audio.absolute(),
    ):
        raise InvalidOptions("The result would overwrite its own source; choose another name.")


def _others(options: JobOptions) -> dict[str, Path]:
    """Return the files of the sounds that segments have of their own."""
    others = {name: Path(name) for name in options.time.urls}
    for name, path in others.items():
        if not path.is_file():
            raise InvalidAudio(f"There is no audio file at {name}, which a segment names.")
    return others


def _fail(error: PipelineError, exit_code: int) -> int:
    print(f"error: {error.message} [{error.code}]", file=sys.stderr)
    return exit_code


def _report(result: Result) -> None:
    stages = ", ".join(f"{name} {seconds:.2f}" for name, seconds in result.stage_seconds.items())
    rate = result.frames / result.elapsed_s
    print(f"result    {result.path}")
    print(f"engine    {result.engine} {result.model_version}, landmarks {result.landmarks}")
    print(
        f"frames    {result.frames} ({result.frames_with_face} with a face), "
        f"{result.width}x{result.height}, {float(result.fps):.5g} frames/s"
    )
    print(f"seconds   {result.elapsed_s:.2f} ({rate:.1f} frames/s); {stages}")
    for warning in result.warnings:
        print(f"warning   {warning}")
    if result.peak_memory_mib is not None:
        print(f"gpu       {result.peak_memory_mib:.0f} MiB at most")
    print(f"receipt   {receipt_line(receipt_json(result.receipt))}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m musetalk_pipeline",
        description="Make the face in VIDEO speak AUDIO.",
    )
    parser.add_argument("video", type=Path, metavar="VIDEO")
    parser.add_argument("audio", type=Path, metavar="AUDIO")
    add = parser.add_argument
    add("-o", "--out", type=Path, metavar="OUT.mp4")
    add(
        "--contact-sheet",
        type=Path,
        metavar="PNG",
        help="Draw source and result into this picture.",
    )
    add(
        "--preview",
        type=Path,
        metavar="PNG",
        help="Draw one composited frame with its boxes into this picture.",
    )
    add("--deadline-s", type=_positive, metavar="S", help="Give up after this many seconds.")

    for title, kinds in GROUPS:
        group = parser.add_argument_group(title)
        for kind in kinds:
            for option in options_of(kind):
                _add_option(group, option)
    return parser


def _add_option(group: argparse._ArgumentGroup, option: Option) -> None:
    """Add the flag of one option; what is not given stays None, and means the default."""
    text = option.help_text.replace("%", "%%")
    if option.kind is bool:
        group.add_argument(option.flag, action="store_const", const=True, help=text)
        return
    group.add_argument(
        option.flag,
        type=_reader(option),
        choices=option.choices or None,
        metavar=option.metavar,
        help=text,
    )


def _reader(option: Option) -> Callable[[str], object]:
    """Return what turns the word on the command line into the option's value."""
    least, most = option.spec.least, option.spec.most
    if option.spec.read is not None:
        return _readable(option.spec.read)
    if option.choices or option.kind is str:
        return str
    if option.kind is Path:
        return Path
    assert least is not None and most is not None, f"{option.name} has no bounds"
    return _within(int(least), int(most)) if option.kind is int else _number(least, most)


def _readable(read: Callable[[str], object]) -> Callable[[str], object]:
    def value(text: str) -> object:
        try:
            return read(text)
        except ValueError as exc:
            raise argparse.ArgumentTypeError(str(exc)) from exc

    return value


def _within(low: int, high: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.lstrip("-").isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{low} to {high} are accepted, not {text!r}")
        return int(text)

    return number


def _number(low: float, high: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = float(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{low:g} to {high:g} are accepted, not {text!r}")
        return value

    return number


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0.0:
        raise argparse.ArgumentTypeError(f"a time above 0 is needed, not {text!r}")
    return value


def _entry() -> None:
    # SIGTERM ends the job as Ctrl-C does: scratch is removed, children are killed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = main()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr, flush=True)
        # Not sys.exit: it would wait for a network that may have a minute to go.
        os._exit(INTERRUPTED)
    sys.exit(code)


if __name__ == "__main__":
    _entry()
