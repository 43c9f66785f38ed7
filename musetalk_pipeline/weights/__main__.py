"""`python -m musetalk_pipeline.weights fetch|verify`."""

import sys

from musetalk_pipeline.weights.fetch import main

if __name__ == "__main__":
    sys.exit(main())
