"""Installs a peer that is missing with apt-get, where that is asked for and allowed."""

import os
import shutil
import subprocess

TIMEOUT_S = 600
_LAST_LETTERS = 300


def install(*packages: str) -> str:
    """Install Debian packages; return "" when done, else why not.

    Their services are not started: RUNLEVEL=1 tells Debian's scripts so.
    """
    if shutil.which("apt-get") is None:
        return "no apt-get here"
    if os.geteuid() != 0:
        return "installing needs root"
    quiet = {**os.environ, "RUNLEVEL": "1", "DEBIAN_FRONTEND": "noninteractive"}
    for command in (
        ["apt-get", "-qq", "update"],
        ["apt-get", "-qq", "-y", "--no-install-recommends", "install", *packages],
    ):
        made = subprocess.run(
            command, env=quiet, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
        )
    return "" if made.returncode == 0 else made.stderr.strip()[-_LAST_LETTERS:]
