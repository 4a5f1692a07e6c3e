"""Are the tests any good? Bugs are planted one by one, and each must turn a test red.

A *mutant* is Doubloon with one mistake in it, of the kind that a careful reviewer would look for:
an answer before the sync, one leg forgotten, a comparison off by one. It names the promise that it
breaks and the *rig* that has to notice: some tests, or a command, with a bound on its time. A rig
is also run without the mistake, and must be green then. A mutant that no rig notices is a hole in
the tests, and fails the run.

- `mutant`: what a mutant is, and how a mistake is planted: one exact piece of the source is
  replaced by another, in a copy of the whole source tree in which the rig then runs. A piece that
  the source does not have any more, or has twice, fails the run: no mutant can rot unnoticed. Rigs
  that plant mistakes of their own (simulations whose parts are exchanged) are listed as well.
- `ledger`, `durability`, `crossing`, `serving`, `streams`: the mutants, by what they break.
- `registry`: all tables of mutants, these and those of other rigs.
- `running`: copies, processes, verdicts. `python -m tests.mutants` runs them all.
"""
