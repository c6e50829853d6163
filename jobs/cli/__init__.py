"""What all commands share: settings, exit codes, progress and messages."""
