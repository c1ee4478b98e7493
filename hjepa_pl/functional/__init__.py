"""Pure functions: counters, tokens, settings, collectives."""
