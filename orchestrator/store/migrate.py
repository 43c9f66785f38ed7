"""Brings the tables of a database up to date, from every released schema.

The steps are Alembic's, in `migrations/versions`. They run at each start, in one transaction that
only one process at a time has.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import exc

from orchestrator.store.errors import SchemaTooNew, StoreUnavailable

MIGRATIONS = Path(__file__).parent / "migrations"
UPGRADE_LOCK = 0x6C69_7073  # any number that nobody else locks in this database


def upgrade(engine: sa.Engine, revision: str = "head") -> None:
    """Run the steps that are missing.

    Raises:
        SchemaTooNew: the database is of a newer release.
        StoreUnavailable: it does not answer, or cannot be written.
    """
    try:
        with engine.begin() as connection:
            if engine.dialect.name == "postgresql":
                # The lock ends with the transaction.
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(UPGRADE_LOCK)))
            command.upgrade(_config(connection), revision)
    except CommandError as error:
        raise SchemaTooNew(
            "The database was written by a newer release. Start that release, or restore a back-up."
        ) from error
    except (exc.OperationalError, exc.InterfaceError) as error:
        cause = str(error.orig).strip().splitlines()[0]
        raise StoreUnavailable(f"The database cannot be opened: {cause}") from error


def _config(connection: sa.Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
