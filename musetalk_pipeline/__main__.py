"""`python -m musetalk_pipeline VIDEO AUDIO -o OUT.mp4`: a whole job in one process.

Exit code 0: done. 2: the input or the arguments are at fault. 1: this machine is. 130: Ctrl-C or
SIGTERM.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from tqdm import tqdm

from musetalk_pipeline.contact_sheet import write_contact_sheet
from musetalk_pipeline.engines import (
    EngineChoice,
    Precision,
    decide_engine,
    make_audio_encoder,
    make_engine,
)
from musetalk_pipeline.errors import (
    InvalidAudio,
    InvalidOptions,
    InvalidVideo,
    MediaError,
    PipelineError,
)
from musetalk_pipeline.faces import (
    DetectorName,
    PersonBox,
    Presence,
    best_landmarks,
    make_detector,
)
from musetalk_pipeline.faces.presence import INTERVAL_FRAMES
from musetalk_pipeline.options import (
    Edges,
    EncodeOptions,
    Faceless,
    FaceOptions,
    Fit,
    FrameOptions,
    FrameRate,
    JobOptions,
    MaskOptions,
    ParsingMode,
    Preset,
    SpeechOptions,
    Version,
    WindowPlacement,
    WindowSpan,
)
from musetalk_pipeline.pipeline import Result, RunProgress, Tools, run
from musetalk_pipeline.preview import make_preview
from musetalk_pipeline.watch import Watch

BAD_INPUT, OWN_FAULT, INTERRUPTED = 2, 1, 130
DEFAULTS = JobOptions()
PROJECT = Path(__file__).resolve().parent.parent
MOST_ENCODER_THREADS = 64  # guess: a frame has not enough rows for more


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
    tools = _load(args)
    if args.preview is not None:
        preview = make_preview(args.video, args.audio, options, tools)
        args.preview.write_bytes(preview.png())
        print(f"preview   {args.preview} (source frame {preview.source_frame})")
    if args.out is None:
        return
    with _Bar() as bar:
        watch = Watch(deadline_s=args.deadline_s)
        result = run(
            args.video, args.audio, args.out, options, tools, watch=watch, on_progress=bar.show
        )
    if args.contact_sheet is not None:
        write_contact_sheet(args.video, args.out, args.contact_sheet)
        print(f"sheet     {args.contact_sheet}")
    _report(result)


def _load(args: argparse.Namespace) -> Tools:
    models = find_models(args.models, Path.cwd(), PROJECT)
    decision = decide_engine(args.engine, models, args.version)
    engine = decision.engine
    print(f"engine    {engine}, because {decision.reason}", flush=True)
    landmarks = args.landmarks or best_landmarks(engine, models)
    return Tools(
        detector=make_detector(
            landmarks,
            models,
            presence=args.face_presence,
            presence_interval=args.presence_interval,
            person_box=args.person_box,
        ),
        engine=make_engine(
            engine,
            models,
            version=args.version,
            device=args.device,
            precision=args.dtype,
            batch_size=args.batch_size,
            seed=args.seed,
        ),
        audio_encoder=make_audio_encoder(engine, models),
        encoder_threads=args.encoder_threads,
    )


def find_models(named: Path | None, working: Path, project: Path) -> Path:
    """Return the folder of the weights: the one that is named, else `models` in the `working`
    folder, where the application looks too, else that of the `project`.
    """
    if named is not None:
        return named.absolute()
    here = working / "models"
    return here if here.is_dir() else project / "models"


def _options(args: argparse.Namespace) -> JobOptions:
    return JobOptions(
        frame=FrameOptions(args.resolution, args.aspect_ratio, args.fit, args.fps),
        face=FaceOptions(
            version=args.version,
            bbox_shift=args.bbox_shift,
            extra_margin=args.extra_margin,
            box_smoothing=args.box_smoothing,
            faceless=args.faceless,
            edges=args.edges,
        ),
        mask=MaskOptions(
            args.parsing_mode or ("jaw" if args.version == "v15" else "raw"),
            args.left_cheek_width,
            args.right_cheek_width,
            args.blur,
        ),
        speech=SpeechOptions(
            audio_padding_left=args.audio_padding_left,
            audio_padding_right=args.audio_padding_right,
            rest_in_silence=args.rest_in_silence,
            window_placement=args.window_placement,
            window_span=args.window_span,
            chunk_overlap_s=args.chunk_overlap_s,
            frame_rate=args.frame_rate,
        ),
        encode=EncodeOptions(args.crf, args.preset, args.audio_bitrate_kbps),
    )


def _check_paths(args: argparse.Namespace) -> None:
    """Refuse what would only fail after the work is done."""
    if not args.video.is_file():
        raise InvalidVideo(f"There is no video file at {args.video}.")
    if not args.audio.is_file():
        raise InvalidAudio(f"There is no audio file at {args.audio}.")
    if args.out is None and args.preview is None:
        raise InvalidOptions("Say where the result should go: -o OUT.mp4, or --preview PNG.")
    for path in (args.out, args.contact_sheet, args.preview):
        if path is not None and not path.absolute().parent.is_dir():
            raise InvalidOptions(f"The folder {path.absolute().parent} does not exist.")
    if args.out is not None and args.out.absolute() in (
        args.video.absolute(),
        args.audio.absolute(),
    ):
        raise InvalidOptions("The result would overwrite its own source; choose another name.")


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


class _Bar:
    """A progress bar of output frames on standard error."""

    def __init__(self) -> None:
        self._bar = tqdm(unit="frame", desc="open", leave=False, dynamic_ncols=True)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self, progress: RunProgress) -> None:
        self._bar.set_description(progress.stage, refresh=False)
        self._bar.total = progress.frames_total or None
        self._bar.n = progress.frames_done
        self._bar.refresh()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m musetalk_pipeline",
        description="Make the face in VIDEO speak AUDIO.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("video", type=Path, metavar="VIDEO")
    parser.add_argument("audio", type=Path, metavar="AUDIO")
    add = parser.add_argument
    add("-o", "--out", type=Path, metavar="OUT.mp4")
    add("--contact-sheet", type=Path, metavar="PNG", help="source above, result below")
    add("--preview", type=Path, metavar="PNG", help="one composited frame with its boxes")
    add("--deadline-s", type=_positive, metavar="S", help="give up after so many seconds")

    _add_tools(parser.add_argument_group("engine and landmarks"))
    _add_picture(parser.add_argument_group("picture"))
    _add_face(parser.add_argument_group("face and mask"))
    _add_speech(parser.add_argument_group("speech"))
    return parser


def _add_tools(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--engine", choices=get_args(EngineChoice), default="auto")
    where = "folder of the published weights; models/ here or in the project unless set"
    add("--models", type=Path, metavar="DIR", help=where)
    add("--version", choices=get_args(Version), default="v15")
    add("--device", default="auto", help="cpu, cuda, cuda:N or auto")
    add("--dtype", choices=get_args(Precision), default="float32")
    add("--batch-size", type=_within(1, 256), help="frames in one pass; by free memory unless set")
    add("--seed", type=_within(0, 2**32 - 1), help="sample the look; its mean unless set")
    add("--landmarks", choices=get_args(DetectorName), help="the best found unless set")
    add("--face-presence", choices=get_args(Presence), default="landmarks")
    frames, every = _within(1, 100_000), INTERVAL_FRAMES
    add("--presence-interval", type=frames, default=every, metavar="FRAMES", help="of s3fd's looks")
    add("--person-box", choices=get_args(PersonBox), default="frame", help="of onnx and mmpose")


def _add_picture(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--resolution", metavar="720p|WxH", help="720p is the short side; as the source unless set")
    add("--aspect-ratio", metavar="W:H", help="as the source unless set")
    add("--fit", choices=get_args(Fit), default="pad")
    add("--fps", type=_number(1.0, 120.0), help="play the source at it; as the source unless set")
    add("--crf", type=_within(0, 40), default=DEFAULTS.encode.crf, help="lower is better")
    add("--preset", choices=get_args(Preset), default=DEFAULTS.encode.preset, help="of libx264")
    cores = min(len(os.sched_getaffinity(0)), MOST_ENCODER_THREADS)
    threads = _within(1, MOST_ENCODER_THREADS)
    add("--encoder-threads", type=threads, default=cores, help="of libx264; 1 as through Serve")
    add("--audio-bitrate-kbps", type=_within(32, 512), default=DEFAULTS.encode.audio_bitrate_kbps)


def _add_face(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--bbox-shift", type=_within(-50, 50), default=DEFAULTS.face.bbox_shift, help="v1 only")
    add("--extra-margin", type=_within(0, 200), default=DEFAULTS.face.extra_margin, help="v15 only")
    add("--box-smoothing", type=_within(0, 12), default=DEFAULTS.face.box_smoothing)
    options = get_args(Faceless)
    add("--faceless", choices=options, default=DEFAULTS.face.faceless, help="frames without a face")
    edges = get_args(Edges)
    add("--edges", choices=edges, default=DEFAULTS.face.edges, help="boxes over the frame's edge")
    add("--parsing-mode", choices=get_args(ParsingMode), help="v15: jaw, v1: raw, unless set")
    add("--left-cheek-width", type=_within(0, 256), default=DEFAULTS.mask.left_cheek_width)
    add("--right-cheek-width", type=_within(0, 256), default=DEFAULTS.mask.right_cheek_width)
    add("--blur", type=_number(0.0, 0.5), default=DEFAULTS.mask.blur, help="in crop widths")


def _add_speech(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--audio-padding-left", type=_within(0, 10), default=DEFAULTS.speech.audio_padding_left)
    add("--audio-padding-right", type=_within(0, 10), default=DEFAULTS.speech.audio_padding_right)
    add("--rest-in-silence", action="store_true", help="show the source's mouth in silence")
    placements = get_args(WindowPlacement)
    add("--window-placement", choices=placements, default=DEFAULTS.speech.window_placement)
    overlap = DEFAULTS.speech.chunk_overlap_s
    add("--chunk-overlap-s", type=_number(0.0, 10.0), default=overlap, help="between 30 s chunks")
    spans = get_args(WindowSpan)
    add("--window-span", choices=spans, default=DEFAULTS.speech.window_span, help="of one window")
    rates = get_args(FrameRate)
    add("--frame-rate", choices=rates, default=DEFAULTS.speech.frame_rate, help="in the sound")


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
