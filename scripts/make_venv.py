"""Makes a virtual environment with pip in it, on a machine that may have nothing but python3.

Runs before anything is installed, so it uses the standard library alone. Debian splits
`ensurepip` off its python3; where it is missing, pip comes from Debian's own package of it,
unpacked into a scratch folder. That needs neither root nor a change to the system.

    python3 make_venv.py FOLDER
"""

import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

PYTHON_MIN = (3, 11)
PIP_PACKAGE = "python3-pip-whl"
HELP = "install your system's venv package (Debian: apt-get install python3-venv), then try again"


def main() -> int:
    """Run the command line; returns the exit code."""
    if len(sys.argv) != 2:
        print(f"usage: {sys.argv[0]} FOLDER", file=sys.stderr)
        return 2
    if sys.version_info < PYTHON_MIN:
        needed = ".".join(map(str, PYTHON_MIN))
        print(
            f"Doubloon needs Python {needed} or newer; {sys.executable} is "
            f"{sys.version.split()[0]}. Name another one: make PYTHON=/path/to/python3 …",
            file=sys.stderr,
        )
        return 1
    folder = Path(sys.argv[1]).resolve()
    if has_pip(folder):
        return 0
    try:
        make(folder)
    except (OSError, subprocess.CalledProcessError) as error:
        # What failed midway would look like a finished environment to the next run.
        shutil.rmtree(folder, ignore_errors=True)
        print(f"cannot make {folder}: {error}\n{HELP}", file=sys.stderr)
        return 1
    return 0


def has_pip(folder: Path) -> bool:
    """Tell whether `folder` is an environment whose Python starts and has pip."""
    python = folder / "bin" / "python"
    if not python.exists():
        return False
    asked = subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=False)
    return asked.returncode == 0


def make(folder: Path) -> None:
    """Make the environment; raises OSError or CalledProcessError when it cannot."""
    try:
        import ensurepip  # noqa: F401, PLC0415 - asked for only to learn whether it is there
    except ImportError:
        venv.create(folder, clear=True, symlinks=True, with_pip=False)
        install_pip_from_debian(folder)
    else:
        venv.create(folder, clear=True, symlinks=True, with_pip=True)


def install_pip_from_debian(folder: Path) -> None:
    """Install into `folder` the pip wheel that Debian packages for its own venv module."""
    with tempfile.TemporaryDirectory(prefix="doubloon-pip-") as scratch_name:
        scratch = Path(scratch_name)
        print(f"this Python has no ensurepip: taking pip from Debian's {PIP_PACKAGE}")
        # Private lists and cache: a fresh machine has no lists, and only root may fetch them.
        (scratch / "lists" / "partial").mkdir(parents=True)
        (scratch / "cache" / "archives" / "partial").mkdir(parents=True)
        apt = [
            *("apt-get", "-qq"),
            *("-o", f"Dir::State::Lists={scratch / 'lists'}"),
            *("-o", f"Dir::Cache={scratch / 'cache'}"),
            *("-o", "APT::Sandbox::User="),  # as ourselves: the scratch folder is ours alone
        ]
        subprocess.run([*apt, "update"], check=True, cwd=scratch)
        subprocess.run([*apt, "download", PIP_PACKAGE], check=True, cwd=scratch)
        for package in scratch.glob("*.deb"):
            unpack = ["dpkg-deb", "-x", str(package), str(scratch / "unpacked")]
            subprocess.run(unpack, check=True)
        for wheel in scratch.glob("unpacked/usr/share/python-wheels/pip-*.whl"):
            # A wheel is a zip file, and Python runs a package inside one in place.
            subprocess.run(
                [folder / "bin" / "python", wheel / "pip", "--quiet", "install", wheel],
                check=True,
            )
            return
    raise FileNotFoundError(f"no pip wheel in Debian's {PIP_PACKAGE}")


if __name__ == "__main__":
    sys.exit(main())
