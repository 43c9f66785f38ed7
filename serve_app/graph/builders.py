"""Builds what a replica works with: engine, detector, audio encoder and output store.

Each is chosen once, from the configuration and from the files on this machine.
"""

import logging
from collections.abc import Callable

from musetalk_pipeline.avatar_tools import describe_tools
from musetalk_pipeline.engines import (
    AudioEncoder,
    Engine,
    EngineName,
    choose_engine,
    engine_version,
    make_audio_encoder,
    make_engine,
)
from musetalk_pipeline.errors import ModelLoadFailed
from musetalk_pipeline.faces import LandmarkDetector, best_landmarks, make_detector
from serve_app.avatars.about import BLOCK_SUFFIX
from serve_app.avatars.cache import AvatarCache
from serve_app.avatars.local import LocalAvatars
from serve_app.avatars.shared import SharedAvatars
from serve_app.avatars.shared_retention import SharedRetention
from serve_app.avatars.shelf import AvatarShelf
from serve_app.config.environment import Environment
from serve_app.config.folders import (
    UPLOADS_SETTING,
    folder_of_uploads,
    make_folders,
    scratch_root,
)
from serve_app.config.gpu_class import gpu_class
from serve_app.config.settings import AppArgs, PoolSettings, jobs_at_a_time
from serve_app.graph.scratch import Scratch
from serve_app.graph.transfers import Description
from serve_app.outputs.b2 import B2Store
from serve_app.outputs.b2_bucket import B2Bucket, B2Settings
from serve_app.outputs.local import LocalStore
from serve_app.outputs.retention import DAY_S
from serve_app.outputs.store import OutputStore
from serve_app.private_folders import private_folder
from serve_app.streams.streams import Streams
from serve_app.uploads.counts import NOT_COUNTED, UploadCounts
from serve_app.uploads.folder import UploadFolder, UploadRules
from serve_app.uploads.space import UploadSpace
from serve_app.uploads.store import UploadStore

logger = logging.getLogger(__name__)

HOUR_S = 3600.0
KEPT_AFTER_S = 1800.0  # scratch, beyond what the deadlines allow: clocks and queues are not exact


def resolve(args: AppArgs, env: Environment) -> AppArgs:
    """Replace every `auto` with what this machine has, and paths with absolute ones."""
    models = args.models_dir.absolute()
    engine = choose_engine(
        args.engine,
        models,
        args.version,
        unet_weights=env.unet_path,
        unet_config=env.unet_config,
    )
    landmarks = args.landmarks
    if landmarks == "auto":
        landmarks = best_landmarks(engine, models)
    chosen = {"engine": engine, "landmarks": landmarks, "models_dir": models}
    chosen["state_dir"] = args.state_dir.absolute()
    chosen["result_dir"] = (env.result_dir or args.result_dir).absolute()
    return args.model_copy(update=chosen)


def build_detector(
    args: AppArgs, make: Callable[..., LandmarkDetector] = make_detector
) -> LandmarkDetector:
    """Load the configured landmark detector by calling `make`."""
    assert args.landmarks != "auto", "resolve() comes first"
    return make(
        args.landmarks,
        args.models_dir,
        presence=args.face_presence,
        presence_interval=args.presence_interval,
        device="cuda:0" if args.preprocessor.num_gpus else "cpu",
        person_box=args.person_box,
    )


def build_audio_encoder(args: AppArgs, env: Environment | None = None) -> AudioEncoder:
    """Load the configured engine's audio encoder.

    It serves as many jobs as may run here according to `args` and `env`; only one without `env`.
    """
    jobs = 1 if env is None else jobs_at_a_time(args, env)
    return make_audio_encoder(_engine_of(args), args.models_dir, jobs)


def build_engine(
    args: AppArgs, pool: PoolSettings, env: Environment, make: Callable[..., Engine] = make_engine
) -> Engine:
    """Load the configured engine for one pool by calling `make`."""
    return make(
        _engine_of(args),
        args.models_dir,
        version=args.version,
        device=device_of(pool),
        precision=pool.dtype,
        batch_size=pool.batch_size or env.batch_size,
        gpu_share=pool.num_gpus or 1.0,
        speedup=pool.speedup,
        seed=args.seed,
        threads=pool.threads,
        unet_weights=env.unet_path,
        unet_config=env.unet_config,
    )


def needs_parse_inputs(args: AppArgs) -> bool:
    """Whether the configured engine parses faces."""
    return args.engine == "musetalk"


def build_avatars(args: AppArgs, env: Environment) -> AvatarCache | None:
    """Return the cache of avatars; None if it is turned off or this machine lacks a weight file.

    Call it once in a process, because it starts threads.
    """
    assert args.engine != "auto" and args.landmarks != "auto", "resolve() comes first"
    rules = args.avatars
    if rules.max_gb == 0:
        return None
    try:
        tools = describe_tools(
            args.engine,
            args.landmarks,
            args.models_dir,
            version=args.version,
            presence=args.face_presence,
            presence_interval=args.presence_interval,
            person_box=args.person_box,
            seed=args.seed,
            precisions=[pool.dtype for pool in args.pools],
        )
    except ModelLoadFailed as exc:
        logger.warning("avatars are not kept", extra={"error": exc.message})
        return None
    local = _local_avatars(args, env)
    local.start_janitor()
    return AvatarCache(local, tools, _shared_avatars(args, env))


