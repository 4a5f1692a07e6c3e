"""The wire contract as Python modules, generated from `proto/doubloon/v1`."""
