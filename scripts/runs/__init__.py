"""Running the examples: record, state, schedule, job and shared cache."""
