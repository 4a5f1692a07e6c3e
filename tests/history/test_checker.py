"""A test of the checker: of each kind of violation a bad history, and good ones close to it."""

from collections.abc import Callable

import pytest

from tests.history.by_hand import ANN, BANK, BOB, EVE, FUNDS, Story
from tests.history.checker import check
from tests.history.history import Fate, Rule

Tale = Callable[[Story], None]

SALE = ((ANN, BOB, 40), (BOB, BANK, 4))  # between two logs, and back


def begin(it: Story) -> None:
    """Ann gets 100 of the bank, and 30 go on to Bob, in another log."""
    it.moves("pay", (BANK, ANN, 100), asked=(10, 20))
    it.moves("gift", (ANN, BOB, 30), asked=(30, 40))


def all_kinds(it: Story) -> None:
    begin(it)
    it.looks(ANN, (50, 60), latest_us=it.stamp_us)
    it.looks(ANN, (50, 60), flows=(100, 30, 1, 1))
    it.looks(ANN, (50, 60), from_us=1, flows=(0, 30, -1, -1))
    it.states(ANN, (50, 60))
    it.refuses("dear", (ANN, BOB, 71), (61, 62))
    it.moves("sale", *SALE, asked=(63, 70))
    it.looks_up(ANN, "sale", (71, 72))
    it.looks_up(ANN, "dear", (71, 72))
    it.finds_nothing(ANN, "later", (71, 72))
    it.audits(66, -66)
    it.history.books_balanced.append(True)


def in_flight_together(it: Story) -> None:
    """Either order will do, and a read may show one of both, or none."""
    begin(it)
    it.moves("one", (BANK, ANN, 5), asked=(50, 90))
    stamp_us = it.stamp_us
    it.moves("two", (BANK, ANN, 6), asked=(41, 80))
    it.looks(ANN, (55, 60), to_us=stamp_us - 1, balance_minor=70)
    it.looks(ANN, (61, 70), to_us=stamp_us, balance_minor=75)
    it.looks(ANN, (71, 79))


def reads_in_flight_together(it: Story) -> None:
    """The one that is answered first may show more."""
    begin(it)
    it.moves("one", (BANK, ANN, 5), asked=(50, 90))
    it.looks(ANN, (55, 60))
    it.looks(ANN, (54, 61), to_us=it.stamp_us - 1, balance_minor=70)


def doubt_that_was_ended(it: Story) -> None:
    begin(it)
    it.tries("slow", (BANK, ANN, 5), asked=(50, 55), fate=Fate.UNKNOWN)
    it.looks(ANN, (60, 65))
    it.moves("slow", (BANK, ANN, 5), asked=(70, 75))
    it.last_try(repeat=True)


def doubt_that_came_to_nothing(it: Story) -> None:
    begin(it)
    it.tries("slow", (ANN, EVE, 90), asked=(50, 55), fate=Fate.UNKNOWN)
    it.refuses("slow", (ANN, EVE, 90), (60, 65))


def definite_and_asked_again(it: Story) -> None:
    begin(it)
    it.tries("away", (ANN, BOB, 5), asked=(50, 55), fate=Fate.NOTHING)
    it.looks(ANN, (56, 60))
    it.moves("away", (ANN, BOB, 5), asked=(61, 70))


def posting_at_the_other_shard(it: Story) -> None:
    """COMMITTED says nothing of the other shard yet."""
    begin(it)
    it.moves("slow", (ANN, BOB, 5), asked=(50, 55))
    it.last_try(fate=Fate.COMMITTED)
    it.looks(BOB, (60, 65), to_us=it.stamp_us - 1, balance_minor=30)
    it.looks(ANN, (60, 65))
    it.tries("slow", (ANN, BOB, 5), asked=(70, 75), repeat=True,
             time_us=it.stamp_us, balance_minor=65)  # fmt: skip


def another_body(it: Story) -> None:
    begin(it)
    it.tries("gift", (ANN, BOB, 31), asked=(50, 55), fate=Fate.REUSED)


def the_past(it: Story) -> None:
    begin(it)
    it.looks(ANN, (90, 95), to_us=1, is_now=False, balance_minor=100)


def time_stands_still(it: Story) -> None:
    begin(it)
    it.stamp_us -= 1
    it.moves("more", (BANK, ANN, 5), asked=(50, 60))


def down_to_the_floor(it: Story) -> None:
    begin(it)
    it.moves("all", (ANN, BOB, 70), asked=(50, 60))


GOOD: dict[str, Tale] = {
    each.__name__: each
    for each in (
        all_kinds, in_flight_together, reads_in_flight_together, doubt_that_was_ended,
        doubt_that_came_to_nothing, definite_and_asked_again, posting_at_the_other_shard,
        another_body, the_past, time_stands_still, down_to_the_floor,
    )
}  # fmt: skip


def out_of_order(it: Story) -> None:
    """As `in_flight_together`, but the first was asked for only after the second's answer."""
    begin(it)
    it.moves("one", (BANK, ANN, 5), asked=(81, 90))
    it.moves("two", (BANK, ANN, 6), asked=(50, 80))


