"""Ray: processes, the loop, weight push, checkpoints, the command line."""

import os

# Ray's hook for `uv run` re-packages the tree for every worker. Ray reads this switch once, when it is imported, so it
# has to be set before any module of this package imports ray. Workers use the driver's interpreter without the hook.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
