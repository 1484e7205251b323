"""Published numbers, verdicts on claims, checks beyond one value, and `knowledge`: all of it joined."""
