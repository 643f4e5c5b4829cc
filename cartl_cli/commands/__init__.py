"""One file a sub-command: flags → config → one call into core → display."""
