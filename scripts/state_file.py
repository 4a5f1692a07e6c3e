"""What `cluster up` leaves behind, so that later commands find the cluster it started."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from scripts.processes import ProcessRecord

FILE_NAME = "cluster.json"


class StateFileError(ValueError):
    """The file is not one that this program wrote; the message names the file."""


@dataclass(frozen=True)
class RunningCluster:
    """A cluster that was started and left running.

    Attributes:
        name: in etcd.
        folder: where its data and logs are.
        etcd: `host:port`.
        routers: `host:port` of each.
        processes: how to find every process again.
    """

    name: str
    folder: str
    etcd: str
    routers: tuple[str, ...]
    processes: tuple[ProcessRecord, ...]

    @property
    def alive(self) -> tuple[ProcessRecord, ...]:
        """The processes that still run."""
        return tuple(process for process in self.processes if process.is_alive())

    def save(self) -> None:
        """Write the file, whole or not at all."""
        path = Path(self.folder) / FILE_NAME
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        fresh.replace(path)

    def forget(self) -> None:
        """Remove the file."""
        (Path(self.folder) / FILE_NAME).unlink(missing_ok=True)

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """Read the file of a cluster's folder; None when there is none.

        Raises:
            StateFileError: there is one that cannot be read.
        """
        path = folder / FILE_NAME
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
            processes = tuple(ProcessRecord(**process) for process in body.pop("processes"))
            return cls(**body | {"routers": tuple(body["routers"]), "processes": processes})
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise StateFileError(f"{path} is damaged: {error!r}") from error
