"""The fuzzer instruments what it imports: it is run, never collected."""

collect_ignore = ["fuzz_update.py"]
