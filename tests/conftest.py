"""One torch thread: the models are tiny, and idle OpenMP threads starve whatever else runs."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
