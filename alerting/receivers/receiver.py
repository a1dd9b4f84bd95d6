"""What every receiver is: one way to tell somebody."""

from types import TracebackType
from typing import Protocol, Self

from alerting.delivery import Delivery
from alerting.incident import Tier


class Receiver(Protocol):
    """Takes deliveries. Used inside ``async with``, by any number of tasks at once."""

    @property
    def name(self) -> str:
        """The name in the configuration, in delivery ids and in metric labels."""
        ...

    @property
    def tiers(self) -> frozenset[Tier]:
        """Which incidents it is told of."""
        ...

    async def __aenter__(self) -> Self:
        """Get ready to send; nothing is sent yet."""
        ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give connections back."""
        ...

    async def send(self, delivery: Delivery) -> int:
        """Send once and return the status with which it was taken (HTTP: any 2xx).

        Raises :class:`~alerting.errors.DeliveryFailed`, which says whether to try again, and nothing else. It ends
        within a bounded time whatever the other side does. A delivery sent twice carries the same id.
        """
        ...

    def receipt(self, delivery_id: str) -> str:
        """The proof that this receiver has taken a delivery, for others who hold its secret (:mod:`alerting.receipts`).

        Given away only for what :meth:`send` has returned for. The secret itself never is.
        """
        ...
