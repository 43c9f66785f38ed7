"""Where the project is. Importing this lets a benchmark import it, wherever it is started from.

`python benchmarks/NAME.py` has the folder of the file first on its path, not the project's.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"

sys.path.insert(0, str(ROOT))
