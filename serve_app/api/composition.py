"""The composition root of the ingress: builds the services from configuration and environment.

`compose` takes the Serve deployments behind the ingress. `assemble` takes any driver and readiness
check, so that everything else runs, and is tested, without Ray.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from orchestrator.net.addresses import AddressPolicy
from orchestrator.webhooks.posting import Poster, signing_key
from orchestrator.webhooks.rules import DeliveryRules
from orchestrator.webhooks.sender import DeliveryLoop
from serve_app.api.answers import event_data
from serve_app.api.services import ApiOptions, Availability, ReadinessCheck, Services
from serve_app.api.upload_counts import UPLOAD_COUNTS
from serve_app.config.environment import Environment
from serve_app.config.folders import Folders, make_folders
from serve_app.config.settings import AppArgs, configured_jobs, jobs_at_a_time, reported_jobs
from serve_app.estimates.estimator import Estimator
from serve_app.fleet.polling import Polling, polling_rules
from serve_app.fleet.pushed_reports import PushedReports, report_rules
from serve_app.gate.access_control import AccessControl
from serve_app.gate.callers import CallerRules
from serve_app.gate.links import LinkMaker, Links, no_stream
from serve_app.graph.builders import (
    build_scratch,
    build_shared_retention,
    build_shelf,
    build_store,
    build_streams,
    build_uploads,
    configured_description,
)
from serve_app.graph.capacity import SharedCapacity
from serve_app.graph.driver import JobDriver
from serve_app.graph.job_segments import SegmentMakers
from serve_app.graph.job_stream import JobStreams
from serve_app.graph.left_nodes import left_nodes, live_node_ids
from serve_app.graph.pieces import PieceFiles
from serve_app.graph.placement_watch import PlacementWatch
from serve_app.graph.places import places_of
from serve_app.graph.pools import Graph
from serve_app.graph.prices import prices_of
from serve_app.graph.queue_gauges import show_queue
from serve_app.graph.readiness import Readiness
from serve_app.graph.replicas import ReplicaWatch
from serve_app.graph.scaling_loop import Scaling
from serve_app.graph.serve_controller import ServeController
from serve_app.graph.stage_calls import StageCalls
from serve_app.graph.transfers import length_of
from serve_app.jobs.batches import BatchService
from serve_app.jobs.job import Job
from serve_app.jobs.registry import JobRegistry
from serve_app.jobs.service import DEFAULT_TIMING, JobService, JobTiming
from serve_app.outputs.local import LocalStore
from serve_app.outputs.store import OutputStore
from serve_app.streams.streams import Streams
from serve_app.uploads.owners import Owners

logger = logging.getLogger(__name__)


def compose(args: AppArgs, env: Environment, graph: Graph, app_name: str) -> Services:
    """Build the services of an ingress in front of the deployments of `graph`.

    Must be called in a running event loop.

    Raises:
        FolderRefused: a working folder cannot be trusted or created.
    """
    controller = ServeController(app_name)
    watch = ReplicaWatch(controller.replica_counts)
    placement = PlacementWatch(places_of(args), awaits_nodes=args.scaling.awaits_nodes)
    capacity = SharedCapacity(args, why=placement.reason)
    watch.subscribe(capacity.follow)
    scaling = Scaling(args, capacity, watch, placement, controller.report)
    configured = configured_description(args, env)
    readiness = Readiness(graph, watch, configured, can_start=scaling.can_start)
    show_queue(capacity.scheduler)
    if (shared := build_shared_retention(args, env)) is not None:
        shared.start()
    left = left_nodes(args)
    watch.subscribe(left.follow)
    left.start(live_node_ids)
    scratch = build_scratch(args, env)
    scratch.start_janitor()
    estimator = Estimator(
        capacity.runners,
        lambda: prices_of(args, capacity.scheduler.usd_per_hour()),
        capacity.ahead,
    )
    calls = StageCalls(args.driver)
    makers = SegmentMakers(graph, args.driver, capacity, calls, PieceFiles(scratch))
    streams = build_streams(args, env)
    driver = JobDriver(
        makers,
        args.inputs.download_timeout_s,
        readiness.description,
        jobs_at_a_time(args, env),
        prices=lambda: prices_of(args, capacity.scheduler.usd_per_hour()),
        left_nodes=left,
        expected_s=lambda opened: estimator.after_opening_s(length_of(opened)),
        streams=None
        if streams is None
        else JobStreams(streams, graph.finisher, calls, args.driver.finish_timeout_s),
    )
    return assemble(
        args, env, driver, readiness, streams=streams, scaling=scaling, estimator=estimator
    )


def assemble(
    args: AppArgs,
    env: Environment,
    driver: JobDriver,
    readiness: ReadinessCheck,
    timing: JobTiming = DEFAULT_TIMING,
    *,
    streams: Streams | None = None,
    scaling: Scaling | None = None,
    estimator: Estimator | None = None,
) -> Services:
    """Build the services around a driver and a readiness check; see `compose`. Without `estimator`,
    estimates know only what the configuration says about pools.
    """
    folders = make_folders(args, env)
    has_stream = no_stream if streams is None else streams.has
    links = LinkMaker.of(args, env, folders.state, has_stream)
    jobs = JobService(
        JobRegistry(folders.state / "jobs.sqlite3", timing=timing.state),
        driver,
        args.queue,
        args.job_defaults(),
        _output_check(build_store(args, env)),
        timing=timing,
        estimator=estimator or _estimator_of(args),
    )
    if streams is not None:
        streams.on_ready = jobs.announce
    jobs.publish = links.for_notifications().publish
    capacity = jobs_at_a_time(args, env)
    rules = CallerRules.of(env, has_page=args.studio.enabled)
    logger.info(rules.in_words())
    availability = Availability(readiness, jobs.threads.is_writable)
    return Services(
        jobs=jobs,
        batches=BatchService(jobs, args.queue.max_batched_jobs),
        availability=availability,
        access=AccessControl(rules, links.signer),
        links=links,
        files=LocalStore(folders.results),
        capacity=capacity,
        reported_capacity=reported_jobs(args, env),
        most_claimed=lambda: configured_jobs(args, env) or min(capacity, _drawers(scaling) + 1),
        previews=asyncio.Semaphore(capacity),
        options=ApiOptions.of(args, env),
        owners=Owners(links.signer.secret),
        avatars=build_shelf(args, env),
        uploads=build_uploads(args, env, UPLOAD_COUNTS),
        webhooks=_webhooks(args, env, jobs, links.for_notifications()),
        polling=_polling(args, env, folders, jobs, availability),
        reports=_reports(args, env, folders, jobs, availability),
        streams=streams,
        scaling=scaling,
    )


def _drawers(scaling: Scaling | None) -> int:
    """Return how many Generator replicas run, or may be started for work that waits."""
    return 1 if scaling is None else scaling.drawers


def _estimator_of(args: AppArgs) -> Estimator:
    capacity = SharedCapacity(args)
    return Estimator(capacity.runners, lambda: prices_of(args))


def _output_check(store: OutputStore) -> Callable[[Job], Awaitable[bool]]:
    """Return a function that checks whether a job's output still exists."""
    # Threads of its own, so that a store that does not respond delays nothing else.
    threads = ThreadPoolExecutor(4, "outputs")

    async def has_output(job: Job) -> bool:
        return await asyncio.get_running_loop().run_in_executor(threads, store.has, job.id)

    return has_output


