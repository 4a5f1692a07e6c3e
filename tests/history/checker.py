"""Whether a history is one that the promises allow. Pure: a history and the logs in, faults out.

The logs give the order, so nothing is searched for. Every account has a *course*: its postings in
the order of its log. To stand at *position* p of a course is to show its first p postings.

1. The logs by themselves: balances follow from each other, none is below its floor, time does not
   go back, each key is answered for once, and what is committed has each of its legs exactly once,
   what is refused none, and nothing stays prepared.
2. Each answer against the outcome under its key: status, reason, time and balance are the ledger's;
   what was said not to have happened is not there; every doubt was ended by asking again.
3. Each read against its course. A read of an instant stands at the number of postings up to that
   instant, also when it was made long before the end: what it told must be what the course says
   there, so a later posting at or before an instant that was answered is found as well.
4. Real time. Whatever *shows* position p of a course at time t is evidence: a completed answer of a
   posting, or a read. What was asked for after t must stand behind it: a posting at p or later
   (counting from 0), and a read for now at p or more. With positions fixed by the ledger, these
   conditions between pairs are all that linearizability of an account asks: reads at the same
   position can be put in the order of their times, and nothing else can be in a circle.
   A refusal on record is a read of its source's course at its place in the log.
5. Audits against the legs of each pair of shards that were decided before the audit's instant.

The effect of a key can have begun at the first try that was not told that nothing happened. All is
sorted and looked up by bisection: O(n log n) in questions and postings.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from itertools import accumulate
from typing import TYPE_CHECKING, Final, NamedTuple

from tests.history.history import Fate, History, Key, Ledger, Look, Move, Rule, Violation

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.history.history import Audit, Lookup, Outcome, Posting, Statement, Try

INSUFFICIENT_FUNDS: Final = 13  # of `doubloon.v1.RefusalReason`
NEVER: Final = 2**63

_SETTLED: Final = frozenset({Fate.COMPLETED, Fate.REFUSED, Fate.REUSED})
_ON_RECORD: Final = frozenset({Fate.COMPLETED, Fate.COMMITTED, Fate.REFUSED})


def check(history: History, ledger: Ledger) -> list[Violation]:
    """Return everything that is wrong, of the logs first; see the module's docstring."""
    return _Checker(history, ledger).run()


class _Evidence(NamedTuple):
    """At a time, somebody was shown the first `position` postings of a course."""

    at_ns: int
    position: int
    is_read: bool
    what: str


class _Course:
    """An account's postings, in the order of its log, and what showed how many of them when."""

    def __init__(self, postings: Sequence[Posting]) -> None:
        self.postings = postings
        self.times_us = [each.time_us for each in postings]
        self.sequences = [each.sequence for each in postings]
        changes = [each.change_minor for each in postings]
        self._sums = [
            list(accumulate(values, initial=0))
            for values in (
                [max(each, 0) for each in changes],
                [max(-each, 0) for each in changes],
                [int(each > 0) for each in changes],
                [int(each < 0) for each in changes],
            )
        ]
        self._evidence: list[_Evidence] = []
        self._times_ns: list[int] = []
        self._most: list[_Evidence] = []

    def at(self, instant_us: int) -> int:
        """The position at an instant."""
        return bisect_right(self.times_us, instant_us)

    def balance(self, position: int) -> int:
        """The balance there."""
        return self.postings[position - 1].balance_minor if position else 0

    def moved(self, since: int, position: int) -> tuple[int, ...]:
        """What came in and went out between two positions, and how many of each."""
        return tuple(sums[position] - sums[since] for sums in self._sums)

    def show(self, at_ns: int, position: int, what: str, *, is_read: bool) -> None:
        """Adds evidence."""
        self._evidence.append(_Evidence(at_ns, position, is_read, what))

    def order(self) -> None:
        """Puts the evidence in order; all of it is there."""
        self._evidence.sort()
        self._times_ns = [each.at_ns for each in self._evidence]
        self._most = list(accumulate(self._evidence, _higher))

    def shown_before(self, at_ns: int) -> _Evidence | None:
        """The evidence of the highest position before a time."""
        count = bisect_left(self._times_ns, at_ns)
        return self._most[count - 1] if count else None


