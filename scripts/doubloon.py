"""`doubloon`: the operators' one command. Each family of subcommands has a module of its own."""

import click

from scripts.commands.accounts import account
from scripts.commands.cluster import cluster
from scripts.commands.crossing import audit, txn
from scripts.commands.history import entries, flows, series
from scripts.commands.money import currency, group, transfer, verify
from scripts.commands.replay import replay

main = click.Group(
    "doubloon",
    help="Run, use and audit a Doubloon cluster.",
    context_settings={"help_option_names": ["-h", "--help"]},
    commands=[
        cluster,
        account,
        currency,
        transfer,
        group,
        flows,
        series,
        entries,
        verify,
        audit,
        txn,
        replay,
    ],
)

if __name__ == "__main__":
    main()
