"""What the exit codes of `lipsync` mean; serve_app/one_shot/exit_codes.py has the numbers."""

from serve_app.one_shot.exit_codes import BAD_INPUT, DONE, INTERRUPTED, OWN_FAULT, TERMINATED

MEANINGS = {
    DONE: "The command has done its work.",
    OWN_FAULT: (
        "This machine is at fault, or lacks something: network, disk, GPU, weights. The same "
        "command may work later or on another machine."
    ),
    BAD_INPUT: (
        "The input, an option or the configuration is at fault. The same command will fail again."
    ),
    INTERRUPTED: "Ctrl-C ended the command. Nothing is left behind; a submitted job goes on.",
    TERMINATED: "SIGTERM ended the command. Nothing is left behind; a submitted job goes on.",
}
EPILOG = "Exit codes:\n\n" + "\n".join(
    f"- `{int(code)}` {meaning}" for code, meaning in MEANINGS.items()
)