def _higher(one: _Evidence, other: _Evidence) -> _Evidence:
    return one if one.position >= other.position else other


class _Sight(NamedTuple):
    """A read that stands at a position, and must show all that was shown before it began."""

    account_id: int
    position: int
    invoked_ns: int
    what: str


class _Checker:
    def __init__(self, history: History, ledger: Ledger) -> None:
        self._history = history
        self._ledger = ledger
        self._found: list[Violation] = []
        by_account: defaultdict[int, list[Posting]] = defaultdict(list)
        self._legs: defaultdict[Key, list[Posting]] = defaultdict(list)
        self._places: dict[tuple[int, Key], int] = {}
        for posting in ledger.postings:
            course = by_account[posting.account_id]
            course.append(posting)
            self._legs[posting.key].append(posting)
            self._places[posting.account_id, posting.key] = len(course)
        self._courses = {account: _Course(each) for account, each in by_account.items()}
        self._outcomes: dict[Key, Outcome] = {}
        self._began: dict[Key, int] = {}
        self._tries: defaultdict[Key, list[Try]] = defaultdict(list)
        for one in history.tries:
            self._tries[one.key].append(one)
        self._sights: list[_Sight] = []

    def run(self) -> list[Violation]:
        self._check_courses()
        self._check_outcomes()
        for key, tries in self._tries.items():
            self._check_tries(key, tries)
        for look in self._history.looks:
            self._check_look(look)
        for statement in self._history.statements:
            self._check_statement(statement)
        for lookup in self._history.lookups:
            self._check_lookup(lookup)
        self._check_real_time()
        self._check_books()
        return self._found

    def _fail(self, rule: Rule, what: str) -> None:
        self._found.append(Violation(rule, what))

    def _must(self, holds: bool, rule: Rule, what: str) -> None:  # noqa: FBT001 - it reads as an assertion
        if not holds:
            self._fail(rule, what)

    # --- the logs by themselves -----------------------------------------------------------------

    def _check_courses(self) -> None:
        for account_id, course in self._courses.items():
            balance_minor = latest_us = 0
            floor_minor = self._ledger.floors.get(account_id, 0)
            for each in course.postings:
                name = account_id, each.log_id, each.sequence
                balance_minor += each.change_minor
                if each.balance_minor != balance_minor:
                    self._fail(Rule.CHAIN, f"{name}: {each.balance_minor}, not {balance_minor}")
                if each.balance_minor < floor_minor:
                    self._fail(Rule.FLOOR, f"{name}: {each.balance_minor}")
                if each.time_us < latest_us:
                    self._fail(Rule.TIME, f"{name}: {each.time_us} behind {latest_us}")
                if each.log_id != course.postings[0].log_id:
                    self._fail(Rule.CHAIN, f"{name}: an account is in two logs")
                balance_minor, latest_us = each.balance_minor, each.time_us

    def _check_outcomes(self) -> None:
        for outcome in self._ledger.outcomes:
            other = self._outcomes.setdefault(outcome.key, outcome)
            what = f"{_name(outcome.key)} is answered for at {_place(other)} and {_place(outcome)}"
            self._must(other is outcome, Rule.ONCE, what)
        for key, outcome in self._outcomes.items():
            self._check_legs(outcome, self._legs.get(key, []))
        for key in self._outcomes.keys() - self._tries.keys():
            self._fail(Rule.UNASKED, f"{_name(key)} at {_place(self._outcomes[key])}")
        for key in self._legs.keys() - self._outcomes.keys():
            self._fail(Rule.UNASKED, f"{_name(key)} has entries and no outcome")
        for transaction_id in self._ledger.in_doubt:
            self._fail(Rule.IN_DOUBT, f"transaction {transaction_id.hex()}")

    def _check_legs(self, outcome: Outcome, legs: Sequence[Posting]) -> None:
        name = _name(outcome.key)
        if outcome.reason:
            self._must(not legs, Rule.MOVED, f"{name} was refused at {_place(outcome)}")
            return
        have = Counter((each.account_id, each.change_minor, each.member) for each in legs)
        want = Counter(_legs_of(outcome.moves))
        self._must(max(have.values(), default=1) == 1, Rule.ONCE, f"{name} posted a leg twice")
        what = f"{name} has {sum(have.values())} of {sum(want.values())} legs, or others"
        self._must(have.keys() == want.keys(), Rule.ATOMIC, what)
        decided = {each.decided_us for each in legs}
        self._must(len(decided) <= 1, Rule.ATOMIC, f"{name} was decided at {sorted(decided)}")

    # --- answers --------------------------------------------------------------------------------

    def _check_tries(self, key: Key, tries: Sequence[Try]) -> None:
        outcome, name = self._outcomes.get(key), _name(key)
        for each in tries:
            self._check_answer(each, outcome)
        fresh = [each for each in tries if each.fate in _ON_RECORD and not each.repeat]
        self._must(len(fresh) <= 1, Rule.ONCE, f"{name} was done anew {len(fresh)} times")
        for moves in {each.moves for each in tries}:
            own = [each for each in tries if each.moves == moves]
            is_open = any(each.fate in {Fate.UNKNOWN, Fate.COMMITTED} for each in own)
            is_settled = any(each.fate in _SETTLED for each in own)
            self._must(is_settled or not is_open, Rule.OPEN, f"{name} with {moves}")
        if outcome is None:
            return
        own = [each for each in tries if each.moves == outcome.moves]
        begun = [each.invoked_ns for each in own if each.fate is not Fate.NOTHING]
        self._must(bool(own), Rule.UNASKED, f"{name} is at {_place(outcome)} with another body")
        self._must(bool(begun) or not own, Rule.NOTHING, f"{name} is at {_place(outcome)}")
        if begun:
            self._began[key] = min(begun)
            self._show_outcome(outcome, own)

    def _check_answer(self, one: Try, outcome: Outcome | None) -> None:
        if one.fate in {Fate.NOTHING, Fate.UNKNOWN}:
            return
        name = f"{_name(one.key)}, answered {one.fate.value}"
        self._must(outcome is not None, Rule.LOST, name)
        if outcome is None:
            return
        is_same = outcome.moves == one.moves
        if one.fate is Fate.REUSED:
            self._must(not is_same, Rule.ANSWER, f"{name}: the ledger has the same")
            return
        self._must(is_same, Rule.ANSWER, f"{name}: the ledger has {outcome.moves}")
        is_refused = one.fate is Fate.REFUSED
        rule = Rule.ANSWER if is_refused or not outcome.reason else Rule.LOST
        agrees = (one.reason, one.member) == (outcome.reason, outcome.member)
        what = f"{name} for {one.reason}, {one.member}: the ledger says {outcome.reason}"
        self._must(agrees and is_refused == bool(outcome.reason), rule, what)
        time_us, balance_minor = self._at_source(outcome)
        what = f"{name}: at {one.time_us} with {one.balance_minor}, not {time_us}, {balance_minor}"
        told = one.time_us, one.balance_minor
        self._must(told == (time_us, balance_minor), Rule.ANSWER, what)

    def _at_source(self, outcome: Outcome) -> tuple[int, int]:
        """When an outcome came about at its first source, and the balance there right after."""
        source = outcome.moves[0].source
        course = self._courses.get(source)
        if outcome.reason:
            position = bisect_left(course.sequences, outcome.sequence) if course else 0
            return outcome.time_us, course.balance(position) if course else 0
        place = self._places.get((source, outcome.key), 0)
        if not course or not place:
            return 0, 0  # which was found to be half done
        return course.postings[place - 1].time_us, course.balance(place)

    def _show_outcome(self, outcome: Outcome, own: Sequence[Try]) -> None:
        """Makes evidence of the first answers of each kind."""
        first = {
            fate: min((each.answered_ns for each in own if each.fate is fate), default=NEVER)
            for fate in _ON_RECORD
        }
        if outcome.reason:
            self._show_refusal(outcome, first[Fate.REFUSED])
            return
        for leg in self._legs.get(outcome.key, ()):
            at_ns = first[Fate.COMPLETED]
            if leg.log_id == outcome.log_id:
                at_ns = min(at_ns, first[Fate.COMMITTED])
            self._show_posted(leg.account_id, outcome.key, at_ns)

    def _show_posted(self, account_id: int, key: Key, at_ns: int) -> None:
        if at_ns != NEVER:
            place = self._places[account_id, key]
            what = f"{_name(key)}, answered before"
            self._courses[account_id].show(at_ns, place, what, is_read=False)

    def _show_refusal(self, outcome: Outcome, answered_ns: int) -> None:
        """A refusal on record has seen its source's course at its own place in the log."""
        move, course = outcome.moves[outcome.member], None
        if outcome.moves[0].source == move.source and len(outcome.moves) == 1:
            course = self._courses.get(move.source)
        if outcome.reason != INSUFFICIENT_FUNDS or course is None:
            return
        position = bisect_left(course.sequences, outcome.sequence)
        what = f"{_name(outcome.key)}, refused"
        left_minor = course.balance(position) - move.amount_minor
        floor_minor = self._ledger.floors.get(move.source, 0)
        self._must(left_minor < floor_minor, Rule.GROUNDLESS, f"{what}: {left_minor} were left")
        self._sights.append(_Sight(move.source, position, self._began[outcome.key], what))
        if answered_ns != NEVER:
            course.show(answered_ns, position, what, is_read=True)

    # --- reads ----------------------------------------------------------------------------------

    def _check_look(self, look: Look) -> None:
        course = self._courses.get(look.account_id) or _Course(())
        position = course.at(look.to_us)
        name = f"account {look.account_id} up to {look.to_us}"
        if look.balance_minor is not None:
            have = course.balance(position)
            what = f"{name}: balance {look.balance_minor}, not {have}"
            self._must(look.balance_minor == have, Rule.ANSWER, what)
        if look.latest_us is not None:
            have = course.times_us[position - 1] if position else 0
            what = f"{name}: latest entry at {look.latest_us}, not {have}"
            self._must(look.latest_us == have, Rule.ANSWER, what)
        if look.flows is not None:
            moved = course.moved(min(course.at(look.from_us), position), position)
            agrees = all(told in {-1, true} for told, true in zip(look.flows, moved, strict=True))
            self._must(agrees, Rule.ANSWER, f"{name}: moved {look.flows}, not {moved}")
        self._see(look, position, name, is_now=look.is_now)

    def _check_statement(self, statement: Statement) -> None:
        account_id, lines = statement.account_id, statement.lines
        course = self._courses.get(account_id) or _Course(())
        name = f"statement of account {account_id}"
        position = 0
        if lines:
            position = bisect_right(course.sequences, lines[-1].sequence)
        have = course.postings[max(0, position - len(lines)) : position]
        agrees = len(have) == len(lines) and all(map(_is_of, lines, have))
        self._must(agrees, Rule.ANSWER, f"{name} up to {position} is not what the ledger has")
        self._see(statement, position, name)

    def _see(
        self, read: Look | Statement, position: int, what: str, *, is_now: bool = True
    ) -> None:
        """A read is evidence, and one for now must show what others were shown before it."""
        if course := self._courses.get(read.account_id):
            course.show(read.answered_ns, position, what, is_read=True)
            if is_now:
                sight = _Sight(read.account_id, position, read.invoked_ns, what)
                self._sights.append(sight)

    def _check_lookup(self, lookup: Lookup) -> None:
        key, outcome = lookup.key, self._outcomes.get(lookup.key)
        name = f"look-up of {_name(key)}"
        if lookup.fate is None:
            answered = (each.answered_ns for each in self._tries[key] if each.fate in _ON_RECORD)
            is_early = min(answered, default=NEVER) > lookup.invoked_ns
            self._must(is_early, Rule.STALE, f"{name} found nothing")
            return
        self._must(outcome is not None, Rule.LOST, f"{name} found {lookup.fate.value}")
        if outcome is None:
            return
        told = (lookup.log_id, lookup.sequence, lookup.reason, lookup.first)
        true = (outcome.log_id, outcome.sequence, outcome.reason, outcome.moves[0])
        self._must(told == true, Rule.ANSWER, f"{name}: {told}, not {true}")
        is_asked = self._began.get(key, NEVER) <= lookup.answered_ns
        self._must(is_asked, Rule.FUTURE, f"{name} found {lookup.fate.value}")
        for leg in self._legs.get(key, ()):
            if lookup.fate is Fate.COMPLETED or leg.log_id == outcome.log_id:
                self._show_posted(leg.account_id, key, lookup.answered_ns)

    # --- real time ------------------------------------------------------------------------------

    def _check_real_time(self) -> None:
        for course in self._courses.values():
            course.order()
            for index, posting in enumerate(course.postings):
                shown = course.shown_before(self._began.get(posting.key, 0))
                if shown is None or shown.position <= index:
                    continue
                rule = Rule.FUTURE if shown.is_read else Rule.ORDER
                what = f"{_name(posting.key)} stands before: {shown.what}"
                self._fail(rule, f"account {posting.account_id}: {what}")
        for sight in self._sights:
            shown = self._courses[sight.account_id].shown_before(sight.invoked_ns)
            if shown is not None and shown.position > sight.position:
                what = f"{sight.what} shows {sight.position}, not {shown.position}: {shown.what}"
                self._fail(Rule.BACK if shown.is_read else Rule.STALE, what)

    # --- books ----------------------------------------------------------------------------------

    def _check_books(self) -> None:
        for is_balanced in self._history.books_balanced:
            self._must(is_balanced, Rule.BOOKS, "a shard's own books do not balance")
        crossed: defaultdict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        for each in self._ledger.postings:
            if each.peer_log != each.log_id:
                crossed[each.log_id, each.peer_log].append((each.decided_us, -each.change_minor))
        sums = {pair: _Sums(sorted(legs)) for pair, legs in crossed.items()}
        for audit in self._history.audits:
            self._check_audit(audit, sums)

    def _check_audit(self, audit: Audit, sums: dict[tuple[int, int], _Sums]) -> None:
        self._must(audit.balanced, Rule.BOOKS, f"the audit as of {audit.as_of_us} says so itself")
        for pair in sums.keys() | audit.positions.keys():
            true = sums[pair].before(audit.as_of_us) if pair in sums else 0
            told = audit.positions.get(pair, 0)
            what = f"of {pair} as of {audit.as_of_us}: {told}, not {true}"
            self._must(told == true, Rule.BOOKS, what)
            other = sums[pair[::-1]].before(audit.as_of_us) if pair[::-1] in sums else 0
            self._must(true + other == 0, Rule.BOOKS, f"{pair} leave {true + other} between them")


class _Sums:
    """Sums of what was decided before an instant."""

    def __init__(self, legs: Sequence[tuple[int, int]]) -> None:
        self._times_us = [time_us for time_us, _ in legs]
        self._sums = list(accumulate((change for _, change in legs), initial=0))

    def before(self, instant_us: int) -> int:
        """What was decided before it."""
        return self._sums[bisect_left(self._times_us, instant_us)]


def _legs_of(moves: Sequence[Move]) -> Iterable[tuple[int, int, int]]:
    """(account, change, index) of each leg."""
    for index, move in enumerate(moves):
        yield move.source, -move.amount_minor, index
        yield move.destination, move.amount_minor, index


def _is_of(line: tuple[object, ...], posting: Posting) -> bool:
    """Whether a statement's line is what a posting says."""
    return line == (
        posting.log_id,
        posting.sequence,
        posting.time_us,
        posting.change_minor,
        posting.balance_minor,
        posting.key,
        posting.member,
    )


def _name(key: Key) -> str:
    return f"{key[0]}/{key[1].hex()[-12:]}"


def _place(outcome: Outcome) -> str:
    return f"{outcome.log_id}:{outcome.sequence}"
