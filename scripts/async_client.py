"""Write lipsync_client/async_client.py from lipsync_client/client.py.

    .venv/bin/python scripts/async_client.py [--check]

Both clients have the same methods, each of which runs one flow; only the word `await` differs.
`--check` changes nothing and fails if the file is not what would be written.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "lipsync_client" / "client.py"
TARGET = ROOT / "lipsync_client" / "async_client.py"
NOTE = "# Made by scripts/async_client.py from client.py.\n"
# Words of the source, and what stands for them in the target; the order matters.
WORDS = (
    ("The client for programs with threads, or without.", "The client for programs with asyncio."),
    ("import Callable, Iterator", "import AsyncIterator, Callable"),
    ("`AsyncLipsyncClient` has", "`LipsyncClient` has"),
    ("Threads may share a client.", "Tasks may share a client."),
    ("class LipsyncClient:", "class AsyncLipsyncClient:"),
    ("with LipsyncClient(", "async with AsyncLipsyncClient("),
    ("= client.submit", "= await client.submit"),
    (" client.wait(", " await client.wait("),
    (" client.download(", " await client.download("),
    ("-> Iterator[", "-> AsyncIterator["),
    ("BlockingDriver", "AsyncDriver"),
    ("self._driver.run(", "await self._driver.run("),
    ("def __enter__", "async def __aenter__"),
    ("def __exit__", "async def __aexit__"),
    ("def close(", "async def aclose("),
    ("self.close()", "await self.aclose()"),
    ("self._driver.close()", "await self._driver.aclose()"),
)
_METHOD = re.compile(
    r"^    def (\w+)\(.*?(?=^    (?:def|async def|#) |\Z)", re.MULTILINE | re.DOTALL
)


def converted(text: str) -> str:
    """Return the text of the asynchronous client."""
    text = text.partition("\n\ndef succeeded(")[0] + "\n"
    for word, other in WORDS:
        if word not in text:
            raise SystemExit(f"{SOURCE.name} has no {word!r} any more")
        text = text.replace(word, other)
    # `succeeded` is the other client's; the words before which it is imported are in both.
    text = text.replace("from lipsync_client.errors import JobFailed\n", "")
    first = "from lipsync_client.downloading"
    text = text.replace(first, f"from lipsync_client.client import succeeded\n{first}", 1)
    return formatted(NOTE + _METHOD.sub(_async_if_it_awaits, text))


def formatted(text: str) -> str:
    """Return the text as `make fmt` would leave it."""
    command = [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(TARGET), "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    return done.stdout


def _async_if_it_awaits(method: re.Match[str]) -> str:
    return (
        method[0].replace("    def ", "    async def ", 1) if "await " in method[0] else method[0]
    )


def main() -> None:
    """Rewrite the file, or check it."""
    new = converted(SOURCE.read_text())
    if "--check" not in sys.argv[1:]:
        TARGET.write_text(new)
    elif not TARGET.exists() or new != TARGET.read_text():
        raise SystemExit(f"{TARGET.name} is behind {SOURCE.name}: run scripts/async_client.py")


if __name__ == "__main__":
    main()