def stale(it: Story) -> None:
    """As `in_flight_together`, but the read began after the answer."""
    begin(it)
    it.moves("one", (BANK, ANN, 5), asked=(50, 60))
    it.looks(ANN, (61, 70), to_us=it.stamp_us - 1, balance_minor=70)


def stale_at_the_other_shard(it: Story) -> None:
    """As `posting_at_the_other_shard`, but it was answered COMPLETED."""
    begin(it)
    it.moves("slow", (ANN, BOB, 5), asked=(50, 55))
    it.looks(BOB, (60, 65), to_us=it.stamp_us - 1, balance_minor=30)


def stale_statement(it: Story) -> None:
    begin(it)
    it.states(ANN, (75, 80))
    it.moves("one", (BANK, ANN, 5), asked=(50, 60))


def stale_refusal(it: Story) -> None:
    """Ann was told to have 40 more, and then that she has too little."""
    begin(it)
    it.refuses("dear", (ANN, BOB, 100), (65, 70))
    it.moves("one", (BANK, ANN, 40), asked=(50, 60))


def found_nothing(it: Story) -> None:
    begin(it)
    it.finds_nothing(ANN, "gift", (41, 50))


def back(it: Story) -> None:
    """As `reads_in_flight_together`, but one after the other."""
    begin(it)
    it.moves("one", (BANK, ANN, 5), asked=(50, 90))
    it.looks(ANN, (55, 60))
    it.looks(ANN, (61, 65), to_us=it.stamp_us - 1, balance_minor=70)


def future(it: Story) -> None:
    begin(it)
    it.moves("one", (BANK, ANN, 5), asked=(50, 90))
    it.looks(ANN, (41, 49))


def found_early(it: Story) -> None:
    begin(it)
    it.moves("one", (ANN, BOB, 5), asked=(50, 90))
    it.looks_up(ANN, "one", (41, 49))


def definite_and_shown(it: Story) -> None:
    """As `definite_and_asked_again`, but it is seen before it was asked for again."""
    begin(it)
    it.tries("away", (ANN, BOB, 5), asked=(50, 55), fate=Fate.NOTHING)
    it.moves("away", (ANN, BOB, 5), asked=(61, 70))
    it.looks(ANN, (56, 60))


def changed_past(it: Story) -> None:
    """As `the_past`, but something was posted at that instant after the answer."""
    begin(it)
    it.looks(ANN, (90, 95), is_now=False)
    it.stamp_us -= 1
    it.moves("late", (BANK, ANN, 5), asked=(96, 99))


def wrong_sum(it: Story) -> None:
    begin(it)
    it.looks(ANN, (50, 60), flows=(100, 31, 1, 1))


def wrong_count(it: Story) -> None:
    begin(it)
    it.looks(ANN, (50, 60), flows=(100, 30, 2, 1))


def wrong_latest(it: Story) -> None:
    begin(it)
    it.looks(ANN, (50, 60), latest_us=1)


def wrong_line(it: Story) -> None:
    begin(it)
    it.states(ANN, (50, 60), balance_minor=71)


def wrong_place(it: Story) -> None:
    begin(it)
    it.looks_up(ANN, "gift", (50, 60), sequence=99)


def wrong_balance_after(it: Story) -> None:
    begin(it)
    it.last_try(balance_minor=71)


def wrong_reason(it: Story) -> None:
    begin(it)
    it.refuses("dear", (ANN, BOB, 71), (61, 62))
    it.last_try(reason=FUNDS + 1)


def reused_by_itself(it: Story) -> None:
    begin(it)
    it.tries("gift", (ANN, BOB, 30), asked=(50, 55), fate=Fate.REUSED)


def forgotten(it: Story) -> None:
    begin(it)
    it.tries("lost", (ANN, BOB, 5), asked=(50, 55), time_us=3, balance_minor=65)


def refused_after_all(it: Story) -> None:
    """It was answered COMPLETED, and the log has a refusal."""
    begin(it)
    it.refuses("dear", (ANN, BOB, 71), (61, 62))
    it.last_try(fate=Fate.COMPLETED, reason=0)


def forgotten_refusal(it: Story) -> None:
    begin(it)
    it.tries("dear", (ANN, BOB, 71), asked=(50, 55), fate=Fate.REFUSED, reason=FUNDS)


def not_nothing(it: Story) -> None:
    begin(it)
    it.tries("away", (ANN, BOB, 5), asked=(50, 55), fate=Fate.NOTHING)
    it.commits("away", (ANN, BOB, 5))


def unasked(it: Story) -> None:
    begin(it)
    it.commits("ghost", (ANN, BOB, 5))


def another_body_than_asked(it: Story) -> None:
    begin(it)
    it.tries("more", (ANN, BOB, 5), asked=(50, 55), fate=Fate.REUSED)
    it.commits("more", (ANN, BOB, 6))


