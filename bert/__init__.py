"""What the commands at the root are made of; bert/README.md lists the modules."""

import os

# Importing numpy starts a thread of its linear algebra on every core (0.1 s of CPU). Nothing here
# uses that.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
