"""What has to be true before Ray starts."""

import os
import subprocess
import sys


def test_rays_hook_for_uv_run_is_off_unless_the_user_turns_it_on() -> None:
    """Ray evaluates the switch at import: importing our launcher first has to be enough."""
    code = "import actors.run, ray._private.ray_constants as c; print(c.RAY_ENABLE_UV_RUN_RUNTIME_ENV)"
    clean = {key: value for key, value in os.environ.items() if key != "RAY_ENABLE_UV_RUN_RUNTIME_ENV"}

    def switch(env: dict[str, str]) -> str:
        return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout

    assert switch(clean).strip() == "False"
    assert switch(clean | {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "1"}).strip() == "True"
