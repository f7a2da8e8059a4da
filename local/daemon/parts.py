"""The parts of one cloud, made from its layout and its options; nothing is started here."""

import os
from dataclasses import dataclass
from functools import partial

import aiohttp

from lambda_pg_cdk.local.control_plane.ministack import ControlPlane, control_plane_variables
from lambda_pg_cdk.local.daemon.api_ports import ApiPorts
from lambda_pg_cdk.local.daemon.deployments import Deployments, own_settings, stage_settings
from lambda_pg_cdk.local.daemon.follower import Follower
from lambda_pg_cdk.local.daemon.layout import Layout
from lambda_pg_cdk.local.daemon.progress import Progress
from lambda_pg_cdk.local.daemon.reconciler import Reconciler
from lambda_pg_cdk.local.daemon.servers import Database, PoolerFactory, ServerThread
from lambda_pg_cdk.local.daemon.updates import Updates
from lambda_pg_cdk.local.deployment.cdk import Cdk, merge
from lambda_pg_cdk.local.deployment.direct import Direct
from lambda_pg_cdk.local.deployment.inventory import Inventory
from lambda_pg_cdk.local.environments.account import Account
from lambda_pg_cdk.local.environments.launcher import LaunchContext
from lambda_pg_cdk.local.faults.secrets_front import SecretsFront
from lambda_pg_cdk.local.faults.wires import Wires
from lambda_pg_cdk.local.http_api.authorizer import Authorizer
from lambda_pg_cdk.local.http_api.history import History
from lambda_pg_cdk.local.http_api.issuer import Issuer
from lambda_pg_cdk.local.http_api.server import HttpApi
from lambda_pg_cdk.local.options import Options
from lambda_pg_cdk.local.pooler_service.cloud_map import CloudMap
from lambda_pg_cdk.local.pooler_service.front import Front
from lambda_pg_cdk.local.pooler_service.service import PoolerService
from lambda_pg_cdk.local.processes.json_process import JsonProcess
from lambda_pg_cdk.local.state import CLOUD_ID_VARIABLE, State, StateFile
from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.parameters import parameter_name


@dataclass(frozen=True, slots=True)
class Faults:
    """What can be broken: the wires, and Secrets Manager."""

    wires: Wires
    secrets: SecretsFront


@dataclass(frozen=True, slots=True)
class Servers:
    """What functions connect to; `faults` is None in a cloud without wires."""

    balancer: Front
    control_plane: ControlPlane
    database: Database
    faults: Faults | None
    pooler_factory: PoolerFactory
    thread: ServerThread


@dataclass(frozen=True, slots=True)
class Parts:
    """All parts of a cloud."""

    account: Account
    apis: ApiPorts
    console: JsonProcess
    deployments: Deployments
    follower: Follower
    history: History
    issuer: Issuer
    pooler: PoolerService
    reconciler: Reconciler
    servers: Servers
    state: StateFile


def make_parts(
    layout: Layout, options: Options, progress: Progress, session: aiohttp.ClientSession
) -> Parts:
    """Make the parts of a cloud, and the files that other processes find it by."""
    own = own_settings(layout)
    settings = stage_settings(options.app, merge(own, options.override))
    region, folder = settings.region, layout.folder
    issuer = Issuer.create(layout.issuer.url)
    issuer.save(folder / "issuer.pem")
    state = StateFile(folder, _state(layout, region))
    servers = _make_servers(layout, settings, progress, session)
    account = Account(_launch_context(layout, region), options.idle_seconds, options.start)
    history = History()
    make_api = partial(HttpApi, account.invoke, Authorizer(session), history)
    apis = ApiPorts(layout.api, make_api, layout.make_folder("domains"))
    names = CloudMap(layout.endpoint, region, layout.key)
    make_pooler, thread = servers.pooler_factory.make, servers.thread
    pooler = PoolerService(servers.balancer, names, make_pooler, thread.run)
    inventory = Inventory(layout.endpoint, region, layout.key, layout.make_folder("code"))
    reconciler = Reconciler(inventory, account, apis, pooler)
    direct = Direct(layout.endpoint, region, layout.key, parameter_name(settings, "layer/arn"))
    updates = Updates(direct, account, reconciler)
    deployments = Deployments(_cdk(layout, settings), reconciler, progress, options, own, updates)
    return Parts(
        account=account,
        apis=apis,
        console=JsonProcess("lambda_pg_cdk.console", [str(folder)], folder / "console.log"),
        deployments=deployments,
        follower=Follower(layout, region, session, deployments, reconciler),
        history=history,
        issuer=issuer,
        pooler=pooler,
        reconciler=reconciler,
        servers=servers,
        state=state,
    )


def _make_servers(
    layout: Layout, settings: Config, progress: Progress, session: aiohttp.ClientSession
) -> Servers:
    folder, ports, thread = layout.folder, layout.ports, ServerThread()
    faults = None
    if layout.secrets_front is not None:
        hops = {
            "pooler": (ports.pooler, ports.balancer),
            "database": (ports.database, ports.postgres),
        }
        wires = Wires(folder / "wires.log", hops)
        faults = Faults(wires, SecretsFront(layout.endpoint, session))
    variables = layout.sdk_variables(settings.region)
    return Servers(
        balancer=Front(folder / "balancer.log", ports.balancer, target_port=ports.pooler),
        control_plane=_control_plane(layout, settings),
        database=Database(thread, folder / "postgres", ports, settings, progress),
        faults=faults,
        pooler_factory=PoolerFactory(folder / "pooler", variables, layout.control.url, progress),
        thread=thread,
    )


def _control_plane(layout: Layout, settings: Config) -> ControlPlane:
    home, ports = layout.folder / "control-plane", layout.ports
    front = layout.secrets_front
    variables = control_plane_variables(
        home,
        (ports.aws, ports.secrets),
        _account(settings),
        settings.region,
        layout.control.url,
        layout.key,
        [] if front is None else [front.port],
    )
    return ControlPlane(home, ports.aws, variables)


def _cdk(layout: Layout, settings: Config) -> Cdk:
    account = _account(settings)
    return Cdk(layout.make_folder("cdk"), layout.endpoint, account, settings.region, layout.key)


def _account(settings: Config) -> str:
    return settings.account or "000000000000"


def _state(layout: Layout, region: str) -> State:
    return State(
        cloud_id=os.environ[CLOUD_ID_VARIABLE],
        guardian=os.getppid(),
        daemon=os.getpid(),
        key=layout.key,
        control_url=layout.control.url,
        api_url=layout.api.url,
        issuer_url=layout.issuer.url,
        aws_endpoint_url=layout.endpoint,
        region=region,
        ready=False,
    )


def _launch_context(layout: Layout, region: str) -> LaunchContext:
    cloud_id = {CLOUD_ID_VARIABLE: os.environ[CLOUD_ID_VARIABLE]}
    variables = layout.sdk_variables(region) | cloud_id
    return LaunchContext(
        layout.runtime, layout.make_folder("tmp"), layout.folder / "logs", variables
    )
