"""A gateway's pager: critical findings that cannot reach the bus become pages at once, without a bus and a store.

::

    async with Pager(receivers, routing, clock) as pager:
        receipts = await pager.page(payload)  # an encoded finding/1 frame, as a collector reports it

Pages are made by the planner of the alert role, under the same paging keys and ids, and sent by the same rules. Whoever
has taken one gives a receipt (:mod:`alerting.receipts`), which goes back down to the collector and comes with the
finding when the bus is back: then the alert role does not send it again.

Of each job or node the pager knows what was reported to it since it started and, where it may :meth:`Pager.follow` the
bus, what was said there before the bus went away. Without that, an episode is taken for the first. Only the first word
of an incident is sent from here: how it goes on is told by the alert role.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Self

from alerting.attempt import Courier
from alerting.body import Presentation
from alerting.delivery import Backoff, DeliveryState
from alerting.errors import BadSetting, PageNotTaken
from alerting.group import Scene
from alerting.incident import Scope, Tier
from alerting.letters import Letter, Letters
from alerting.plan import Planner
from alerting.receipts import NO_PAGE, Receipts
from alerting.receivers import Receiver
from alerting.report import read_report
from alerting.route import Routing
from alerting.stats import PagerStats, ReportOutcome
from alerting.unrecorded import read_unrecorded
from telemetry_bus.bus import Bus
from telemetry_bus.errors import FrameError
from telemetry_bus.findings import Finding
from telemetry_bus.runtime.clock import Clock
from telemetry_bus.schemas import FindingState, Severity

PAGE_SECONDS = 5.0
"""How long a report waits for its receivers: a lost packet and a second try. Then the reporter is told to ask again,
and sending goes on."""
SCOPES_MAX = 4096
"""Jobs and nodes with trouble; the longest untouched is forgotten first. Some 4 KB each, and 3 KB for each page: 28 MB
if one receiver is paged for every one of them."""
PAGED_MAX = 16
"""Of one scope: incidents whose pages are remembered, the newest ones."""
IDS_MAX = 512
"""Of one scope: findings that are known by their ids. Beyond them, one that comes again is told by its time."""
BACK_SECONDS = 7 * 86_400.0
"""What is read back of the bus, so that episodes are counted on. It is what detectors, too, read back of findings."""
BLIND = "the bus is away: this page was sent by ripcord, from a gateway that knows only what cut-off nodes report to it"


@dataclass(slots=True)
class _Known:
    """What is known of one scope: its scene, the incident of each finding, and the pages of each incident."""

    scene: Scene = field(default_factory=Scene)
    incidents: OrderedDict[str, str | None] = field(default_factory=OrderedDict)
    letters: OrderedDict[str, list[Letter]] = field(default_factory=OrderedDict)


@dataclass(frozen=True, slots=True)
class PagerOptions:
    """What may be set besides the routes. A report waits up to ``page_seconds`` for its receivers."""

    presentation: Presentation = field(default_factory=Presentation)
    backoff: Backoff = field(default_factory=lambda: Backoff(max_seconds=5.0))
    page_seconds: float = PAGE_SECONDS


class Pager:
    """Runs inside ``async with``; ``receivers`` are opened here. Those that take no pages are left out."""

    def __init__(
        self, receivers: Sequence[Receiver], routing: Routing, clock: Clock, options: PagerOptions | None = None
    ) -> None:
        paged = {receiver.name: receiver for receiver in receivers if Tier.PAGE in receiver.tiers}
        if not paged:
            raise BadSetting("receivers", "none that takes pages", "at least one with the tier 'page'")
        self._options = PagerOptions() if options is None else options
        self._receivers = paged
        self._clock = clock
        self.stats = PagerStats()
        tiers = {name: receiver.tiers for name, receiver in paged.items()}
        self._receipts = Receipts(paged)
        self._planner = Planner(routing, tiers, self._options.presentation, self._receipts)
        self._letters = Letters(paged, Courier(paged, clock, self.stats.sending, self._options.backoff), clock)
        self._known: OrderedDict[Scope, _Known] = OrderedDict()

    async def __aenter__(self) -> Self:
        """Open the receivers."""
        await self._letters.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Stop. A page that nobody has taken is sent under its id by whoever it is reported to next."""
        await self._letters.__aexit__(*exc_info)

    async def page(self, payload: bytes) -> tuple[str, ...]:
        """Page the critical findings in ``payload``, each incident once, and return the receipts of those who know.

        Only :data:`~alerting.receipts.NO_PAGE` where it calls for none. Raises
        :class:`~telemetry_bus.errors.FrameError` for what is no report, and :class:`PageNotTaken` where there is a page
        that nobody has taken in time. Cancelled, it sends on.
        """
        try:
            findings = read_report(payload, self._clock.now())
        except FrameError:
            self.stats.reports_total[ReportOutcome.REFUSED] += 1
            raise
        pages = [letters for finding in findings if (letters := self._pages_of(finding))]
        letters = list(dict.fromkeys(letter for page in pages for letter in page))
        await self._letters.send(letters, self._options.page_seconds)
        if untold := [page for page in pages if not any(letter.is_taken for letter in page)]:
            self.stats.reports_total[ReportOutcome.NOT_TAKEN] += 1
            why = [letter.error for page in untold for letter in page]
            raise PageNotTaken([page[0].delivery.id for page in untold], why)
        self.stats.reports_total[ReportOutcome.TAKEN if pages else ReportOutcome.QUIET] += 1
        return tuple(self._receipt(letter) for letter in letters if letter.is_taken) or (NO_PAGE,)

    @property
    def waiting(self) -> int:
        """Pages that are on their way to a receiver."""
        return len(self._letters.on_their_way)

    async def follow(self, bus: Bus) -> None:
        """Learn what is said on ``bus``, until cancelled: of which episode trouble is, and what is over."""
        since = self._clock.now() - BACK_SECONDS
        await read_unrecorded(bus, since, self.stats.sending, self.learn)

    def learn(self, findings: Iterable[Finding]) -> None:
        """Take ``findings``, which the alert role tells of, as said."""
        for finding in findings:
            self._incident_of(self._scope(finding), finding)

    def knows(self, finding: Finding) -> bool:
        """Whether ``finding`` has been taken as said."""
        known = self._known.get(Scope.of(finding))
        return known is not None and finding.id in known.incidents

    @property
    def remembered(self) -> tuple[int, int, int]:
        """How many scopes, findings and pages are remembered."""
        known = self._known.values()
        pages = sum(len(letters) for item in known for letters in item.letters.values())
        return len(known), sum(len(item.incidents) for item in known), pages

    def _receipt(self, letter: Letter) -> str:
        return self._receivers[letter.delivery.receiver].receipt(letter.delivery.id)

    def _pages_of(self, finding: Finding) -> list[Letter]:
        """The letters of the incident of ``finding``, written now where there are none. No page, no letters."""
        known = self._scope(finding)
        identity = self._incident_of(known, finding)
        if identity is None or finding.severity is not Severity.CRITICAL or finding.state is not FindingState.FIRING:
            return []
        letters = known.letters.pop(identity, [])
        incident = next((item for item in known.scene.open if item.id == identity), None)
        if incident is not None:
            have = {letter.delivery.receiver for letter in letters}
            if not have.issuperset(incident.told):
                first = self._planner.announce(incident, self._clock.now(), (BLIND,))
                letters.extend(Letter(delivery) for delivery in first if delivery.receiver not in have)
            proven = {receipt.delivery_id for receipt in self._receipts.taken_off(finding)[1].receipts}
            for letter in letters:
                if letter.delivery.id in proven:  # another gateway, or this one before a restart, has sent it
                    letter.state = DeliveryState.DELIVERED
        if letters:
            known.letters[identity] = letters  # at the end: it is the one that was asked for last
            while len(known.letters) > PAGED_MAX:
                known.letters.popitem(last=False)
        return letters

    def _incident_of(self, known: _Known, finding: Finding) -> str | None:
        """The incident of ``finding``, which moves the scene of its scope if it is new."""
        if finding.id in known.incidents:
            return known.incidents[finding.id]
        change = self._planner.plan(known.scene, finding, self._clock.now(), (BLIND,)).change
        known.scene = known.scene.after(change)
        known.incidents[finding.id] = change.incident_id
        while len(known.incidents) > IDS_MAX:
            known.incidents.popitem(last=False)
        return change.incident_id

    def _scope(self, finding: Finding) -> _Known:
        scope = Scope.of(finding)
        known = self._known.setdefault(scope, _Known())
        self._known.move_to_end(scope)
        while len(self._known) > SCOPES_MAX:
            self._known.popitem(last=False)
        return known
