"""`python -m fgd.selfcheck [word …]`."""

import sys

from fgd.selfcheck import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
