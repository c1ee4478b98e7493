"""Parameter groups, schedules, EMA and the time budget."""
