"""`python -m amg` is `sam-amg`."""

import sys

from amg.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
