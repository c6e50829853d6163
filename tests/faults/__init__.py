"""What breaks, on purpose: broken images, hostile archives, long runs, two nights at once."""