def build_shelf(args: AppArgs, env: Environment) -> AvatarShelf | None:
    """Return the avatars as callers see them; None if they are not kept here."""
    if args.avatars.max_gb == 0:
        return None
    return AvatarShelf(_local_avatars(args, env), _shared_avatars(args, env))


def build_streams(args: AppArgs, env: Environment) -> Streams | None:
    """Return the streams of an ingress, without those of an earlier one; None if there are none.

    Call it once in a process, because it starts a thread.
    """
    rules = args.streams
    if rules.max_gb == 0:
        return None
    streams = Streams(make_folders(args, env).streams, rules.keep_minutes * 60, rules.max_gb * 1e9)
    streams.clear()
    streams.start_janitor()
    return streams


def build_shared_retention(args: AppArgs, env: Environment) -> SharedRetention | None:
    """Return what removes avatars from B2; None if they are not kept there."""
    b2 = _b2_settings(env)
    if b2 is None or args.avatars.max_gb == 0:
        return None
    return SharedRetention(B2Bucket(b2), args.avatars.shared_days * DAY_S)


def _local_avatars(args: AppArgs, env: Environment) -> LocalAvatars:
    rules = args.avatars
    folder, max_bytes = make_folders(args, env).avatars, rules.max_gb * 1e9
    return LocalAvatars(folder, max_bytes, rules.keep_days * DAY_S, first_to_go=BLOCK_SUFFIX)


def _shared_avatars(args: AppArgs, env: Environment) -> SharedAvatars | None:
    b2 = _b2_settings(env)
    if b2 is None:
        return None
    # So often that a failed mark, or a long job, does not make an avatar look unused.
    mark_s = min(DAY_S, args.avatars.shared_days * DAY_S / 4)
    return SharedAvatars(B2Bucket(b2), mark_s=mark_s)


def build_store(args: AppArgs, env: Environment) -> OutputStore:
    """Return the B2 store if its key is set, else the local folder that the ingress serves."""
    settings = _b2_settings(env)
    return LocalStore(make_folders(args, env).results) if settings is None else B2Store(settings)


def keeps_results_locally(env: Environment) -> bool:
    """Return whether results stay in the local folder, because B2 is not configured."""
    return _b2_settings(env) is None


def _b2_settings(env: Environment) -> B2Settings | None:
    if env.b2_key_id and env.b2_app_key and env.b2_bucket:
        key = (env.b2_key_id.get_secret_value(), env.b2_app_key.get_secret_value())
        return B2Settings(*key, env.b2_bucket, env.b2_prefix)
    return None


def configured_description(args: AppArgs, env: Environment) -> Description:
    """Return what `args` and `env` say about the engines, before one has been loaded.

    The class of a GPU is only found where it is, so the architecture of the first pool stands in.
    """
    pool = args.pools[0]
    engine = _engine_of(args)
    return Description(
        engine=engine,
        model_version=engine_version(engine, args.version),
        landmarks=args.landmarks,
        device=device_of(pool),
        gpu_class=gpu_class(env, detected=pool.arch if pool.num_gpus else None),
        batch_size=pool.batch_size or env.batch_size or 1,
    )


def uploads_folder(args: AppArgs, env: Environment) -> UploadFolder:
    """Return the folder of the uploads; on a node without the ingress there is none."""
    rules = args.uploads
    max_mb = env.max_file_mb or args.inputs.max_file_mb
    media = args.inputs.model_copy(update={"max_file_mb": max_mb}).limits()
    kept = UploadRules(rules.keep_hours * HOUR_S, rules.unfinished_hours * HOUR_S, media)
    return UploadFolder(folder_of_uploads(args), kept)


def build_uploads(
    args: AppArgs, env: Environment, counts: UploadCounts = NOT_COUNTED
) -> UploadStore | None:
    """Return the uploads that the ingress keeps; None if it accepts none.

    Raises:
        FolderRefused: the folder cannot be trusted or made.
    """
    if args.uploads.max_gb == 0:
        return None
    make_folders(args, env)
    folder = uploads_folder(args, env)
    private_folder(folder.path, UPLOADS_SETTING)
    space = UploadSpace(folder.path, round(args.uploads.max_gb * 1e9), counts=counts)
    store = UploadStore(folder, space, counts)
    store.start_janitor()
    return store


def build_scratch(args: AppArgs, env: Environment) -> Scratch:
    """Return the scratch root of this node."""
    silence_s = args.longest_silence_s(jobs_at_a_time(args, env))
    return Scratch(scratch_root(args, env), silence_s + KEPT_AFTER_S)


def device_of(pool: PoolSettings) -> str:
    """Return the torch device of a pool's replicas; each replica sees only its own GPUs."""
    return pool.device or ("cuda:0" if pool.num_gpus > 0 else "cpu")


def _engine_of(args: AppArgs) -> EngineName:
    assert args.engine != "auto", "resolve() comes first"
    return args.engine
