"""Getting along with other plugins of pytest: each is met by an object that is registered only where it is."""
