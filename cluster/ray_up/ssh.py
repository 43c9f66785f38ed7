"""SSH to rented machines, whose ports differ from machine to machine.

Ray's own runner has no place for a port. It is set here in the options that `run`, both rsyncs and
port forwarding share, and in the two places that do not use them: the commands of
`initialization_commands`, which get options of their own, and the line that is shown to a person.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ray.autoscaler._private.command_runner import (
    DockerCommandRunner,
    SSHCommandRunner,
    SSHOptions,
)


@dataclass(frozen=True, slots=True)
class SshAddress:
    """Where the sshd of a machine listens."""

    host: str
    port: int


class PortedCommandRunner(SSHCommandRunner):
    """Ray's runner, for a machine whose sshd listens at an address of its own.

    Args:
        address: returns where, or None while the machine does not listen yet.
    """

    def __init__(self, address: Callable[[], SshAddress | None], **common: Any) -> None:
        super().__init__(**common)
        self._address = address
        self.ssh_options: SSHOptions

    def _get_node_ip(self) -> str | None:
        """Return the host, and note its port. Ray calls this until there is one."""
        found = self._address()
        if found is None:
            return None
        self.ssh_options.arg_dict["Port"] = found.port
        return found.host

    def run(self, *args: Any, ssh_options_override_ssh_key: str = "", **kwargs: Any) -> Any:
        """Run a command; with a key of its own, the connection is a new one, and has the port."""
        if not ssh_options_override_ssh_key:
            return super().run(*args, **kwargs)
        self._get_ssh_target()
        usual = self.ssh_options
        self.ssh_options = SSHOptions(
            ssh_options_override_ssh_key,
            ProxyCommand=self.ssh_proxy_command,
            Port=usual.arg_dict["Port"],
        )
        try:
            return super().run(*args, **kwargs)
        finally:
            self.ssh_options = usual

    def remote_shell_command_str(self) -> str:
        """Return the line with which a person logs in."""
        target = self._get_ssh_target()
        key = f"-i {self.ssh_private_key} " if self.ssh_private_key else ""
        port = self.ssh_options.arg_dict["Port"]
        return f"ssh -o IdentitiesOnly=yes {key}-p {port} {self.ssh_user}@{target}\n"


class PortedDockerRunner(DockerCommandRunner):
    """Runs commands in a container on a virtual machine, by the runner above."""

    def __init__(
        self, address: Callable[[], SshAddress | None], docker: dict[str, Any], **common: Any
    ) -> None:
        super().__init__(docker, **common)
        self.ssh_command_runner = PortedCommandRunner(address, **common)
