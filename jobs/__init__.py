"""What a person or a scheduler starts: settings, words on the screen, tracking, exit codes."""
