"""The orchestrator's command line.

python -m orchestrator                        serve until it is stopped
python -m orchestrator keys add client NAME   make a client's key and print it, once
python -m orchestrator keys add worker ID     make the token of one worker
python -m orchestrator keys webhook-secret NAME   print what a client verifies webhooks with
python -m orchestrator keys list
python -m orchestrator keys revoke KEY_ID
"""

from __future__ import annotations

import argparse
import sys

from orchestrator.server import serve
from orchestrator.service.access import ADMIN
from orchestrator.service.settings import Settings, SettingsError, make_folder, read_settings
from orchestrator.store.errors import StoreError, UnknownKey
from orchestrator.store.store import JobStore
from orchestrator.webhooks.sender import client_secret


def main(arguments: list[str] | None = None) -> int:
    """Run a command. Return 0, or 1 after a sentence on standard error."""
    options = _parser().parse_args(arguments)
    try:
        settings = read_settings()
        if options.command == "keys":
            _keys(settings, options)
        else:
            serve(settings)
    except UnknownKey:
        return _refuse("There is no key with this id that is still accepted.")
    except (SettingsError, StoreError, OSError) as error:
        return _refuse(str(error))
    return 0


def _keys(settings: Settings, options: argparse.Namespace) -> None:
    url = settings.database_url.get_secret_value()
    make_folder(url)
    with JobStore.open(url, settings.rules()) as store:
        if options.act == "add":
            if options.kind == "client" and options.name == ADMIN:
                raise SettingsError((f"A client cannot be called {ADMIN}: the operator is.",))
            print(store.add_key(options.kind, options.name, weight=options.weight))
        elif options.act == "webhook-secret":
            if settings.webhook_secret is None:
                raise SettingsError(("WEBHOOK_SECRET is not set, so no webhooks are sent.",))
            print(client_secret(settings.webhook_secret.get_secret_value(), options.name))
        elif options.act == "revoke":
            store.revoke_key(options.key_id)
        else:
            for key in store.all_keys():
                state = "accepted" if key.revoked_at is None else "revoked"
                print(f"{key.id}  {key.kind:6}  {state:8}  {key.name}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m orchestrator", description="The job queue.")
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("serve", help="serve until it is stopped (this is the default)")
    acts = commands.add_parser("keys", help="keys of clients and workers").add_subparsers(
        dest="act", required=True
    )
    add = acts.add_parser("add", help="make a key and print it; it cannot be read again")
    add.add_argument("kind", choices=("client", "worker"))
    add.add_argument("name", help="the client's name, or the worker's identity")
    help_text = "a client's share while several have jobs, compared with 1 by default"
    add.add_argument("--weight", type=_weight, help=help_text)
    secret = acts.add_parser("webhook-secret", help="print a client's secret for webhooks")
    secret.add_argument("name", help="the client's name")
    acts.add_parser("list", help="list all keys, without their secrets")
    revoke = acts.add_parser("revoke", help="let a key no longer be accepted")
    revoke.add_argument("key_id", help="the part of the key before the dot")
    return parser


def _weight(text: str) -> float:
    weight = float(text)
    if not 0.001 <= weight <= 1000:
        raise ValueError("a weight is 0.001 to 1000")
    return weight


def _refuse(sentence: str) -> int:
    print(sentence, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
