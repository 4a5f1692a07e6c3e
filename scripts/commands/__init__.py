"""The subcommands of `doubloon`, one module for each family."""
