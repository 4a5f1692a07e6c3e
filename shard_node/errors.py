"""What the shard node's rooms raise when a request cannot be served; `service` translates it.

None of these is a refusal (those are values), and after each of them nothing has happened.
"""


class ShardNodeError(Exception):
    """Base of all of them."""


class OverloadedError(ShardNodeError):
    """A queue is at its bound; later it will have room."""


class SpaceExhaustedError(ShardNodeError):
    """The map or the disk is nearly full: what would add to it is refused, reading goes on."""


class StoppingError(ShardNodeError):
    """The node is stopping and begins nothing new."""


class AccountNotFoundError(ShardNodeError):
    """No such account is open on this shard."""


class TransferNotFoundError(ShardNodeError):
    """Nothing is recorded under this key."""


class BadRequestError(ShardNodeError):
    """A field has a value that cannot be answered.

    Attributes:
        field: the request's field.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class StateConflictError(ShardNodeError):
    """The account's state does not allow what was asked."""
