"""Schedules of tasks: which of them a step trains, by what the run has found so far."""
