"""Archives to pixels: listing, inventory, fetch, decode and resize."""
