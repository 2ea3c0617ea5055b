"""Many tasks, done by one process or by workers on many machines; nothing here knows what a task is about."""