def never_asked_again(it: Story) -> None:
    begin(it)
    it.tries("slow", (BANK, ANN, 5), asked=(50, 55), fate=Fate.UNKNOWN)


def asked_again_in_vain(it: Story) -> None:
    """A definite fault speaks for its own try alone."""
    never_asked_again(it)
    it.tries("slow", (BANK, ANN, 5), asked=(60, 65), fate=Fate.NOTHING)


def twice(it: Story) -> None:
    """In another log, as if the account had been there."""
    begin(it)
    it.moves("gift", (ANN, BOB, 30), asked=(50, 60))


def anew(it: Story) -> None:
    begin(it)
    one = it.history.tries[-1]
    it.tries("gift", (ANN, BOB, 30), asked=(50, 60), repeat=False,
             time_us=one.time_us, balance_minor=one.balance_minor)  # fmt: skip


def one_leg_twice(it: Story) -> None:
    begin(it)
    leg = it.ledger.postings[-1]
    it.ledger.postings.append(leg._replace(sequence=leg.sequence + 1, balance_minor=60))


def one_leg(it: Story) -> None:
    begin(it)
    it.ledger.postings.pop()


def half_a_group(it: Story) -> None:
    begin(it)
    it.moves("sale", *SALE, asked=(50, 60))
    it.ledger.postings = it.ledger.postings[:-2]


def decided_twice(it: Story) -> None:
    begin(it)
    it.last_posting(decided_us=1)


def refused_and_moved(it: Story) -> None:
    begin(it)
    it.refuses("dear", (ANN, BOB, 71), (61, 62))
    key = it.ledger.outcomes.pop().key
    it.commits("dear", (ANN, BOB, 7))
    made = it.ledger.outcomes.pop()
    it.ledger.outcomes.append(made._replace(key=key, reason=FUNDS))


def left_prepared(it: Story) -> None:
    begin(it)
    it.ledger.in_doubt.append(bytes(16))


def broken_chain(it: Story) -> None:
    begin(it)
    it.last_posting(balance_minor=31)


def overdrawn(it: Story) -> None:
    """As `down_to_the_floor`, and one more."""
    begin(it)
    it.moves("all", (ANN, BOB, 71), asked=(50, 60))


def time_back(it: Story) -> None:
    """As `time_stands_still`, and one more."""
    begin(it)
    it.stamp_us -= 2
    it.moves("more", (BANK, ANN, 5), asked=(50, 60))


def groundless(it: Story) -> None:
    begin(it)
    it.refuses("fair", (ANN, BOB, 70), (61, 62))


def audit_of_one_side(it: Story) -> None:
    begin(it)
    it.audits(30, -29)


def audit_of_both_sides(it: Story) -> None:
    begin(it)
    it.audits(31, -31)


def unbalanced_audit(it: Story) -> None:
    begin(it)
    it.audits(30, -30, balanced=False)


def unbalanced_books(it: Story) -> None:
    begin(it)
    it.history.books_balanced.append(False)


BAD: dict[Rule, tuple[Tale, ...]] = {
    Rule.CHAIN: (broken_chain,),
    Rule.FLOOR: (overdrawn,),
    Rule.TIME: (time_back,),
    Rule.ONCE: (twice, anew, one_leg_twice),
    Rule.ATOMIC: (one_leg, half_a_group, decided_twice),
    Rule.MOVED: (refused_and_moved,),
    Rule.IN_DOUBT: (left_prepared,),
    Rule.LOST: (forgotten, refused_after_all, forgotten_refusal),
    Rule.UNASKED: (unasked, another_body_than_asked),
    Rule.NOTHING: (not_nothing,),
    Rule.OPEN: (never_asked_again, asked_again_in_vain),
    Rule.ANSWER: (
        changed_past, wrong_sum, wrong_count, wrong_latest, wrong_line, wrong_place,
        wrong_balance_after, wrong_reason, reused_by_itself,
    ),
    Rule.GROUNDLESS: (groundless,),
    Rule.ORDER: (out_of_order,),
    Rule.STALE: (stale, stale_at_the_other_shard, stale_statement, stale_refusal, found_nothing),
    Rule.BACK: (back,),
    Rule.FUTURE: (future, found_early, definite_and_shown),
    Rule.BOOKS: (audit_of_one_side, audit_of_both_sides, unbalanced_audit, unbalanced_books),
}  # fmt: skip


@pytest.mark.parametrize("tale", GOOD.values(), ids=GOOD)
def test_what_is_allowed_is_accepted(tale: Tale) -> None:
    it = Story()
    tale(it)
    assert check(it.history, it.ledger) == []


@pytest.mark.parametrize(
    ("rule", "tale"),
    [pytest.param(rule, each, id=each.__name__) for rule, tales in BAD.items() for each in tales],
)
def test_what_is_wrong_is_named(rule: Rule, tale: Tale) -> None:
    it = Story()
    tale(it)
    found = check(it.history, it.ledger)
    assert rule in {each.rule for each in found}, found


def test_every_rule_has_its_bad_history() -> None:
    assert BAD.keys() == set(Rule)
