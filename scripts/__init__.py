"""What operators and developers run: a local cluster, the `doubloon` command, the demo, checks."""
