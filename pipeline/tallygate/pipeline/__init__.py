"""The rules: pure, synchronous, deterministic. No clock, no file, no network, no random number."""
