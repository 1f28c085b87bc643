"""Ray: processes, the loop, weight push, checkpoints, the command line."""

import os

# Ray's hook for `uv run` re-packages the tree for every worker. Ray reads this switch once, on import, so it must be
# set before any module of this package imports ray. Without the hook, workers use the driver's interpreter.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
