"""What other tools write, and what they read: import of their sample logs, export of ours."""