def _webhooks(
    args: AppArgs, env: Environment, jobs: JobService, links: Links
) -> DeliveryLoop | None:
    """Return what delivers the webhooks of an ingress; None if there is no secret to sign with."""
    if env.webhook_secret is None:
        return None
    policy = AddressPolicy(frozenset([*args.inputs.allowed_hosts, *env.allowed_hosts]))
    rules, key = DeliveryRules(), signing_key(env.webhook_secret.get_secret_value())
    loop = DeliveryLoop(
        jobs.registry,
        jobs.threads.write,
        Poster(policy, rules.timeout_s),
        lambda client: key,
        lambda taken: event_data(taken, links),
        rules,
    )
    jobs.on_end = loop.wake
    return loop


def _polling(
    args: AppArgs,
    env: Environment,
    folders: Folders,
    jobs: JobService,
    availability: Availability,
) -> Polling | None:
    rules = polling_rules(env)
    if rules is None:
        return None
    return Polling(
        rules,
        env,
        folders.state,
        service=jobs,
        can_run=availability.may_begin,
        capacity=reported_jobs(args, env),
        batch_size=_batch_size(env, availability),
        capabilities={"engines": [args.engine], "avatars": args.avatars.max_gb > 0},
    )


def _reports(
    args: AppArgs,
    env: Environment,
    folders: Folders,
    jobs: JobService,
    availability: Availability,
) -> PushedReports | None:
    rules = report_rules(env)
    if rules is None:
        if env.mode == "queue" and env.orchestrator_url is not None:
            logger.warning("without INTERNAL_API_KEY jobs are neither claimed nor reported")
        return None
    # Logged, because the environment may be a poller's that lacks only WORKER_TYPE.
    logger.info("jobs are not claimed; those sent to POST /generate are reported")
    return PushedReports(
        rules,
        env,
        folders.state,
        service=jobs,
        batch_size=_batch_size(env, availability),
        public_base_url=args.public_base_url,
    )


def _batch_size(env: Environment, availability: Availability) -> Callable[[], int | None]:
    """Return a function for the batch size of the networks, which readiness may reveal later."""

    def batch_size() -> int | None:
        chosen: int | None = env.batch_size or availability.facts().get("batch_size")
        return chosen

    return batch_size
