"""Currency codes and numbers: the contract speaks codes, the ledger stores numbers.

Registrations come by the membership's watch. A number that the ledger has and the watch has not
brought yet exists for certain (a router allotted it), so it is waited for, not refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import grpc

from cluster.faults import Fault
from cluster.membership import MembershipUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cluster.membership import Membership

WAIT_S: Final = 2.0
"""How long to wait for a registration that must be on its way; watches deliver in milliseconds."""


class Currencies:
    """Translates between codes and numbers by the cluster's registrations."""

    def __init__(self, membership: Membership) -> None:
        self._membership = membership

    def number(self, code: str, field: str) -> int:
        """The number of a code that a request names.

        Raises:
            Fault: INVALID_ARGUMENT, naming the field: it is not registered.
        """
        currency = self._membership.view.currencies.get(code)
        if currency is None:
            raise Fault(grpc.StatusCode.INVALID_ARGUMENT, f"{code!r} is not registered", field)
        return currency.number

    async def codes(self, numbers: Iterable[int]) -> Mapping[int, str]:
        """The codes of numbers that the ledger has.

        Raises:
            Fault: UNAVAILABLE: a registration did not arrive in time.
        """
        wanted = set(numbers)
        try:
            view = await self._membership.wait_for(
                lambda view: wanted <= {each.number for each in view.currencies.values()}, WAIT_S
            )
        except (TimeoutError, MembershipUnavailable) as error:
            raise Fault(
                grpc.StatusCode.UNAVAILABLE,
                "the registration of one of the account's currencies has not arrived yet",
                indefinite=False,
            ) from error
        return {each.number: each.code for each in view.currencies.values()}
