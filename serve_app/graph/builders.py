"""Builds what a replica works with: engine, detector, audio encoder and output store.

Each is chosen once, from the configuration and from the files on this machine.
"""

from collections.abc import Callable

from musetalk_pipeline.engines import (
    AudioEncoder,
    Engine,
    EngineName,
    choose_engine,
    make_audio_encoder,
    make_engine,
)
from musetalk_pipeline.engines.warp import version as warp_version
from musetalk_pipeline.faces import LandmarkDetector, best_landmarks, make_detector
from serve_app.config.environment import Environment
from serve_app.config.folders import make_folders
from serve_app.config.gpu_class import gpu_class
from serve_app.config.settings import AppArgs, PoolSettings, jobs_at_a_time
from serve_app.graph.scratch import Scratch
from serve_app.graph.transfers import Description
from serve_app.outputs.b2 import B2Settings, B2Store
from serve_app.outputs.local import LocalStore
from serve_app.outputs.store import OutputStore

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


def build_store(args: AppArgs, env: Environment) -> OutputStore:
    """Return the B2 store if its key is set, else the local folder that the ingress serves."""
    if env.b2_key_id and env.b2_app_key and env.b2_bucket:
        key = (env.b2_key_id.get_secret_value(), env.b2_app_key.get_secret_value())
        return B2Store(B2Settings(*key, env.b2_bucket, env.b2_prefix))
    return LocalStore(make_folders(args, env).results)


def configured_description(args: AppArgs, env: Environment) -> Description:
    """Return what `args` and `env` say about the engines, before one has been loaded.

    The class of a GPU is only found where it is, so the architecture of the first pool stands in.
    """
    pool = args.pools[0]
    engine = _engine_of(args)
    return Description(
        engine=engine,
        model_version=args.version if engine == "musetalk" else warp_version.MODEL_VERSION,
        landmarks=args.landmarks,
        device=device_of(pool),
        gpu_class=gpu_class(env, detected=pool.arch if pool.num_gpus else None),
        batch_size=pool.batch_size or env.batch_size or 1,
    )


def build_scratch(args: AppArgs, env: Environment) -> Scratch:
    """Return the scratch root of this node."""
    silence_s = args.longest_silence_s(jobs_at_a_time(args, env))
    return Scratch(make_folders(args, env).scratch, silence_s + KEPT_AFTER_S)


def device_of(pool: PoolSettings) -> str:
    """Return the torch device of a pool's replicas; each replica sees only its own GPUs."""
    return pool.device or ("cuda:0" if pool.num_gpus > 0 else "cpu")


def _engine_of(args: AppArgs) -> EngineName:
    assert args.engine != "auto", "resolve() comes first"
    return args.engine
