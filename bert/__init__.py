"""What the commands at the root are made of: imported, never run."""
